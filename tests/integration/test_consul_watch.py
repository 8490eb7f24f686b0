"""Watches against the fake agent: what is delivered, what is not, and what every fault does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from hcc.consul import fetch as consul_fetch
from hcc.consul.abilities import Lack
from hcc.consul.answers import Instance, IntentionList, MeshEntry, Registration
from hcc.consul.client import ConsulClient
from hcc.consul.environment import consul_settings
from hcc.consul.errors import (
    ConsulAnswerError,
    ConsulError,
    ConsulNotFoundError,
    ConsulPermissionError,
    ConsulStatusError,
    ConsulUnavailableError,
)
from hcc.consul.held_chains import HeldChains
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    QueryWatch,
    RootsWatch,
    ServiceWatch,
    WatchKey,
)
from hcc.consul.watch import Watcher, WatchEvent, WatchFailed, WatchValue
from hcc.mesh.chain import Chain
from hcc.mesh.intentions import Action
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Health, Leaf, Roots
from tests.consul_http import service_with_sidecar
from tests.fake_consul import TRUST_DOMAIN, FakeConsul, Fault

pytestmark = pytest.mark.integration
T = TypeVar("T")
DEADLINE_S = 10.0
WEB = service_with_sidecar(
    "web", 8181, sidecar_port=21000, upstreams=({"DestinationName": "db", "LocalBindPort": 9191},)
)
DB = service_with_sidecar("db", 8182, sidecar_port=21001)
ENDPOINTS = EndpointsWatch("db", "dc1")
INTENTIONS = IntentionsWatch("web", TRUST_DOMAIN, "dc1")


class Observed:
    """One running watch and what it delivered."""

    def __init__(self, fake: FakeConsul, key: WatchKey, wait_s: float, **edges: Any) -> None:
        self.events: queue.Queue[WatchEvent] = queue.Queue()
        self.token: Secret | None = None
        settings = consul_settings(http_addr=fake.http_addr)
        self.watcher = Watcher(
            key,
            lambda: ConsulClient(settings, lambda: self.token, wait_s=wait_s),
            lambda _, event: self.events.put(event),
            **({"jitter": lambda: 0.1} | edges),
        )
        self.watcher.start()

    def next(self) -> WatchEvent:
        return self.events.get(timeout=DEADLINE_S)

    def value(self, kind: type[T]) -> T:
        """The next event, which must be a value of this kind."""
        event = self.next()
        assert isinstance(event, WatchValue), event
        assert isinstance(event.value, kind), event
        return event.value

    def instances(self) -> tuple[Instance, ...]:
        found: tuple[Instance, ...] = self.value(tuple)
        return found

    def failure(self, kind: type[Exception]) -> WatchFailed:
        event = self.next()
        assert isinstance(event, WatchFailed), event
        assert isinstance(event.error, kind), event
        return event

    def recovery(self) -> WatchValue:
        """The next value, after any number of further failures."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            event = self.next()
            if isinstance(event, WatchValue):
                return event
        raise AssertionError("no value came in time")


Watch = Callable[..., Observed]


@pytest.fixture
def fake() -> Iterator[FakeConsul]:
    with FakeConsul() as running:
        running.register(WEB)
        running.register(DB)
        yield running


@pytest.fixture
def watch(fake: FakeConsul) -> Iterator[Watch]:
    running: list[Observed] = []

    def begin(key: WatchKey, wait_s: float = 30.0, **edges: Any) -> Observed:
        running.append(Observed(fake, key, wait_s, **edges))
        return running[-1]

    try:
        yield begin
    finally:
        for observed in running:
            observed.watcher.stop()
        assert all(observed.watcher.join(DEADLINE_S) for observed in running)


def until(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.01)


# What is delivered.


def test_a_proxy_is_delivered_and_again_when_it_is_registered_anew(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ProxyWatch("web-sidecar-proxy"))
    assert len(observed.value(Registration).proxy.upstreams) == 1
    fake.register(service_with_sidecar("web", 8181, sidecar_port=21000))
    assert observed.value(Registration).proxy.upstreams == ()


def test_roots_and_leaf_are_delivered_when_they_rotate(fake: FakeConsul, watch: Watch) -> None:
    roots, leaf = watch(RootsWatch()), watch(LeafWatch("web"))
    assert len(roots.value(Roots).roots) == 1
    first = leaf.value(Leaf)
    fake.rotate_roots()
    fake.rotate_leaf("web")
    assert [root.id for root in roots.value(Roots).roots] == ["root-1", "root-2"]
    assert leaf.value(Leaf).cert_pem != first.cert_pem


def test_a_consul_without_mesh_entries_has_the_default_and_any_other_error_is_one(
    fake: FakeConsul, watch: Watch
) -> None:
    fake.fail("config/mesh", Fault("status", 500, "invalid config entry kind: mesh"), times=1)
    assert watch(MeshWatch()).value(MeshEntry) == MeshEntry()
    fake.fail("config/mesh", Fault("status", 500), times=1)
    assert "No cluster leader" in str(watch(MeshWatch()).failure(ConsulStatusError).error)


