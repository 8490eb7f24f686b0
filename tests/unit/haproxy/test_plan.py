from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.capabilities import Capabilities, Version, capabilities
from hcc.haproxy.plan import (
    Actual,
    AddServer,
    DeleteServer,
    Install,
    Operation,
    Plan,
    Reload,
    SetCa,
    SetCertificate,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    WriteConfig,
    plan,
)
from hcc.haproxy.render import Rendered, render
from hcc.mesh.snapshot import Endpoint, Health
from tests.builders import V2_6, V2_8, certificates, endpoint, result, upstream, upstream_state
from tests.fakes import changed, loaded

V2_2, V2_4 = capabilities(Version(2, 2)), capabilities(Version(2, 4))


def running(rendered: Rendered) -> Actual:
    """What HAProxy is right after a start with that configuration."""
    return loaded(Actual(), rendered, pid=1)


def applied(steps: Plan, actual: Actual) -> Actual:
    """What HAProxy is after a plan, by the meaning of its operations; a start reads what is on disk."""
    for operation in steps.operations:
        actual = running(operation.rendered) if isinstance(operation, Install | Reload) else changed(actual, operation)
    return actual


def wanted(
    *endpoints: Endpoint,
    port: int = 9191,
    fingerprint: str = "A" * 40,
    ca: str = "C" * 40,
    pem: str = "pem",
    version: Capabilities = V2_6,
) -> Rendered:
    files = certificates(fingerprint=fingerprint, ca_fingerprints=(ca,), pem=pem)
    return render(result(upstream_state(upstream(port=port), endpoints), certificates_=files).desired, version)


def kinds(steps: Plan) -> list[type[Operation]]:
    return [type(operation) for operation in steps.operations]


def test_nothing_runs_and_nothing_is_on_disk_so_the_file_is_installed() -> None:
    assert kinds(plan(wanted(), Actual())) == [Install]


def test_nothing_runs_but_the_file_is_there_so_nothing_is_left_to_do() -> None:
    rendered = wanted()
    assert not plan(rendered, Actual(config=rendered.config, files=rendered.files))


def test_what_runs_as_wanted_needs_nothing() -> None:
    assert plan(wanted(endpoint()), running(wanted(endpoint()))) == Plan()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [endpoint()], [AddServer]),
        ([endpoint()], [], [DeleteServer]),
        ([endpoint()], [endpoint(weight=5)], [SetServerWeight]),
        ([endpoint()], [endpoint(health=Health.CRITICAL)], [SetServerState]),
        ([endpoint(health=Health.CRITICAL)], [endpoint()], [SetServerState]),
        (
            [endpoint("10.0.0.1"), endpoint("10.0.0.2"), endpoint("10.0.0.3")],
            [endpoint("10.0.0.2", weight=3), endpoint("10.0.0.3", health=Health.CRITICAL), endpoint("10.0.0.4")],
            [AddServer, SetServerWeight, SetServerState, DeleteServer],
        ),
    ],
)
def test_endpoints_are_followed_at_run_time_and_the_file_after_them(
    before: list[Endpoint], after: list[Endpoint], expected: list[type[Operation]]
) -> None:
    steps = plan(wanted(*after), running(wanted(*before)))
    assert kinds(steps) == [*expected, WriteConfig]
    assert steps.reasons == ("servers differ from what runs", "the file on disk differs")


def test_roots_go_before_the_leaf_and_neither_reloads() -> None:
    steps = plan(wanted(fingerprint="B" * 40, ca="D" * 40, version=V2_8), running(wanted(version=V2_8)))
    assert kinds(steps) == [SetCa, SetCertificate]


def test_where_roots_cannot_be_replaced_safely_they_come_by_a_reload() -> None:
    steps = plan(wanted(ca="D" * 40), running(wanted()))
    assert kinds(steps) == [Reload]


@pytest.mark.parametrize(("version", "expected"), [(V2_6, [SetCertificate, Reload]), (V2_2, [Reload])])
def test_what_cannot_be_replaced_at_run_time_comes_with_a_reload(
    version: Capabilities, expected: list[type[Operation]]
) -> None:
    new = wanted(fingerprint="B" * 40, ca="D" * 40, version=version)
    assert kinds(plan(new, running(wanted(version=version)))) == expected


