from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.capabilities import Capabilities, Feature, Version, capabilities
from hcc.haproxy.model import ActualListener, ActualServers, Desired, Listening
from hcc.haproxy.plan import (
    COMMAND_BYTES,
    MOST_ADDED,
    Actual,
    AddServer,
    DeleteServer,
    FreeSlot,
    Install,
    Operation,
    Plan,
    Reload,
    SetCa,
    SetCertificate,
    SetListenerLimit,
    SetProcessLimit,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
    WriteConfig,
    plan,
)
from hcc.haproxy.render import Rendered, render
from hcc.mesh.snapshot import Endpoint, Health
from tests.builders import V2_6, V2_8, certificates, endpoint, result, upstream, upstream_state
from tests.fakes import changed, loaded

V2_2 = capabilities(Version(2, 2))
# Of a certificate that no socket takes.
LONG = "x" * 1_000_000


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
    ca_pem: str = "pem",
    version: Capabilities = V2_6,
) -> Rendered:
    files = certificates(fingerprint=fingerprint, ca_fingerprints=(ca,), pem=pem, ca_pem=ca_pem)
    return render(result(upstream_state(upstream(port=port), endpoints), certificates_=files).desired, version)


def kinds(steps: Plan) -> list[type[Operation]]:
    return [type(operation) for operation in steps.operations]


def test_nothing_runs_and_nothing_is_on_disk_so_the_file_is_installed() -> None:
    assert kinds(plan(wanted(), Actual())) == [Install]


