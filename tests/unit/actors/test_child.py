"""The bounds that follow from a child's specification."""

from hcc.actors.actor import Actor
from hcc.actors.child import ChildSpec


def group(*children: ChildSpec, shutdown_s: float = 5.0) -> ChildSpec:
    return ChildSpec("group", Actor, {"children": children}, shutdown_s=shutdown_s)


def leaf(shutdown_s: float) -> ChildSpec:
    return ChildSpec("leaf", Actor, shutdown_s=shutdown_s, heartbeat_s=3.0)


def test_a_single_actor_has_the_bounds_it_was_given() -> None:
    assert leaf(7.0).stop_bound_s == 7.0
    assert leaf(7.0).beat_bound_s == 3.0


def test_a_group_may_take_as_long_as_its_children_one_after_the_other() -> None:
    inner = group(leaf(4.0), leaf(5.0))
    assert inner.stop_bound_s == 10.0
    assert group(inner, leaf(20.0)).stop_bound_s == 31.0
    assert group(leaf(1.0), shutdown_s=60.0).stop_bound_s == 60.0


def test_a_group_that_stops_its_children_is_not_hung() -> None:
    assert group(leaf(30.0)).beat_bound_s == 31.0
    assert group(leaf(1.0)).beat_bound_s == 10.0