def test_a_chain_follows_its_service_defaults(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ChainWatch("db"))
    assert observed.value(Chain).protocol == "tcp"
    fake.put_config({"Kind": "service-defaults", "Name": "db", "Protocol": "http"})
    assert observed.value(Chain).protocol == "http"


def test_a_chain_without_a_place_is_asked_about_again_and_holds_no_connection(fake: FakeConsul, watch: Watch) -> None:
    chains = HeldChains(places=1, poll_s=0.05)
    held = watch(ChainWatch("db"), chains=chains)
    assert held.value(Chain).protocol == "tcp"
    until("the held question", lambda: fake.count("chain/db?stale=&index="))

    asked = watch(ChainWatch("web"), chains=chains)
    assert asked.value(Chain).protocol == "tcp"
    until("more questions", lambda: fake.count("chain/web?cached=") > 2)
    until("one connection", lambda: fake.connections() == 1)
    fake.put_config({"Kind": "service-defaults", "Name": "web", "Protocol": "http"})
    assert asked.value(Chain).protocol == "http"
    assert not fake.count("chain/web?stale=")

    held.watcher.stop()
    until("a question that waits, in the place that is free", lambda: fake.count("chain/web?stale=&index="))


def test_endpoints_come_go_and_fall_ill(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ENDPOINTS)
    assert [one.port for one in observed.instances()] == [21001]
    fake.register(service_with_sidecar("db", 8183, service_id="db-2", sidecar_port=21002))
    assert [one.port for one in observed.instances()] == [21001, 21002]
    fake.set_health("db-2-sidecar-check", "critical")
    assert [one.health for one in observed.instances()] == [Health.PASSING, Health.CRITICAL]
    fake.deregister("db-2")
    fake.deregister("db")
    until("an empty list", lambda: observed.instances() == ())


def test_a_prepared_query_is_executed_again_and_again(fake: FakeConsul, watch: Watch) -> None:
    fake.create_query("find-db", "db")
    observed = watch(QueryWatch("find-db", "", "dc1", 20))
    assert len(observed.instances()) == 1
    fake.set_health("db-sidecar-check", "critical")
    assert observed.instances() == ()
    assert observed.events.empty()


def test_a_list_of_intentions_comes_with_its_default(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList) == IntentionList((), True)
    fake.deny("client", "web")
    changed = observed.value(IntentionList)
    assert [one.action for one in changed.intentions] == [Action.DENY]
    assert changed.default_allow is True
    fake.set_default_policy("deny")
    assert observed.value(IntentionList).default_allow is False


def test_a_changed_list_does_not_wait_for_the_default_policy_that_is_known(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    fake.fail("connect/authorize", Fault("status", code=500), times=1)
    fake.deny("client", "web")
    changed = observed.value(IntentionList)
    assert ([one.action for one in changed.intentions], changed.default_allow) == ([Action.DENY], True)
    observed.failure(ConsulStatusError)


@pytest.mark.parametrize("everyone", [True, False])
def test_a_changed_list_is_told_though_the_default_policy_cannot_be_asked_for(
    fake: FakeConsul, watch: Watch, *, everyone: bool
) -> None:
    if everyone:
        # It hides the default policy.
        fake.deny("*", "web")
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    fake.fail("connect/authorize", Fault("status", code=500), times=1000)
    for number, source in enumerate(("client", "db"), start=1 + everyone):
        fake.deny(source, "web")
        changed = observed.recovery().value
        assert isinstance(changed, IntentionList)
        assert (len(changed.intentions), changed.default_allow) == (number, True)
        observed.failure(ConsulStatusError)
        # Now nothing is known but what was last, and it is asked anew each time.
        observed.failure(ConsulStatusError)


def test_a_list_that_leaves_more_to_the_default_policy_waits_until_that_can_be_asked_for(
    fake: FakeConsul, watch: Watch
) -> None:
    fake.deny("*", "web")
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList).default_allow is True
    fake.fail("connect/authorize", Fault("status", code=500), times=3)
    # Another one by now.
    fake.default_policy = "deny"
    fake.delete_intention("*", "web")
    for _ in range(3):
        observed.failure(ConsulStatusError)
    assert observed.value(IntentionList) == IntentionList((), False)