def test_nothing_runs_but_the_file_is_there_so_nothing_is_left_to_do() -> None:
    rendered = wanted()
    keys = rendered.desired.ticket_keys
    assert keys
    there = Actual(config=rendered.config, files=rendered.files, stored_ticket_keys=keys.digest)
    assert not plan(rendered, there)
    assert kinds(plan(rendered, replace(there, stored_ticket_keys=""))) == [Install]


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
        # Who may not serve yet comes after all that do.
        (
            [endpoint("10.0.0.1")],
            [endpoint("10.0.0.2", health=Health.CRITICAL), endpoint("10.0.0.3")],
            [AddServer, DeleteServer, AddServer],
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
    assert kinds(steps) == [SetCa, SetCertificate, SetTicketKeys]


def test_where_roots_cannot_be_replaced_safely_they_come_by_a_reload() -> None:
    steps = plan(wanted(ca="D" * 40), running(wanted()))
    assert kinds(steps) == [Reload]


def test_keys_of_sessions_change_with_what_the_sessions_began_with_and_not_before() -> None:
    before, leaf, ca = wanted(), wanted(fingerprint="B" * 40), wanted(ca="D" * 40)
    assert len({each.desired.ticket_keys for each in (before, leaf, ca, wanted(endpoint()))}) == 3
    stale = replace(running(leaf), ticket_keys=running(before).ticket_keys)
    assert kinds(plan(leaf, stale)) == [SetTicketKeys]


@pytest.mark.parametrize(
    ("version", "pem", "expected"),
    [(V2_8, "", [SetCa, SetCertificate, SetTicketKeys]), (V2_6, "", [SetCertificate]), (V2_8, LONG, [SetCa])],
)
def test_beside_another_change_of_structure_keys_of_sessions_do_not_wait_where_all_is_replaced_at_run_time(
    version: Capabilities, pem: str, expected: list[type[Operation]]
) -> None:
    actual = running(wanted(version=version))
    new = wanted(port=9999, fingerprint="B" * 40, ca="D" * 40, pem=pem, version=version)
    assert kinds(plan(new, actual)) == [*expected, Reload]
    assert kinds(plan(new, actual, may_reload=False)) == expected


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


def test_where_a_new_worker_is_to_take_over_no_certificate_that_is_refused_keeps_it_back() -> None:
    new = wanted(port=9999, fingerprint="B" * 40)
    steps = plan(new, running(wanted()), because="HAProxy refuses to be changed at run time")
    assert kinds(steps) == [Reload]
    assert steps.reasons == (f"structure {new.structure} is wanted, {running(wanted()).structure} runs",)


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


def test_cas_too_long_for_the_socket_come_with_a_reload() -> None:
    new, actual = wanted(ca="D" * 40, ca_pem="x" * 16_000, version=V2_8), running(wanted(version=V2_8))
    assert kinds(plan(new, actual)) == [Reload]
    assert not plan(new, actual, may_reload=False)


def test_a_moved_server_is_moved_back() -> None:
    actual = running(wanted(endpoint()))
    moved = replace(actual.servers[0][1][0], address="10.9.9.9")
    steps = plan(wanted(endpoint()), replace(actual, servers=((actual.servers[0][0], (moved,)),)))
    assert kinds(steps) == [SetServerAddress]


def test_very_many_new_servers_come_by_one_reload_and_not_so_many_at_run_time() -> None:
    few = [endpoint(f"10.0.{n // 250}.{n % 250}") for n in range(MOST_ADDED)]
    assert kinds(plan(wanted(*few), running(wanted()))) == [*([AddServer] * MOST_ADDED), WriteConfig]
    more = wanted(*few, endpoint("10.9.9.9"))
    steps = plan(more, running(wanted()))
    assert kinds(steps) == [Reload]
    assert not plan(more, applied(steps, running(wanted())))
    assert len(plan(more, running(wanted()), may_reload=False).operations) > MOST_ADDED
    # To leave takes no reload.
    assert set(kinds(plan(wanted(), running(more)))) == {DeleteServer, WriteConfig}


def test_a_certificate_that_just_fits_into_the_socket_is_set_and_one_byte_more_takes_a_reload() -> None:
    most = wanted().payload_bytes - COMMAND_BYTES
    assert SetCertificate in kinds(plan(wanted(fingerprint="B" * 40, pem="x" * most), running(wanted())))
    assert kinds(plan(wanted(fingerprint="B" * 40, pem="x" * (most + 1)), running(wanted()))) == [Reload]


def test_limits_are_put_back_to_what_they_were_at_the_start_and_no_further() -> None:
    rendered = wanted()
    actual = running(rendered)
    # The system gives the process less than was asked for, and so to listeners without a limit of their own.
    less = [replace(one, max_connections=actual.most_connections - 1) for one in actual.listeners]
    cut = replace(
        actual,
        max_connections=actual.most_connections - 1,
        most_connections=actual.most_connections - 1,
        listeners=tuple(less),
    )
    assert not plan(rendered, cut)
    steps = plan(rendered, replace(cut, max_connections=1, listeners=(replace(less[0], max_connections=2), *less[1:])))
    assert steps.operations == (
        SetProcessLimit(cut.most_connections),
        SetListenerLimit(less[0].name, actual.most_connections),
    )


def test_a_listener_that_is_not_ours_is_left_alone() -> None:
    actual = running(wanted())
    theirs = ActualListener("theirs", Listening.PAUSED, 1)
    assert not plan(wanted(), replace(actual, listeners=(*actual.listeners, theirs)))


def test_a_side_file_that_is_gone_is_written_again() -> None:
    actual = running(wanted())
    assert actual.files
    assert kinds(plan(wanted(), replace(actual, files=()))) == [WriteConfig]


def slots(
    *endpoints: Endpoint, running_: ActualServers = (), version: Capabilities = V2_2, protocol: str = "tcp"
) -> Rendered:
    return render(result(upstream_state(endpoints=endpoints, protocol=protocol)).desired, version, running_)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [endpoint()], [SetServerAddress, SetServerState]),
        ([], [endpoint(weight=5)], [SetServerAddress, SetServerWeight, SetServerState]),
        ([endpoint()], [], [FreeSlot]),
        ([endpoint()], [endpoint(weight=5)], [SetServerWeight]),
        ([endpoint()], [endpoint(health=Health.CRITICAL)], [SetServerState]),
        ([endpoint("10.0.0.1")], [endpoint("10.0.0.2")], [SetServerAddress, SetServerState, FreeSlot]),
    ],
)
def test_where_servers_are_in_slots_endpoints_are_followed_at_run_time_too(
    before: list[Endpoint], after: list[Endpoint], expected: list[type[Operation]]
) -> None:
    actual = running(slots(*before))
    steps = plan(slots(*after, running_=actual.servers), actual)
    assert kinds(steps) == [*expected, WriteConfig]


def test_who_comes_into_service_does_so_before_another_leaves_it() -> None:
    actual = running(slots(endpoint("10.0.0.1"), endpoint("10.0.0.2", health=Health.CRITICAL)))
    swapped = slots(endpoint("10.0.0.1", health=Health.CRITICAL), endpoint("10.0.0.2"), running_=actual.servers)
    states = [step for step in plan(swapped, actual).operations if isinstance(step, SetServerState)]
    assert [step.ready for step in states] == [True, False]


