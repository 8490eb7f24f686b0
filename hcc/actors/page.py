"""The status page: one HTML document made here, without script and without anything to fetch.

Every name in it may be hostile (whoever registers a service chooses it), so the template engine escapes all of it, and
the page's content security policy lets nothing run or load but our own style, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import pairwise

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from hcc.actors.status import CertificateStatus, EndpointStatus, ServerState, Status, UpstreamStatus
from hcc.mesh.snapshot import RENEWED_BY

# More endpoints of one upstream than this are in the JSON only; those in trouble come first.
MAX_ENDPOINTS = 100
SECTIONS = ("Upstreams", "Callers", "Certificates", "Plans", "Watches", "Actors", "Versions")
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True, slots=True)
class _Shown:
    """An upstream as the page has it; `kind` is the colour of its `summary`."""

    status: UpstreamStatus
    shown: tuple[EndpointStatus, ...]
    hidden: int
    summary: str
    kind: str

    @property
    def troubled(self) -> bool:
        return self.kind != "good"


def page(status: Status) -> bytes:
    """The document, in UTF-8."""
    name = status.sidecar.service_id or status.sidecar.proxy_id
    text = _template().render(
        status=status,
        name=name,
        verdict="ready" if status.readiness.ready else "not ready",
        sections=[(title.lower(), title) for title in SECTIONS],
        style=Markup(_style()),  # noqa: S704 (our own file)
        upstreams=[_shown(upstream) for upstream in status.upstreams],
        now=status.at,
    )
    # A name may hold half of a surrogate pair, which UTF-8 cannot.
    return text.encode(errors="replace")


def headers() -> tuple[tuple[str, str], ...]:
    """What goes with it."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    )


@cache
def _style() -> str:
    return resources.files("hcc.actors").joinpath("status_page.css").read_text("utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hcc.actors", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"rfc3339": _rfc3339, "span": span, "left": _left, "place": _place}
    environment.tests["expiring"] = _expiring
    return environment.get_template("status_page.html")


def _shown(upstream: UpstreamStatus) -> _Shown:
    endpoints = sorted(upstream.endpoints, key=lambda one: (one.standby, one.state is ServerState.UP))
    standby = sum(one.standby for one in endpoints)
    tried = len(endpoints) - standby
    up = sum(1 for one in endpoints if one.state is ServerState.UP)
    shown = tuple(endpoints[:MAX_ENDPOINTS])
    if not upstream.known:
        summary, kind = "not known yet", "bad"
    elif not endpoints:
        summary, kind = "no instances", "bad"
    else:
        kind = "good" if up == tried > 0 else "warn" if up else "bad"
        summary = f"{up} of {tried} up" + (f", {standby} standby" if standby else "")
    return _Shown(upstream, shown, len(endpoints) - len(shown), summary, kind)


def _place(endpoint: EndpointStatus) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{endpoint.port}"


def _expiring(one: CertificateStatus) -> bool:
    return one.seconds_left < (1 - RENEWED_BY) * (one.not_after - one.not_before)


def _rfc3339(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%FT%TZ}"


def span(seconds: float) -> str:
    """A duration for people: `3 d 4 h`, `12 min`, `7 s`, `15 ms`."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for (size, unit), (small_size, small_unit) in pairwise(_UNITS):
        if seconds >= size:
            rest = int(seconds % size // small_size)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{seconds:.0f} s"


def _left(seconds: float) -> str:
    return span(seconds) if seconds > 0 else f"expired {span(-seconds)} ago"