def test_where_the_default_policy_was_never_known_no_list_is_told_without_it(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("connect/authorize", Fault("status", code=500), times=3)
    observed = watch(INTENTIONS)
    for _ in range(3):
        observed.failure(ConsulStatusError)
    assert observed.value(IntentionList).default_allow is True


def test_what_cannot_be_asked_of_intentions_is_asked_again_within_a_second(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("intentions/match", Fault("status", code=500), times=3)
    observed = watch(INTENTIONS, jitter=lambda: 0.6)
    # Of anything else up to 2 s after the third.
    assert max(observed.failure(ConsulStatusError).retry_s for _ in range(3)) < 1.0


def test_a_default_policy_that_changed_with_the_list_is_told_right_after_it(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    fake.default_policy = "deny"  # without waking anybody, as a restarted agent does
    fake.deny("client", "web")
    assert [observed.value(IntentionList).default_allow for _ in range(2)] == [True, False]
    fake.delete_intention("client", "web")
    assert observed.value(IntentionList) == IntentionList((), False)


def test_a_default_policy_that_an_intention_hides_is_asked_for_before_the_list_is_told(
    fake: FakeConsul, watch: Watch
) -> None:
    fake.deny("*", "web")
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList).default_allow is True
    fake.default_policy = "deny"
    fake.delete_intention("*", "web")
    assert observed.value(IntentionList) == IntentionList((), False)
    fake.default_policy = "allow"
    fake.deny("*", "web")
    assert observed.value(IntentionList).default_allow is True


def test_a_match_that_does_not_block_is_replaced_by_a_watch_of_all_intentions(fake: FakeConsul, watch: Watch) -> None:
    fake.match_blocks = False
    observed = watch(INTENTIONS)
    first = observed.value(IntentionList)
    assert not first.intentions
    assert first.lacks == {Lack.BLOCKING_MATCH}
    until("a question that blocks", lambda: fake.count("connect/intentions?index=") == 1)
    fake.deny("client", "web")
    assert [one.action for one in observed.value(IntentionList).intentions] == [Action.DENY]
    fake.delete_intention("client", "web")
    assert observed.value(IntentionList).intentions == ()
    assert fake.count("agent/self") == 1


def test_where_the_list_is_forbidden_too_intentions_are_asked_for_at_intervals(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_fetch, "POLL_S", 0.1)
    fake.match_blocks = False
    fake.may_list_intentions = False
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList).lacks == {Lack.BLOCKING_INTENTIONS}
    fake.deny("client", "web")
    assert [one.action for one in observed.value(IntentionList).intentions] == [Action.DENY]


@pytest.mark.parametrize("path", ["agent/self", "config/service-intentions"])
@pytest.mark.parametrize(
    "fault", [Fault("garbage"), Fault("status", code=403, text="Permission denied"), Fault("status", code=500)]
)
def test_what_the_agent_lacks_is_no_condition_for_the_list(
    fake: FakeConsul, watch: Watch, path: str, fault: Fault
) -> None:
    fake.fail(path, fault, times=1000)
    assert watch(INTENTIONS).value(IntentionList) == IntentionList((), True)


def test_an_agent_that_can_do_more_after_its_restart_is_asked_anew(fake: FakeConsul, watch: Watch) -> None:
    fake.match_blocks = False
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    until("a question that blocks", lambda: fake.count("connect/intentions?index=") == 1)
    fake.match_blocks = True
    fake.fail("connect/intentions?index=", Fault("close"))
    observed.failure(ConsulUnavailableError)
    assert observed.value(IntentionList).lacks == set()
    until("a match that blocks", lambda: fake.count("intentions/match?by=destination&name=web&index=") == 1)


def test_where_authorize_is_forbidden_the_header_tells_the_default(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("connect/authorize", Fault("status", code=403, text="Permission denied"))
    assert watch(INTENTIONS).value(IntentionList).default_allow is True


STALE = {"Authorized": True, "Reason": "Matched L4 intention: one that is gone"}
FORBIDDEN = Fault("status", code=403, text="Permission denied")


def test_where_an_intention_answers_the_probe_the_default_is_what_the_agent_is_configured_with(
    fake: FakeConsul, watch: Watch
) -> None:
    fake.deny("*", "web")
    assert watch(INTENTIONS).value(IntentionList).default_allow is True
    assert fake.count("connect/authorize") == 1


def test_an_agent_that_is_busy_has_not_said_how_it_is_configured(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList).default_allow is True
    fake.fail("agent/self", Fault("status", code=429), times=1)
    fake.deny("*", "web")
    changed = observed.value(IntentionList)
    assert ([one.source for one in changed.intentions], changed.default_allow) == (["*"], True)
    observed.failure(ConsulStatusError)
    assert observed.value(IntentionList).default_allow is True


@pytest.mark.parametrize(("header", "expected"), [("allow", None), ("deny", False)])
def test_where_the_agent_does_not_say_how_it_is_configured_nobody_is_let_in_by_default(
    fake: FakeConsul, watch: Watch, header: str, expected: bool | None
) -> None:
    fake.fail("agent/self", FORBIDDEN, times=1000)
    fake.set_default_policy(header)
    fake.deny("*", "web")
    assert watch(INTENTIONS).value(IntentionList).default_allow is expected


def test_an_outdated_probe_is_asked_again(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("agent/self", FORBIDDEN, times=1000)
    fake.fail("connect/authorize", Fault("body", body=STALE), times=3)
    assert watch(INTENTIONS).value(IntentionList).default_allow is True
    assert fake.count("connect/authorize") == 4


def test_a_probe_that_stays_outdated_leaves_the_default_unknown_until_it_does_not(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_fetch, "UNCERTAIN_S", 0.1)
    fake.fail("agent/self", FORBIDDEN, times=1000)
    fake.fail("connect/authorize", Fault("body", body=STALE), times=8)
    observed = watch(INTENTIONS)
    assert observed.value(IntentionList).default_allow is None
    assert observed.value(IntentionList).default_allow is True


def test_failures_that_are_over_do_not_add_up_where_answers_are_polled(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_fetch, "POLL_S", 0.05)
    fake.match_blocks = False
    fake.may_list_intentions = False
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    retries = []
    for _ in range(6):
        fake.fail("connect/authorize", Fault("status", code=500))
        retries.append(observed.failure(ConsulStatusError).retry_s)
        observed.value(IntentionList)
    # Of a first failure; a sixth in a row waits up to 16 s.
    assert max(retries) <= 0.25


# What is not delivered.


def test_an_answer_that_did_not_change_is_not_delivered_and_its_watch_slows_down(
    fake: FakeConsul, watch: Watch
) -> None:
    observed = watch(ENDPOINTS)
    observed.instances()
    for _ in range(20):
        fake.touch_catalog()
        time.sleep(0.01)
    assert fake.count("health/connect/db") < 10
    assert observed.events.empty()
    fake.set_health("db-sidecar-check", "warning")
    assert observed.instances()[0].health is Health.WARNING


def test_a_held_query_that_runs_out_is_asked_again_without_news(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(RootsWatch(), wait_s=0.05)
    observed.value(Roots)
    until("a third question", lambda: fake.count("ca/roots") >= 3)
    assert observed.events.empty()


def test_nothing_is_delivered_after_stop(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ENDPOINTS)
    observed.instances()
    observed.watcher.stop()
    fake.set_health("db-sidecar-check", "critical")
    assert observed.watcher.join(DEADLINE_S)
    assert observed.events.empty()


# Indexes and hashes.


def test_the_next_question_blocks_on_the_index_of_the_last_answer(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ENDPOINTS)
    observed.instances()
    until("a blocking question", lambda: fake.count("index=12") == 1)
    assert fake.count("wait=30000ms") == 1


def test_an_index_that_goes_back_is_dropped(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(RootsWatch())
    observed.value(Roots)
    until("a blocking question", lambda: fake.count("ca/roots?index=10") == 1)
    fake.fail("ca/roots", Fault("headers", headers=(("X-Consul-Index", "3"),)))
    until("a question without index, and a new one", lambda: fake.count("ca/roots?index=10") == 2)
    targets = [path for _, path, _ in fake.requests if "ca/roots" in path]
    assert ["index" in path for path in targets] == [False, True, False, True]


def test_a_question_that_ends_early_without_news_is_not_asked_again_from_there(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(INTENTIONS)
    observed.value(IntentionList)
    until("a question that waits", lambda: fake.count("intentions/match?by=destination&name=web&index=") == 1)
    # As servers that get an older snapshot end it; from then on their indexes are smaller.
    fake.fail("intentions/match", Fault("headers"))
    until("one without an index", lambda: fake.count("intentions/match") >= 3)
    asked = [path for _, path, _ in fake.requests if "intentions/match" in path]
    assert ["index=" in path for path in asked[:3]] == [False, True, False]


def test_index_zero_never_makes_a_loop_of_questions(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("ca/roots", Fault("headers", headers=(("X-Consul-Index", "0"),)))
    watch(RootsWatch()).value(Roots)
    until("a question that blocks on 1", lambda: fake.count("ca/roots?index=1&") == 1)


def test_an_answer_without_an_index_is_asked_for_at_intervals(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("intentions/match", Fault("headers", headers=(("X-Consul-Index", ""),)), times=1)
    observed = watch(IntentionsWatch("web", TRUST_DOMAIN, "dc1"))
    observed.value(IntentionList)
    until("the next question", lambda: fake.count("intentions/match") >= 2)


def test_the_registration_is_held_by_its_hash(fake: FakeConsul, watch: Watch) -> None:
    watch(ServiceWatch("web")).next()
    until("a question with a hash", lambda: fake.count("agent/service/web?hash=") == 1)


# Faults.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("status", code=500), ConsulStatusError),
        (Fault("status", code=429, text="slow down", headers=(("Retry-After", "0"),)), ConsulStatusError),
        (Fault("status", code=503), ConsulStatusError),
        (Fault("close"), ConsulUnavailableError),
        (Fault("truncate"), ConsulUnavailableError),
        (Fault("garbage"), ConsulAnswerError),
        (Fault("body", body={"Roots": []}), ConsulAnswerError),
        (Fault("body", body=["another", "shape"]), ConsulAnswerError),
    ],
)
def test_a_fault_is_told_and_so_is_the_recovery_though_nothing_changed(
    fake: FakeConsul, watch: Watch, fault: Fault, error: type[ConsulError]
) -> None:
    observed = watch(RootsWatch())
    first = observed.value(Roots)
    until("a blocking question", lambda: fake.count("ca/roots?index=") == 1)
    fake.fail("ca/roots", fault)
    failed = observed.failure(error)
    assert failed.retry_s <= 0.25
    recovered = observed.recovery()
    assert recovered.recovered
    assert recovered.value == first
    assert [path for _, path, _ in fake.requests if "ca/roots" in path][2] == "/v1/agent/connect/ca/roots"


NOT_LOOKED_UP = Fault(
    "status", code=403, text="token with AccessorID 'primary-dc-down' lacks permission 'service:read'"
)


def from_cache(age_s: int) -> Fault:
    """What the agent knows, told from its cache, that long after it lost its servers."""
    return Fault("headers", headers=(("X-Cache", "HIT"), ("Age", str(age_s))))


def test_an_agent_that_repeats_what_it_knows_is_no_recovery(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(RootsWatch())
    observed.value(Roots)
    until("a blocking question", lambda: fake.count("ca/roots?index=") == 1)
    # The first wakes the watch, which is to find the others then.
    with fake._changed:
        for fault in (Fault("status", text="No known Consul servers"), from_cache(0), from_cache(7)):
            fake.fail("ca/roots", fault)
    assert len({str(observed.failure(ConsulStatusError).error) for _ in range(3)}) == 1
    assert observed.recovery().recovered


def test_what_is_news_is_told_though_it_is_from_the_cache(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(RootsWatch())
    first = observed.value(Roots)
    until("a blocking question", lambda: fake.count("ca/roots?index=") == 1)
    # The first wakes the watch, which is to find the others then.
    with fake._changed:
        fake.fail("ca/roots", Fault("status"))
        fake.fail("ca/roots", from_cache(7))
        fake.rotate_roots()
    observed.failure(ConsulStatusError)
    assert observed.value(Roots) != first


def test_a_chain_that_is_asked_of_the_cache_fails_while_the_agent_has_lost_its_servers(
    fake: FakeConsul, watch: Watch
) -> None:
    observed = watch(ChainWatch("web"), chains=HeldChains(places=0, poll_s=0.05))
    observed.value(Chain)
    fake.fail("chain/web", from_cache(7))
    assert "the agent has lost them" in str(observed.failure(ConsulUnavailableError).error)
    assert observed.recovery().recovered


def test_one_that_no_server_answers_is_asked_again_within_ten_seconds(fake: FakeConsul, watch: Watch) -> None:
    chances = iter((0.0,) * 8)
    fake.fail("ca/roots", Fault("status", code=500), times=9)
    observed = watch(RootsWatch(), jitter=lambda: next(chances, 0.99))
    assert 5 < [observed.failure(ConsulStatusError) for _ in range(9)][-1].retry_s <= 10


def test_a_row_of_failures_keeps_its_beginning(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("ca/roots", Fault("status"), times=3)
    observed = watch(RootsWatch())
    failures = [observed.failure(ConsulStatusError) for _ in range(3)]
    assert len({failed.since for failed in failures}) == 1
    assert observed.recovery().recovered


def test_a_watch_says_how_it_does(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("ca/roots", Fault("status"), times=1)
    watcher = (observed := watch(RootsWatch())).watcher
    observed.failure(ConsulStatusError)
    failing = watcher.state()
    assert not failing.answered
    assert failing.failing_s is not None
    assert "500" in failing.problem

    observed.recovery()

    state = watcher.state()
    assert (state.key, state.answered, state.failing_s, state.problem) == (RootsWatch(), True, None, "")
    assert 0 <= state.age_s < DEADLINE_S


@pytest.mark.parametrize(
    ("fault", "allowed", "hurries"),
    [
        (Fault("close"), False, True),
        (Fault("status", code=500), False, True),
        (Fault("status", code=403), False, False),
        (Fault("status", code=403), True, True),
        (Fault("status", code=429), True, False),
        (NOT_LOOKED_UP, False, True),
    ],
)
def test_a_watch_that_failed_while_consul_was_away_asks_soon_when_told(
    fake: FakeConsul, watch: Watch, fault: Fault, allowed: bool, hurries: bool
) -> None:
    chances = iter((0.0, 0.0, 0.0, 0.0, 0.0, 0.9))
    fake.fail("ca/roots", fault, times=6)
    observed = watch(RootsWatch(), jitter=lambda: next(chances, 0.0))
    failures = [observed.failure(ConsulError) for _ in range(6)]
    assert failures[-1].retry_s > 5
    time.sleep(0.05)

    begin = time.monotonic()
    observed.watcher.hurry(allowed=allowed)

    if hurries:
        observed.recovery()
        assert time.monotonic() - begin < failures[-1].retry_s / 2
    else:
        with pytest.raises(queue.Empty):
            observed.events.get(timeout=1.0)


def test_a_long_wait_that_consul_asks_for_is_obeyed(fake: FakeConsul, watch: Watch) -> None:
    fake.fail("ca/roots", Fault("status", code=429, headers=(("Retry-After", "30"),)))
    observed = watch(RootsWatch())
    assert observed.failure(ConsulStatusError).retry_s == 30
    started = time.monotonic()
    observed.watcher.stop()
    assert observed.watcher.join(DEADLINE_S)
    assert time.monotonic() - started < 5


def test_a_deregistered_proxy_is_not_found_until_it_is_back(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ProxyWatch("web-sidecar-proxy"))
    observed.value(Registration)
    fake.deregister("web")
    assert "unknown service ID" in str(observed.failure(ConsulNotFoundError).error)
    fake.register(WEB)
    assert observed.recovery().recovered


def test_an_empty_list_that_acls_made_is_a_refusal_and_no_news(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ENDPOINTS)
    observed.instances()
    filtered = Fault("body", body=[], headers=(("X-Consul-Results-Filtered-By-ACLs", "true"),))
    fake.fail("health/connect", filtered)
    assert "service:read" in str(observed.failure(ConsulPermissionError).error)
    assert observed.recovery().value == observed.watcher._value


def test_an_empty_list_without_a_mark_is_believed_only_if_the_token_may_read(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(ENDPOINTS)
    assert len(observed.instances()) == 1
    fake.take_rights()
    assert "service:read" in str(observed.failure(ConsulPermissionError).error)
    fake.may_read_services = True
    assert len(observed.recovery().value) == 1  # type: ignore[arg-type] # a tuple
    fake.deregister("db")
    assert observed.instances() == ()


@pytest.mark.parametrize("key", [EndpointsWatch("db", "dc2", wan=True), QueryWatch("find-db", "dc2", "dc1", 20)])
def test_what_the_token_may_is_asked_of_the_datacenter_that_found_nothing(
    fake: FakeConsul, watch: Watch, key: WatchKey
) -> None:
    fake.create_query("find-db", "db")
    fake.take_rights()
    assert "service:read" in str(watch(key).failure(ConsulPermissionError).error)
    (asked,) = {path for _, path, _ in fake.requests if "discovery-chain" in path}
    assert "dc=dc2" in asked.partition("?")[2].split("&")


def test_nor_is_a_query_that_finds_nothing_believed_otherwise(fake: FakeConsul, watch: Watch) -> None:
    fake.create_query("find-db", "db")
    observed = watch(QueryWatch("find-db", "", "dc1", 20))
    assert len(observed.instances()) == 1
    fake.take_rights()
    assert "service:read" in str(observed.failure(ConsulPermissionError).error)
    fake.may_read_services = True
    assert len(observed.recovery().value) == 1  # type: ignore[arg-type] # a tuple


def test_a_refused_token_is_read_again_and_a_new_one_tried_at_once(fake: FakeConsul, watch: Watch) -> None:
    refused = threading.Event()
    fake.fail("ca/leaf", Fault("status", code=403, text="ACL not found"))
    observed: list[Observed] = []

    def refresh() -> bool:
        refused.set()
        observed[0].token = Secret("new")
        return True

    gate = threading.Event()
    observed.append(watch(LeafWatch("web"), refresh_token=lambda: gate.wait(DEADLINE_S) and refresh()))
    gate.set()
    assert "does not know this token" in str(observed[0].failure(ConsulPermissionError).error)
    observed[0].recovery()
    assert refused.is_set()
    headers = [headers for _, path, headers in fake.requests if "ca/leaf" in path]
    assert headers[0].get("X-Consul-Token") is None
    assert headers[1]["X-Consul-Token"] == "new"


def long_failing(fake: FakeConsul, watch: Watch, fault: Fault, refreshed: Iterator[bool]) -> tuple[Observed, float]:
    """A watch that failed six times in a row, by then with pauses of up to 16 s, and how long it pauses now."""
    chances = iter((0.0, 0.0, 0.0, 0.0, 0.0, 0.99))
    fake.fail("ca/leaf", fault, times=6)
    observed = watch(LeafWatch("web"), jitter=lambda: next(chances, 0.0), refresh_token=lambda: next(refreshed))
    retries = [observed.failure(ConsulError).retry_s for _ in range(6)]
    return observed, retries[-1]


def test_a_watch_that_was_refused_again_and_again_begins_anew_with_a_new_token(fake: FakeConsul, watch: Watch) -> None:
    observed, retry_s = long_failing(fake, watch, FORBIDDEN, iter((False, False, False, False, False, True)))
    # Of a first failure.
    assert 0.2 < retry_s <= 0.25
    assert observed.value(Leaf).service == "web"


@pytest.mark.parametrize(("fault", "asked"), [(FORBIDDEN, 6), (Fault("status", code=429), 0)])
def test_a_watch_without_a_new_token_or_a_refusal_goes_on_with_its_pauses(
    fake: FakeConsul, watch: Watch, fault: Fault, asked: int
) -> None:
    refreshed = iter((False,) * asked + (True,) * (6 - asked))
    assert long_failing(fake, watch, fault, refreshed)[1] > 15
    assert len(list(refreshed)) == 6 - asked


def test_a_bug_in_a_watch_is_told_and_does_not_end_it(
    fake: FakeConsul, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([0.0, 1.0])

    def clock() -> float:
        return next(times, 2.0)

    def lookup(name: str) -> tuple[str, ...]:
        raise ZeroDivisionError(name)

    fake.register(service_with_sidecar("db", 8182, sidecar_port=21001, address="db.example"))
    observed = watch(ENDPOINTS, clock=clock, lookup=lookup)
    observed.failure(ZeroDivisionError)
    assert "watch of endpoints db.dc1" in caplog.text
    fake.register(DB)
    observed.recovery()


# Host names.


def test_host_names_are_resolved_and_a_name_server_that_fails_takes_nothing_away(
    fake: FakeConsul, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"db.example": ("10.9.9.9",)}

    def lookup(name: str) -> tuple[str, ...]:
        if name not in names:
            raise OSError("no such host")
        return names[name]

    fake.register(service_with_sidecar("db", 8182, sidecar_port=21001, address="db.example"))
    observed = watch(ENDPOINTS, lookup=lookup)
    assert [one.address for one in observed.instances()] == ["10.9.9.9"]
    names.clear()
    fake.set_health("db-sidecar-check", "warning")
    assert [(one.address, one.health) for one in observed.instances()] == [("10.9.9.9", Health.WARNING)]
    fake.register(service_with_sidecar("db", 8183, service_id="db-2", sidecar_port=21002, address="never.example"))
    until("both warnings", lambda: caplog.text.count("no such host") == 2)
    assert "keeping 10.9.9.9" in caplog.text
    assert "left out" in caplog.text
    assert observed.events.empty()


def test_another_address_of_a_host_name_is_found_when_the_question_ends_without_news(
    fake: FakeConsul, watch: Watch
) -> None:
    addresses = ["10.9.9.9"]
    fake.register(service_with_sidecar("db", 8182, sidecar_port=21001, address="db.example"))
    observed = watch(ENDPOINTS, wait_s=0.05, lookup=lambda _: tuple(addresses))
    assert [one.address for one in observed.instances()] == ["10.9.9.9"]
    addresses[:] = ["10.9.9.10"]
    assert [one.address for one in observed.instances()] == ["10.9.9.10"]


def test_another_address_that_is_found_for_another_answer_is_told_with_it(fake: FakeConsul, watch: Watch) -> None:
    addresses = ["10.9.9.9"]
    fake.register(service_with_sidecar("db", 8182, sidecar_port=21001, address="db.example"))
    observed = watch(ENDPOINTS, lookup=lambda _: tuple(addresses))
    assert [one.address for one in observed.instances()] == ["10.9.9.9"]
    addresses[:] = ["10.9.9.10"]
    fake.set_health("db-sidecar-check", "warning")
    assert [(one.address, one.health) for one in observed.instances()] == [("10.9.9.10", Health.WARNING)]


def test_names_without_an_answer_hold_up_nobody_else_and_come_when_they_have_one(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.consul.names.PATIENCE_S", 0.2)
    answered = threading.Event()

    def lookup(name: str) -> tuple[str, ...]:
        # So a name server that is silent holds the resolver, and each name for itself.
        assert answered.wait(DEADLINE_S)
        return (f"10.9.9.{name[1]}",)

    for number in range(1, 6):
        name = service_with_sidecar(
            "db", 8182, service_id=f"db-{number}", sidecar_port=21001, address=f"h{number}.example"
        )
        fake.register(name)
    began = time.monotonic()
    observed = watch(ENDPOINTS, lookup=lookup)
    assert [one.address for one in observed.instances()] == ["127.0.0.1"]
    fake.set_health("db-sidecar-check", "warning")
    assert [one.health for one in observed.instances()] == [Health.WARNING]
    assert time.monotonic() - began < DEADLINE_S / 2
    answered.set()
    until("all", lambda: len(observed.instances()) == 6)


@pytest.mark.parametrize("again", [False, True])
def test_a_name_that_was_not_waited_for_to_its_end_is_told_when_found_and_not_waited_for_again(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr("hcc.consul.names.PATIENCE_S", 0.1)
    answered = threading.Event()

    def lookup(_: str) -> tuple[str, ...]:
        assert answered.wait(3 * DEADLINE_S)
        return ("10.9.9.9",)

    fake.register(service_with_sidecar("db", 8182, service_id="db-2", sidecar_port=21002, address="db.example"))
    observed = watch(ENDPOINTS, lookup=lookup)
    assert len(observed.instances()) == 1
    if again:
        monkeypatch.setattr("hcc.consul.names.PATIENCE_S", 2 * DEADLINE_S)
        fake.set_health("db-sidecar-check", "warning")
        assert [one.health for one in observed.instances()] == [Health.WARNING]
    answered.set()
    assert len(observed.instances()) == 2


def test_more_names_than_are_looked_up_at_once_are_told_together(fake: FakeConsul, watch: Watch) -> None:
    for number in range(40):
        name = service_with_sidecar(
            "db", 8182, service_id=f"db-{number}", sidecar_port=21001, address=f"h{number}.example"
        )
        fake.register(name)
    observed = watch(ENDPOINTS, lookup=lambda name: (f"10.9.9.{name[1:-8]}",))
    assert len(observed.instances()) == 41


def test_the_application_s_name_without_an_answer_does_not_hold_up_its_registration(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.consul.names.PATIENCE_S", 0.2)
    answered = threading.Event()

    def lookup(_: str) -> tuple[str, ...]:
        assert answered.wait(DEADLINE_S)
        return ("10.0.0.9",)

    config = {"local_service_address": "app.internal:8183"}
    fake.register(service_with_sidecar("shop", 8183, sidecar_port=21003, config=config))
    observed = watch(ProxyWatch("shop-sidecar-proxy"), lookup=lookup)
    assert observed.value(Registration).proxy.local_address == "app.internal"
    answered.set()
    assert observed.value(Registration).proxy.local_address == "10.0.0.9"


# Stopping.


def test_a_watch_that_waits_for_a_name_stops_promptly(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.consul.names.PATIENCE_S", 60.0)
    begun, over = threading.Event(), threading.Event()

    def lookup(name: str) -> tuple[str, ...]:
        begun.set()
        over.wait(DEADLINE_S)
        raise OSError(name)

    fake.register(service_with_sidecar("db", 8182, sidecar_port=21001, address="db.example"))
    observed = watch(ENDPOINTS, lookup=lookup)
    assert begun.wait(DEADLINE_S)
    observed.watcher.stop()
    assert observed.watcher.join(DEADLINE_S / 2)
    over.set()


def test_a_watch_that_waits_stops_promptly(fake: FakeConsul, watch: Watch) -> None:
    observed = watch(RootsWatch(), wait_s=60)
    observed.value(Roots)
    until("a blocking question", lambda: fake.count("ca/roots?index=") == 1)
    started = time.monotonic()
    observed.watcher.stop()
    assert time.monotonic() - started < DEADLINE_S
    assert observed.watcher.join(DEADLINE_S)


def test_a_stop_that_comes_with_an_answer_lets_nothing_more_be_told(fake: FakeConsul, watch: Watch) -> None:
    config = {"local_service_address": "app.internal:8183"}
    fake.register(service_with_sidecar("shop", 8183, sidecar_port=21003, config=config))
    begun: queue.Queue[Observed] = queue.Queue()

    def lookup(_: str) -> tuple[str, ...]:
        begun.get(timeout=DEADLINE_S).watcher.stop()
        return ("10.0.0.9",)

    observed = watch(ProxyWatch("shop-sidecar-proxy"), lookup=lookup)
    begun.put(observed)

    assert observed.watcher.join(DEADLINE_S)
    assert observed.events.empty()


def test_stop_before_start_and_twice_does_no_harm() -> None:
    watcher = Watcher(RootsWatch(), lambda: pytest.fail("asked"), lambda *_: None)
    watcher.stop()
    watcher.stop()
    assert watcher.join(0)
    watcher.start()
    assert watcher.join(DEADLINE_S)


def test_the_application_s_host_name_is_looked_up_until_it_has_an_address_and_again_later(
    fake: FakeConsul, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hcc.consul.watch.POLL_S", 0.05)
    found: dict[str, tuple[str, ...]] = {}

    def lookup(name: str) -> tuple[str, ...]:
        if name not in found:
            # What getaddrinfo says of a name such as `app..internal`.
            raise UnicodeError("label empty or too long")
        return found[name]

    def register(timeout_ms: int) -> None:
        config = {"local_service_address": "app.internal:8183", "local_connect_timeout_ms": timeout_ms}
        fake.register(service_with_sidecar("shop", 8183, sidecar_port=21003, config=config))

    def told(timeout_ms: int) -> str:
        # Another address may be found, and told, before the registration changes, too.
        while (proxy := observed.value(Registration).proxy).local_connect_timeout_ms != timeout_ms:
            pass
        return proxy.local_address

    register(1)
    observed = watch(ProxyWatch("shop-sidecar-proxy"), lookup=lookup)

    assert told(1) == "app.internal"
    assert "application app.internal: expected a host name with an address" in caplog.text
    found["app.internal"] = ("10.0.0.9",)
    assert told(1) == "10.0.0.9"
    found["app.internal"] = ("10.0.0.10", "10.0.0.11")
    register(2)
    assert told(2) == "10.0.0.10"
    # Name servers give them in turns.
    found["app.internal"] = ("10.0.0.11", "10.0.0.10")
    register(3)
    assert told(3) == "10.0.0.10"
    del found["app.internal"]
    register(4)
    assert told(4) == "10.0.0.10"
    assert "keeping 10.0.0.10" in caplog.text
