"""When Consul last told otherwise about each endpoint: pure, from one snapshot to the next."""

from __future__ import annotations

from collections.abc import Mapping

from hcc.mesh.snapshot import Endpoint, Snapshot, UpstreamKey, UpstreamState

Place = tuple[str, int]
"""Address and port of an endpoint."""

Changes = Mapping[UpstreamKey, Mapping[Place, float]]
"""Unix seconds; an endpoint that has been as it is since hcc knows it is not among them."""


def noted(changes: Changes, old: Snapshot | None, new: Snapshot, now: float) -> Changes:
    """The changes after `new`: what came, went up or down or was weighted otherwise since `old` did so `now`.

    What is gone is forgotten, so this stays as large as the mesh is. An upstream that is told about for the first time
    has not changed.
    """
    before = {state.upstream.key: state for state in old.upstreams} if old else {}
    after: dict[UpstreamKey, Mapping[Place, float]] = {}
    for state in new.upstreams:
        key = state.upstream.key
        known = before.get(key)
        if known is not None and known.known:
            earlier = changes.get(key, {})
            after[key] = earlier if known.targets == state.targets else _changed(earlier, known, state, now)
    return after


def _changed(earlier: Mapping[Place, float], old: UpstreamState, new: UpstreamState, now: float) -> dict[Place, float]:
    was, are = _endpoints(old), _endpoints(new)
    gone, came = was - are, are - was
    after = dict(earlier)
    for one in gone:
        after.pop((one.address, one.port), None)
    return after | {(one.address, one.port): now for one in came}


def _endpoints(state: UpstreamState) -> set[Endpoint]:
    return {one for target in state.targets for one in target.endpoints}
