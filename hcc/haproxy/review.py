"""What a sidecar makes haproxy.cfg of, as a file to look at and to render elsewhere (`hcc snapshot`). Pure.

Secrets are left out; nothing in it lets anybody in. Read strictly: a file of another shape is refused, not guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hcc.errors import HccError, SettingError
from hcc.haproxy.desired_terms import Options
from hcc.mesh.chain import ChainError, check_chain
from hcc.mesh.json_form import JsonFormError, from_json, to_json
from hcc.mesh.snapshot import Snapshot
from hcc.settings import parse_access_log
from hcc.version import VERSION

KIND = "hcc snapshot"
# Grows when a file of before can no longer be read.
FORMAT = 2


class ReviewError(HccError):
    """What was read is no file of `hcc snapshot` that can be rendered; the text says why."""


@dataclass(frozen=True, slots=True)
class Review:
    """All that a configuration is made of, but for the secrets and the HAProxy it is for.

    Args:
        options: what the operator chose.
        callers: names of the services that were let in, and are remembered; each has a server line.
        snapshot: what Consul said.
        admitted: address, port and SPIFFE URI of the endpoints that may get traffic; None where that is not looked at.
        silent: those of them that do not answer, who fell silent first coming first, and who fails to be admitted.
    """

    options: Options
    callers: tuple[str, ...]
    snapshot: Snapshot
    admitted: frozenset[tuple[str, int, str]] | None = None
    silent: tuple[tuple[str, int, str], ...] = ()


def review_json(review: Review, haproxy: str) -> dict[str, Any]:
    """The file, for `json.dumps`; `haproxy` is the version that runs."""
    return {"kind": KIND, "format": FORMAT, "hcc": VERSION, "haproxy": haproxy, "review": to_json(review)}


def read_review(data: object) -> Review:
    """The review in a file, as `json.loads` gives it.

    Raises:
        ReviewError: it is another file, of another format, or of an hcc that knows other fields; or its parts do not
            fit together.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or kind != KIND:
        found = "one without a kind" if kind is None else f"one of the kind {kind!r}"
        raise ReviewError(f"expected a file that `{KIND}` wrote, found {found}")
    if data.get("format") != FORMAT:
        raise ReviewError(f"expected format {FORMAT} of `{KIND}`, found {data.get('format')!r}{_made_by(data)}")
    try:
        review = from_json(Review, data.get("review"))
        # What was written fits together; somebody may have edited it.
        parse_access_log(review.options.process.access_log)
        for state in review.snapshot.upstreams:
            if state.chain is not None:
                check_chain(state.chain)
    except (JsonFormError, ChainError, SettingError) as exc:
        raise ReviewError(f"{exc}{_made_by(data)}") from exc
    return review


def _made_by(data: Mapping[Any, Any]) -> str:
    made_by = str(data.get("hcc", ""))[:40]
    return "" if made_by in ("", VERSION) else f" (written by hcc {made_by}, this is {VERSION})"