def test_a_change_of_structure_reloads_and_leaves_servers_to_the_reload() -> None:
    steps = plan(wanted(endpoint(), port=9999, fingerprint="B" * 40), running(wanted()))
    assert kinds(steps) == [SetCertificate, Reload]
    assert steps.reloads


def test_a_foreign_configuration_is_replaced() -> None:
    assert kinds(plan(wanted(), replace(running(wanted()), structure=""))) == [Reload]


def test_without_reloads_endpoints_and_certificates_are_still_followed() -> None:
    new = wanted(endpoint(), fingerprint="B" * 40)
    other = replace(running(wanted()), structure="something else")
    assert kinds(plan(new, other, may_reload=False)) == [SetCertificate, AddServer]
    assert not plan(new, Actual(), may_reload=False)


def test_a_backend_that_does_not_run_gets_no_servers() -> None:
    other = replace(running(wanted()), structure="something else", servers=())
    assert not plan(wanted(endpoint()), other, may_reload=False)


def test_a_certificate_too_long_for_the_socket_comes_with_a_reload() -> None:
    steps = plan(wanted(fingerprint="B" * 40, pem="x" * 16_000), running(wanted()))
    assert kinds(steps) == [Reload]
    assert "too long" in steps.reasons[0]


def test_a_moved_server_is_moved_back() -> None:
    actual = running(wanted(endpoint()))
    moved = replace(actual.servers[0][1][0], address="10.9.9.9")
    steps = plan(wanted(endpoint()), replace(actual, servers=((actual.servers[0][0], (moved,)),)))
    assert kinds(steps) == [SetServerAddress]


def test_where_servers_are_fixed_weights_and_states_change_at_run_time() -> None:
    def old(weight: int) -> Rendered:
        return render(result(upstream_state(endpoints=[endpoint(weight=weight)])).desired, V2_4)

    assert kinds(plan(old(2), running(old(1)))) == [SetServerWeight, WriteConfig]


def test_a_plan_can_be_printed_and_shows_no_key() -> None:
    steps = plan(wanted(endpoint(), fingerprint="B" * 40, pem="PRIVATE"), running(wanted()))
    assert steps.describe() == (
        f"set certificate /run/hcc/leaf.pem to {'B' * 40}",
        "add server up:web:9191:to/10.0.0.1:21000 weight 1",
        "write the configuration file",
    )
    assert "PRIVATE" not in repr(steps)


addresses = st.sampled_from([f"10.0.0.{n}" for n in range(1, 5)] + ["::1"])
endpoints = st.builds(
    endpoint, addresses, st.integers(1, 2), weight=st.integers(0, 600), health=st.sampled_from(Health)
)
versions = st.sampled_from([Version(2, 2), Version(2, 4), Version(2, 6), Version(2, 8), Version(3, 4)])


@st.composite
def configurations(draw: st.DrawFn, version: Capabilities) -> Rendered:
    states = [
        upstream_state(upstream(name, port), draw(st.lists(endpoints, max_size=4)), protocol=protocol)
        for name, port, protocol in draw(
            st.sets(st.tuples(st.sampled_from("ab"), st.just(1), st.sampled_from(["tcp", "http"])), max_size=2)
        )
    ]
    files = certificates(
        fingerprint=draw(st.sampled_from("AB")) * 40, ca_fingerprints=(draw(st.sampled_from("CD")) * 40,)
    )
    return render(result(*states, certificates_=files).desired, version)


@given(st.data())
def test_planning_after_applying_gives_an_empty_plan(data: st.DataObject) -> None:
    version = capabilities(data.draw(versions))
    before, after = data.draw(configurations(version)), data.draw(configurations(version))
    start = data.draw(st.sampled_from([Actual(), running(before)]))
    steps = plan(after, start)
    assert plan(after, applied(steps, start)) == Plan()
    assert plan(after, start) == steps
    assert sum(isinstance(step, Install | Reload | WriteConfig) for step in steps.operations) <= 1
