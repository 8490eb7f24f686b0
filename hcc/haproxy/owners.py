"""Whose a row of HAProxy's statistics, or a backend, is: pure, by the names that `hcc.haproxy.names` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hcc.haproxy.names import APP, backend_name, upstream_name
from hcc.haproxy.stats import Row
from hcc.mesh.chain import start_target
from hcc.mesh.naming import joined, parts
from hcc.mesh.snapshot import Leg, Protocol, Snapshot, UpstreamState


class Owners:
    """A look-up made once for a set of upstreams."""

    def __init__(self, upstreams: Iterable[UpstreamState]) -> None:
        self._by_name: dict[str, UpstreamState] = {}
        self._legs: dict[str, dict[str, Leg]] = {}
        for state in upstreams:
            self._by_name[upstream_name(state.upstream)] = state
            self._by_name[backend_name(state.upstream)] = state

    def of(self, proxy: str) -> UpstreamState | None:
        """The owner of the frontend or backend `proxy`, also of the backend of one leg; None when it has none."""
        found = self._by_name.get(proxy)
        # A leg's backend has the name of the upstream's, and one part more.
        return found or self._by_name.get(joined(*parts(proxy)[:-1]))

    def legs(self, backend: str) -> Mapping[str, Leg]:
        """Those whose endpoints a backend may have, by the name of the backend that each is to have: its own leg.

        All of the upstream's where it is no leg's any more, in a worker that stops or while requests go as before.
        """
        if backend not in self._legs:
            owner = self.of(backend)
            legs = {backend_name(owner.upstream, leg.name): leg for leg in owner.legs} if owner else {}
            self._legs[backend] = {backend: legs[backend]} if backend in legs else legs
        return self._legs[backend]


def caller_line(row: Row) -> str:
    """The name, by `hcc.mesh.caller`, of the caller whose connections a server line takes; empty for any other row."""
    return row.server if row.proxy == APP and row.server not in ("", APP) else ""


def caller_of(row: Row) -> str:
    """The service whose connections a server line takes; empty for any other row."""
    return parts(caller_line(row))[0]


def protocol_of(state: UpstreamState) -> Protocol:
    """What an upstream speaks: its chain says, for a prepared query its registration."""
    if state.chain is None:
        return state.upstream.protocol
    known = {protocol.value: protocol for protocol in Protocol}
    return known.get(state.chain.protocol.lower(), Protocol.TCP)


def datacenter_of(state: UpstreamState, mesh: Snapshot) -> str:
    """Where an upstream's instances are."""
    if state.chain is not None:
        return start_target(state.chain).datacenter
    return state.upstream.key.datacenter or mesh.datacenter
