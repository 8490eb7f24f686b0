"""HAProxy and the Data Plane API: found, able, of which version. Runs both programs to ask them."""

from __future__ import annotations

from collections.abc import Iterator

from hcc.app.control import choose_control
from hcc.diagnosis.finding import Finding, failed, ok, skipped, warning
from hcc.errors import HccError
from hcc.haproxy.binary import find_haproxy, probe
from hcc.haproxy.capabilities import OLDEST, Build
from hcc.settings import RunSettings


def check_haproxy(settings: RunSettings) -> Iterator[Finding]:
    """The findings about HAProxy and what drives it."""
    try:
        found = find_haproxy(settings.haproxy)
    except HccError as exc:
        yield failed("program", str(exc), "install HAProxy, or name one with --haproxy")
        return
    yield ok("program", f"{found.binary}, from {found.origin}")
    try:
        build = probe(found.binary)
    except HccError as exc:
        yield failed("version", str(exc), f"install a HAProxy {OLDEST.branch} or newer with OpenSSL and SPOE")
        return
    yield ok("version", build.label())
    yield ok("features", _features(build))
    if "package" in found.origin:
        yield warning(
            "origin",
            "of a Python package, whose OpenSSL nobody patches between its releases",
            "for production, install the system's HAProxy",
        )
    yield from _check_control(settings, build)


def _features(build: Build) -> str:
    exporter = "Prometheus exporter" if "PROMEX" in build.features else "no Prometheus exporter (not needed)"
    return f"TLS, SPOE, {exporter}"


def _check_control(settings: RunSettings, build: Build) -> Iterator[Finding]:
    if settings.control == "direct":
        yield skipped("Data Plane API", "not used: HAProxy is driven over its own sockets")
        return
    try:
        choice = choose_control(settings, build)
    except HccError as exc:
        yield failed("Data Plane API", str(exc), "name one with --dataplane, or use --control direct")
        return
    yield ok("Data Plane API", choice.reason)