def test_without_a_spare_slot_a_reload_brings_more_and_a_refused_one_leaves_who_serves_served() -> None:
    actual = running(slots(*(endpoint(f"10.0.0.{n}") for n in range(1, 4))))
    more = [endpoint(f"10.0.0.{n}") for n in range(1, 4)]
    more += [endpoint("10.0.0.4", health=Health.CRITICAL), endpoint("10.0.0.5")]
    wanted_ = slots(*more, running_=actual.servers)
    assert kinds(plan(wanted_, actual)) == [Reload]
    steps = plan(wanted_, actual, may_reload=False).operations
    assert [step.address for step in steps if isinstance(step, SetServerAddress)] == ["10.0.0.5"]


def test_before_2_2_a_slot_that_an_http_endpoint_left_waits_for_a_reload() -> None:
    v2_0 = capabilities(Version(2, 0))
    actual = running(slots(endpoint("10.0.0.1"), version=v2_0, protocol="http"))
    after = slots(endpoint("10.0.0.2"), running_=actual.servers, version=v2_0, protocol="http")
    steps = plan(after, actual)
    assert kinds(steps) == [SetServerAddress, SetServerState, SetServerState, WriteConfig]
    assert not plan(after, applied(steps, actual))


def test_a_plan_can_be_printed_and_shows_no_key() -> None:
    steps = plan(wanted(endpoint(), fingerprint="B" * 40, pem="PRIVATE"), running(wanted()))
    assert steps.describe() == (
        f"set certificate /run/hcc/leaf.pem to {'B' * 40}",
        "set ticket keys /run/hcc/tickets.keys",
        "add server up:web:9191:to/10.0.0.1:21000 weight 1",
        "write the configuration file",
    )
    assert "PRIVATE" not in repr(steps)
    keys = wanted(fingerprint="B" * 40).desired.ticket_keys
    assert keys
    assert not [key for key in keys.keys if key.reveal() in repr(steps)]


addresses = st.sampled_from([f"10.0.0.{n}" for n in range(1, 5)] + ["::1"])
endpoints = st.builds(
    endpoint, addresses, st.integers(1, 2), weight=st.integers(0, 600), health=st.sampled_from(Health)
)
versions = st.sampled_from([Version(2, 0), Version(2, 2), Version(2, 4), Version(2, 6), Version(2, 8), Version(3, 4)])


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    states = [
        upstream_state(upstream(name, port), draw(st.lists(endpoints, max_size=6)), protocol=protocol)
        for name, port, protocol in draw(
            st.sets(st.tuples(st.sampled_from("ab"), st.just(1), st.sampled_from(["tcp", "http"])), max_size=2)
        )
    ]
    files = certificates(
        fingerprint=draw(st.sampled_from("AB")) * 40, ca_fingerprints=(draw(st.sampled_from("CD")) * 40,)
    )
    return result(*states, certificates_=files).desired


def on(actual: Actual, wish: Desired, version: Capabilities) -> Rendered:
    """That, rendered for what runs."""
    return render(wish, version, () if version.has(Feature.DYNAMIC_SERVERS) else actual.servers)


@given(st.data())
def test_planning_after_applying_gives_an_empty_plan(data: st.DataObject) -> None:
    version = capabilities(data.draw(versions))
    start = data.draw(st.sampled_from([Actual(), running(on(Actual(), data.draw(wishes()), version))]))
    after = on(start, data.draw(wishes()), version)
    steps = plan(after, start)
    assert plan(after, applied(steps, start)) == Plan()
    assert plan(after, start) == steps
    assert sum(isinstance(step, Install | Reload | WriteConfig) for step in steps.operations) <= 1


@given(st.data())
def test_after_a_crash_between_two_operations_the_next_plan_brings_about_the_rest(data: st.DataObject) -> None:
    version = capabilities(data.draw(versions))
    before, wish = running(on(Actual(), data.draw(wishes()), version)), data.draw(wishes())
    steps = plan(on(before, wish, version), before)
    done = Plan(steps.operations[: data.draw(st.integers(0, len(steps.operations)))])
    left = applied(done, before)
    again = on(left, wish, version)
    assert plan(again, applied(plan(again, left), left)) == Plan()
