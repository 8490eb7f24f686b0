"""Whatever happens between two operations, HAProxy ends up with what is wanted: on the simulated one of `tests.fakes`.

`tests/integration/test_control_contract.py` holds that against real ones.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hcc.haproxy.brake import braked
from hcc.haproxy.capabilities import Feature, Version, capabilities
from hcc.haproxy.model import Desired, Listening, Server
from hcc.haproxy.plan import Actual, Install, Plan, Reload, WriteConfig, changes, fits_what_runs, plan
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.slots import is_spare
from hcc.mesh.snapshot import Endpoint, Health, UpstreamState
from tests.builders import certificates, endpoint, result, upstream, upstream_state
from tests.fakes import FakeControl, loaded

# Slots, with and without what each brought; servers that come and go, with and without CAs.
versions = st.sampled_from([Version(2, 0), Version(2, 2), Version(2, 4), Version(2, 6), Version(2, 8), Version(3, 4)])
addresses = st.sampled_from([f"10.0.0.{n}" for n in range(1, 7)])
endpoints = st.builds(endpoint, addresses, weight=st.integers(0, 3), health=st.sampled_from(Health))
steps = st.integers(0, 6)


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    names = draw(st.sets(st.sampled_from("ab"), max_size=2))
    states = [
        _state(upstream_state(upstream(name, 9000 + ord(name)), _endpoints(draw)), draw) for name in sorted(names)
    ]
    files = certificates(
        fingerprint=draw(st.sampled_from("AB")) * 40, ca_fingerprints=(draw(st.sampled_from("CD")) * 40,)
    )
    wanted = result(*states, certificates_=files).desired
    assert wanted.app is not None
    callers = tuple(sorted(draw(st.sets(st.sampled_from(["x:dc1", "y:dc1"])))))
    return replace(wanted, app=replace(wanted.app, callers=callers))


def _state(state: UpstreamState, draw: st.DrawFn) -> UpstreamState:
    """As it is, or not known yet."""
    known: bool = draw(st.booleans())
    return replace(state, targets=tuple(replace(one, known=known) for one in state.targets))


def _endpoints(draw: st.DrawFn) -> list[Endpoint]:
    # One at an address, as of two the better one counts.
    return draw(st.lists(endpoints, max_size=5, unique_by=lambda one: one.address))


class Sidecar(RuleBasedStateMachine):
    """hcc and HAProxy, either of which may die at any moment, and an operator at HAProxy's socket."""

    @initialize(version=versions, wish=wishes())
    def begin(self, version: Version, wish: Desired) -> None:
        self.control = FakeControl(capabilities(version))
        self.disk: Rendered | None = None
        self.wish = wish

    @rule(wish=wishes())
    def consul_says(self, wish: Desired) -> None:
        self.wish = wish

    @rule(done=steps)
    def hcc_follows_at_a_glance(self, done: int) -> None:
        """And may die after some of it."""
        actual = self.control.glance()
        if actual is None:
            return
        rendered = self._rendered(actual)
        if fits_what_runs(rendered, actual):
            self._do(changes(rendered, actual), done)

    @rule(done=steps)
    def hcc_reads_all_back(self, done: int) -> None:
        """And may die after some of it."""
        self._do(self._planned()[1], done)

    @rule()
    def hcc_starts_anew(self) -> None:
        self.control.known = None

    @rule()
    def haproxy_starts_anew(self) -> None:
        if self.disk is not None:
            actual = self.control.actual
            self.control.actual = loaded(actual, self.disk, actual.pid + 1)

    @rule(busy=st.frozensets(st.sampled_from(["s1", "s2", "10.0.0.1:21000", "x:dc1"])))
    def connections_stay(self, busy: frozenset[str]) -> None:
        self.control.busy = busy

    @precondition(lambda self: self.control.actual.running)
    @rule(data=st.data())
    def somebody_changes_a_server(self, data: st.DataObject) -> None:
        actual = self.control.actual
        backends = [(name, servers) for name, servers in actual.servers if servers]
        name, servers = data.draw(st.sampled_from(backends))
        one = data.draw(st.sampled_from(servers))
        other = data.draw(st.sampled_from([replace(one, weight=77), replace(one, enabled=not one.enabled)]))
        left = tuple(sorted((*(server for server in servers if server != one), other)))
        self.control.actual = replace(actual, servers=_put(actual, name, left))

    @precondition(lambda self: self.control.actual.running)
    @rule(state=st.sampled_from(Listening), limit=st.sampled_from([3, 8000]))
    def somebody_changes_the_listeners(self, state: Listening, limit: int) -> None:
        actual = self.control.actual
        listeners = tuple(replace(one, state=state, max_connections=limit) for one in actual.listeners)
        self.control.actual = replace(actual, listeners=listeners, max_connections=limit)

    @precondition(lambda self: self.control.actual.running)
    @rule()
    def somebody_changes_what_tls_goes_by(self) -> None:
        """As far as that can be seen; certificates are a matter of structure where it cannot."""
        actual, able = self.control.actual, self.control.capabilities.has
        if able(Feature.SERVER_CERT_UPDATE):
            actual = replace(actual, certificates=tuple((name, "E" * 40) for name, _ in actual.certificates))
        if able(Feature.CA_UPDATE):
            actual = replace(actual, ca_files=tuple((name, frozenset(("F" * 40,))) for name, _ in actual.ca_files))
        self.control.actual = replace(actual, ticket_keys="somebody's" if actual.ticket_keys else "")

    @rule()
    def in_the_end_all_is_as_wanted(self) -> None:
        self.control.busy = frozenset()
        self._do(self._planned()[1], None)
        if not self.control.actual.running:
            self.haproxy_starts_anew()
        # One more: what waited for connections, and what HAProxy started with was the file of before.
        self._do(self._planned()[1], None)
        rendered, left = self._planned()
        assert left == Plan(), left.describe()
        assert self._planned()[1] == left
        self._is_as_wanted(rendered)

    def teardown(self) -> None:
        """Hypothesis leaves rules out of most of its runs, the end of all too."""
        if hasattr(self, "control"):
            self.in_the_end_all_is_as_wanted()

    def _is_as_wanted(self, rendered: Rendered) -> None:
        actual = self.control.actual
        assert actual.config == rendered.config
        running = dict(actual.servers)
        for backend in self.wish.backends:
            if backend.known:
                found, wanted = _serving(running[backend.name]), _serving(backend.servers)
                assert wanted <= found
                # Where a slot keeps its connections (before 2.2) it keeps the address of who left, out of service.
                assert not [one for one in found - wanted if one[3] or rendered.frees_slots]
        assert {one.state for one in actual.listeners} <= {Listening.OPEN}
        self._callers_and_certificates_are_as_wanted(rendered)
        if self.control.glance() is not None:
            assert not changes(rendered, self.control.actual)

    def _callers_and_certificates_are_as_wanted(self, rendered: Rendered) -> None:
        actual, wish = self.control.actual, self.wish
        assert wish.app is not None
        lines = {one.name for one in dict(actual.servers)[wish.app.name]}
        assert lines == {wish.app.name, *(wish.app.callers if rendered.caller_lines else ())}
        assert dict(actual.certificates) == {file.name: file.fingerprint for file in wish.certificates}
        assert dict(actual.ca_files) == {file.name: file.fingerprints for file in wish.ca_files}
        assert wish.ticket_keys is not None
        assert actual.ticket_keys == actual.stored_ticket_keys == wish.ticket_keys.digest

    def _rendered(self, actual: Actual) -> Rendered:
        return render(braked(self.wish, actual.servers), self.control.capabilities, actual.servers)

    def _planned(self) -> tuple[Rendered, Plan]:
        rendered = self._rendered(self.control.actual)
        made = plan(rendered, self.control.read_actual(rendered))
        assert made == plan(rendered, self.control.actual), "the same from the same"
        assert sum(isinstance(one, Install | Reload | WriteConfig) for one in made.operations) <= 1
        return rendered, made

    def _do(self, made: Plan, most: int | None) -> None:
        """The plan, or its beginning and then hcc is dead."""
        dies = most is not None and most < len(made.operations)
        part = Plan(made.operations[:most] if dies else made.operations, made.reasons)
        if part:
            self.control.apply(part)
        for operation in part.operations:
            if isinstance(operation, Install | Reload | WriteConfig):
                self.disk = operation.rendered
        if dies:
            self.control.known = None


def _serving(servers: tuple[Server, ...]) -> set[tuple[str, int, int, bool]]:
    """By address, as the name is that of a slot where there are slots; the weight of a spare one means nothing."""
    return {(one.address, one.port, one.weight, one.enabled) for one in servers if not is_spare(one)}


def _put(actual: Actual, name: str, servers: tuple[Server, ...]) -> tuple[tuple[str, tuple[Server, ...]], ...]:
    return tuple((one, servers if one == name else found) for one, found in actual.servers)


TestSidecar = Sidecar.TestCase
TestSidecar.settings = settings(max_examples=250, stateful_step_count=25)
