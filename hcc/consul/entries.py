"""The answer to a health question read entry by entry: what an entry said before is not read again.

Of ten thousand instances Consul sends all, 15 MB of JSON, when one of them changes. To take an answer apart and to
see which entries are new takes a tenth of the time of parsing it, and only what is new is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from hcc.consul.answers import Instance
from hcc.consul.fields import fields
from hcc.consul.instances import in_order, instance, instances

# How an answer begins, where it is cut, how it ends, and an entry made of what is between. So Consul writes, and so in
# development mode. No text can hold a cut, as quotes and line ends are escaped in it.
_FORMS = (
    (b'[{"Node":{', b'},{"Node":{', b"}]", b'{"Node":{%b}'),
    (
        b'[\n    {\n        "Node": {',
        b'\n    },\n    {\n        "Node": {',
        b"\n    }\n]",
        b'{"Node": {%b}',
    ),
)
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """What one answer said.

    Args:
        instances: as `hcc.consul.instances.instances` gives them; those that were there before are the same objects.
        entries: what each entry stands for, by the digest of its text; None where it is left out.
    """

    instances: tuple[Instance, ...] = ()
    entries: Mapping[bytes, Instance | None] = field(default_factory=dict)


def read(body: bytes, before: Reading, *, wan: bool) -> Reading:
    """The reading of an answer after that of an earlier one to the same question.

    Args:
        body: JSON, a list of `{Node, Service, Checks}`, or null.
        before: an empty one at first.
        wan: take the addresses meant for callers of another datacenter.

    Raises:
        ConsulAnswerError: another shape.
        ValueError: it is not JSON.
    """
    entries = _entries(_entry_texts(body), before, wan)
    if not entries:
        return Reading(instances(json.loads(body), wan=wan))
    return Reading(_in_order(entries), entries)


def _entries(texts: Iterable[bytes], before: Reading, wan: bool) -> dict[bytes, Instance | None]:
    """What each entry stands for; nothing when the answer was cut at a wrong place, or is not JSON."""
    known, entries = before.entries, dict[bytes, Instance | None]()
    for place, text in enumerate(texts):
        digest = blake2b(text, digest_size=_DIGEST_BYTES).digest()
        if digest in known:
            entries[digest] = known[digest]
            continue
        try:
            item = json.loads(text)
        except ValueError:
            return {}
        entries[digest] = instance(fields(item, f"[{place}]"), wan)
    return entries


def _entry_texts(body: bytes) -> tuple[bytes, ...]:
    """The texts of the entries if the answer looks as Consul writes it. They are right if each is JSON by itself."""
    body = body.strip()
    for opening, cut, closing, entry in _FORMS:
        if body.startswith(opening) and body.endswith(closing):
            return tuple(entry % part for part in body[len(opening) : -len(closing)].split(cut))
    return ()


def _in_order(entries: Mapping[bytes, Instance | None]) -> tuple[Instance, ...]:
    found = sorted((one for one in entries.values() if one is not None), key=in_order)
    # Of two that say the same, one.
    return tuple(found) if len(set(map(in_order, found))) == len(found) else tuple(dict.fromkeys(found))
