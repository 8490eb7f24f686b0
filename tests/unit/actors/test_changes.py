from dataclasses import replace

from hcc.actors.changes import Changes, noted
from hcc.mesh.snapshot import Endpoint, Health, Snapshot
from tests.builders import endpoint, snapshot, upstream, upstream_state

OLD, NEW = 100.0, 200.0
WEB = upstream("web").key


def mesh(*endpoints: Endpoint) -> Snapshot:
    return snapshot(upstream_state(endpoints=endpoints))


def test_what_consul_said_first_has_not_changed() -> None:
    assert noted({}, None, mesh(endpoint()), NEW) == {}
    unknown = replace(mesh(), upstreams=(replace(mesh().upstreams[0], chain=None, targets=()),))
    assert noted({}, unknown, mesh(endpoint()), NEW) == {}


def test_an_endpoint_that_comes_goes_down_or_is_weighted_otherwise_has_changed_now() -> None:
    before = mesh(endpoint("10.0.0.1"), endpoint("10.0.0.2"), endpoint("10.0.0.3"))
    after = mesh(
        endpoint("10.0.0.1"),
        endpoint("10.0.0.2", health=Health.CRITICAL),
        endpoint("10.0.0.3", weight=9),
        endpoint("10.0.0.4"),
    )

    assert noted({}, before, after, NEW) == {
        WEB: {("10.0.0.2", 21000): NEW, ("10.0.0.3", 21000): NEW, ("10.0.0.4", 21000): NEW}
    }


def test_an_earlier_change_is_kept_until_the_next_one_and_forgotten_with_its_endpoint() -> None:
    earlier: Changes = {WEB: {("10.0.0.1", 21000): OLD, ("10.0.0.2", 21000): OLD}}
    both = mesh(endpoint("10.0.0.1"), endpoint("10.0.0.2"))

    assert noted(earlier, both, both, NEW) == earlier
    assert noted(earlier, both, mesh(endpoint("10.0.0.1")), NEW) == {WEB: {("10.0.0.1", 21000): OLD}}
