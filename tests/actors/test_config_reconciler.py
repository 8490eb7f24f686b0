import itertools
import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn

import pytest

from hcc.actors import basis, config_reconciler, pace
from hcc.actors.config_reconciler import MOST_REFUSALS, ConfigReconciler, _Reconcile, _Resync
from hcc.actors.draining import Draining
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    VERIFIER,
    AdmissionChanged,
    CallersChanged,
    ConfigurationInstalled,
    CredentialsReady,
    Drain,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Preview,
    Previewed,
    Publish,
    Reloading,
    SnapshotChanged,
    WorkerReplaced,
)
from hcc.actors.readiness import ReconcilerFacts
from hcc.haproxy import words
from hcc.haproxy.control import ControlError
from hcc.haproxy.model import Desired, Listening, TcpBind
from hcc.haproxy.names import PUBLIC
from hcc.haproxy.plan import (
    AddCaller,
    AddServer,
    DeleteServer,
    EnableListener,
    Install,
    Reload,
    SetServerState,
    WriteConfig,
)
from hcc.haproxy.sight import sight_for
from hcc.mesh.chain import Split, Target
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.peer_book import Admission, Peer
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, Permission
from hcc.mesh.snapshot import Endpoint, Health, Protocol, Snapshot, TargetEndpoints, UpstreamState
from hcc.mesh.token_providers import TokenProviders
from hcc.metrics import Metrics
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually
from tests.builders import (
    certificates,
    chain,
    endpoint,
    options,
    proxy,
    resolver,
    routed_chain,
    routed_state,
    service_uri,
    snapshot,
    upstream,
    upstream_state,
)
from tests.fakes import FakeControl


class ReconcilerScene(Scene):
    """ConfigReconciler between a HAProxy in memory and neighbours that listen."""

    def __init__(self, *, probes: bool = False, control: FakeControl | None = None) -> None:
        self.control = control or FakeControl()
        self.metrics = Metrics()
        self.at_rest = threading.Event()
        self.draining = Draining()
        super().__init__(
            CONFIG_RECONCILER,
            ConfigReconciler,
            {
                "control": self.control,
                "options": options(),
                "probes": probes,
                "metrics": self.metrics,
                "resync_s": 300.0,
                "draining": self.draining,
                "on_rest": self.at_rest.set,
            },
            (ADMIN, AUTHORISER, CONSUL_WATCHER, CERT_MANAGER, PROCESS_SUPERVISOR, VERIFIER),
        )

    def give_credentials(self) -> None:
        made = certificates()
        assert made.leaf is not None
        assert made.ca is not None
        self.tell(CredentialsReady(made.leaf, made.ca))

    def drain(self) -> None:
        self.draining.frozen = True
        self.tell(Drain())

    def reported(self) -> ReconcilerFacts:
        return self.facts(ADMIN, ReconcilerFacts) or ReconcilerFacts()

    def run(self, first: Snapshot) -> None:
        """Bring HAProxy up with this snapshot."""
        self.give_credentials()
        self.tell(SnapshotChanged(first))
        self.expect(PROCESS_SUPERVISOR, ConfigurationInstalled)
        self.control.start()
        self.tell(HAProxyUp(1))
        eventually(lambda: self.reported().applied, "the first configuration runs")

    def kinds(self, plan: int = -1) -> list[type[object]]:
        """Of the operations of a plan, the last one unless told otherwise; when it has been carried out."""
        with self.control.applying:
            return [type(operation) for operation in self.control.plans[plan].operations]

    def changes(self) -> list[list[type[object]]]:
        """The kinds of each plan, oldest first, but of those that only write down: these come in their own time."""
        every = [self.kinds(plan) for plan in range(len(self.control.plans))]
        return [kinds for kinds in every if kinds != [WriteConfig]]


@pytest.fixture
def scene() -> Iterator[ReconcilerScene]:
    made = ReconcilerScene()
    with playing(made):
        yield made


ONE = endpoint("10.0.0.1")
TWO = endpoint("10.0.0.2")


def with_endpoints(*endpoints: object, version: int = 2) -> Snapshot:
    return snapshot(upstream_state(upstream("web"), endpoints), version=version)  # type: ignore[arg-type] # endpoints


def test_the_first_complete_snapshot_is_installed_and_haproxy_is_asked_for(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))

    assert [type(operation) for operation in scene.control.plans[0].operations] == [Install]
    assert scene.reported().public_bound
    assert scene.reported().snapshot_version == 1


def failing_over(*first: Endpoint, known: bool = True, version: int = 1) -> Snapshot:
    """Web, which fails over to another datacenter, where somebody is; and an upstream that is never known."""
    made = chain("web", failover=(Target("web.dc2", "web", "dc2"),))
    targets = (
        TargetEndpoints(made.targets[0].id, first, known, service_uri("web")),
        TargetEndpoints("web.dc2", (TWO,), identity=service_uri("web", "dc2")),
    )
    never = UpstreamState(upstream("never", 9292), None, ())
    return snapshot(UpstreamState(upstream("web"), made, targets), never, version=version)


def in_service(found: Desired) -> list[str]:
    return [server.address for server in found.backend("up:web:9191:to").servers if server.enabled]


def test_the_first_configuration_waits_for_the_target_before_one_for_failover(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "FIRST_GRACE_S", 0.01)
    monkeypatch.setattr(config_reconciler, "FAILOVER_GRACE_S", 60.0)
    scene.restart()
    scene.give_credentials()
    scene.tell(SnapshotChanged(failing_over(known=False)))
    threading.Event().wait(0.1)

    scene.tell(SnapshotChanged(failing_over(ONE, version=2)))

    scene.expect(PROCESS_SUPERVISOR, ConfigurationInstalled)
    (install,) = scene.control.plans[0].operations
    assert isinstance(install, Install)
    assert in_service(install.rendered.desired) == ["10.0.0.1"]


def test_where_nobody_tells_of_it_the_target_for_failover_serves_after_a_while(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "FAILOVER_GRACE_S", 0.1)
    scene.give_credentials()
    scene.tell(SnapshotChanged(failing_over(known=False)))

    scene.expect(PROCESS_SUPERVISOR, ConfigurationInstalled)
    (install,) = scene.control.plans[0].operations
    assert isinstance(install, Install)
    assert in_service(install.rendered.desired) == ["10.0.0.2"]


def test_an_endpoint_that_comes_is_added_at_run_time_and_written_down(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: scene.kinds() == [WriteConfig], "what was done is written down")
    assert scene.kinds(-2) == [AddServer]
    assert "10.0.0.2" in (scene.control.actual.config or "")


def test_an_endpoint_that_fails_goes_to_maintenance_without_a_reload(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, TWO, version=1))

    scene.tell(SnapshotChanged(with_endpoints(ONE, replace(TWO, health=Health.CRITICAL))))

    eventually(lambda: scene.kinds() == [WriteConfig], "what was done is written down")
    assert scene.kinds(-2) == [SetServerState]


def renamed(*, version: int) -> Snapshot:
    """The same service under another name, of which the policy is not known yet."""
    before = with_endpoints(ONE, TWO, version=version)
    return replace(before, policy=None, proxy=replace(before.proxy, service="web3"))


def test_a_renamed_service_keeps_its_listener_until_its_new_policy_is_known(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))

    scene.tell(SnapshotChanged(renamed(version=2)))
    scene.give_credentials()
    threading.Event().wait(2 * pace.WINDOW_S)
    assert scene.reported().public_bound
    assert len(scene.control.plans) == 1

    scene.tell(SnapshotChanged(replace(renamed(version=3), policy=with_endpoints().policy)))
    eventually(lambda: scene.reported().snapshot_version == 3, "it counts as soon as its policy is known")
    assert scene.reported().public_bound
    assert not any(plan.reloads for plan in scene.control.plans)


def test_a_renamed_service_whose_policy_does_not_come_loses_its_listener(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    monkeypatch.setattr(config_reconciler, "ADOPTED_GRACE_S", 0.2)

    versions = itertools.count(2)

    def comes_at_last() -> bool:
        # However often something else about it changes.
        scene.tell(SnapshotChanged(renamed(version=next(versions))))
        return not scene.reported().public_bound

    eventually(comes_at_last, "it counts")


def test_a_snapshot_that_was_held_counts_no_more_when_a_newer_one_came(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    monkeypatch.setattr(config_reconciler, "ADOPTED_GRACE_S", 0.2)

    scene.tell(SnapshotChanged(renamed(version=2)))
    previewed(scene)  # It has been heard: of two that wait only the newer counts.
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=3)))
    eventually(lambda: scene.reported().snapshot_version == 3, "the newer one")

    threading.Event().wait(0.2 + 2 * pace.WINDOW_S)
    assert (scene.reported().snapshot_version, scene.reported().public_bound) == (3, True)


def test_the_same_news_again_changes_nothing(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))

    scene.tell(SnapshotChanged(with_endpoints(ONE, version=7)))

    eventually(lambda: scene.reported().snapshot_version == 7, "the new version is reported")
    assert len(scene.control.plans) == 1


def test_a_refused_configuration_leaves_the_old_one_and_is_reported_and_the_next_good_one_applies(
    scene: ReconcilerScene,
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "line 3 is wrong"
    before = scene.control.actual

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9999)), version=2)))

    eventually(lambda: "line 3 is wrong" in scene.reported().failure, "the failure is reported")
    assert scene.control.actual == before
    assert scene.expect(PROCESS_SUPERVISOR, Reloading, lambda told: not told.under_way) == Reloading(False)
    scene.control.refusing = ""
    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9998)), version=3)))
    eventually(lambda: scene.reported().snapshot_version == 3, "the next good configuration applies")
    assert scene.kinds() == [Reload]
    scene.expect(PROCESS_SUPERVISOR, Reloading, lambda told: told.replaced)


def test_a_refused_line_is_told_with_the_words_of_consul_that_it_comes_from(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing, scene.control.refused = "no such port", "bind 127.0.0.1:9999"

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("api", 9999)), version=2)))

    eventually(lambda: "no such port" in scene.reported().failure, "the failure is reported")
    assert "; it comes from upstream api in the registration of server-sidecar-proxy, " in scene.reported().failure
    assert "LocalBindPort" in scene.reported().plans[0].failure


def test_while_a_structure_is_refused_endpoints_still_change_at_run_time(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "no"
    bad = snapshot(upstream_state(upstream("web"), [ONE]), upstream_state(upstream("api", 9999)), version=2)
    scene.tell(SnapshotChanged(bad))
    eventually(lambda: "no" in scene.reported().failure, "the failure is reported")

    worse = snapshot(upstream_state(upstream("web"), [ONE, TWO]), upstream_state(upstream("api", 9999)), version=3)
    scene.tell(SnapshotChanged(worse))

    eventually(lambda: any(AddServer in kinds for kinds in scene.changes()), "the endpoint is added")


def test_before_a_reload_is_tried_again_all_is_done_that_can_be_done_without(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "RETRY_S", 0.02)
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "no"

    scene.tell(SnapshotChanged(with_api(ONE, TWO, version=2)))

    eventually(lambda: running(scene) == {"10.0.0.1": True, "10.0.0.2": True}, "the endpoint is there")
    scene.settle()
    tried = [plan.describe()[0].split()[0] for plan in scene.control.plans[1:4]]
    assert tried[:3] == ["reload", "add", "reload"]
    scene.control.refusing = ""
    eventually(lambda: scene.reported().applied, "the new structure runs")


def test_what_haproxy_refuses_at_run_time_again_and_again_comes_by_one_reload(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "RETRY_S", 0.02)
    scene.run(with_endpoints(ONE, version=1))
    scene.control.unwilling = "expected HAProxy to add a server, it answered: no"

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: running(scene) == {"10.0.0.1": True, "10.0.0.2": True}, "the endpoint is there")
    eventually(lambda: scene.reported().applied, "all is well")
    tried = [
        plan for plan in scene.control.plans if plan.operations and not isinstance(plan.operations[0], WriteConfig)
    ]
    assert [plan.reloads for plan in tried[1:]] == [False] * MOST_REFUSALS + [True]
    assert tried[-1].reasons == ("HAProxy refuses to be changed at run time",)

    scene.control.unwilling = ""
    scene.tell(SnapshotChanged(with_endpoints(ONE, version=3)))
    eventually(lambda: running(scene) == {"10.0.0.1": True}, "it is changed at run time again")
    assert not scene.control.plans[-1].reloads


def test_a_full_disk_is_no_reason_to_reload(scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_reconciler, "RETRY_S", 0.01)
    scene.run(with_endpoints(ONE, version=1))
    scene.control.full = "no space left"

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: len(scene.control.plans) > 3 + MOST_REFUSALS, "it is tried again and again")
    assert not any(plan.reloads for plan in scene.control.plans)


def test_a_word_of_consul_s_that_haproxy_cannot_be_told_leaves_what_runs_and_is_reported(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(with_endpoints(ONE, version=1))

    def refusing(*_: object, **__: object) -> NoReturn:
        raise words.WordError("expected a header name, found 'x role'")

    monkeypatch.setattr(basis, "desired", refusing)
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: "found 'x role'" in scene.reported().failure, "the failure is reported")
    assert len(scene.control.plans) == 1
    assert scene.generation() == 1


def test_an_upstream_that_haproxy_cannot_be_told_of_keeps_nothing_of_the_rest_from_being_applied(
    scene: ReconcilerScene,
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    web = upstream_state(upstream("web"), (ONE, TWO))
    odd = replace(upstream_state(upstream("api", 9999)), targets=(replace(web.targets[0], identity="spiffe://x y"),))

    scene.tell(SnapshotChanged(snapshot(web, odd, version=2)))

    eventually(lambda: scene.reported().snapshot_version == 2, "the rest is applied")
    (problem,) = scene.reported().problems
    assert problem.startswith("upstream api: cannot be written for HAProxy, is left out")
    servers = dict(scene.control.servers())["up:web:9191:to"]
    assert [one.name for one in servers] == ["10.0.0.1:21000", "10.0.0.2:21000"]
    assert not scene.reported().failure
    assert not any(plan.drift for plan in scene.reported().plans)

    scene.tell(SnapshotChanged(snapshot(web, upstream_state(upstream("api", 9999)), version=3)))

    eventually(lambda: scene.reported().snapshot_version == 3, "it is applied as soon as it can be written")
    assert scene.reported().problems == ()


def test_what_the_registration_asks_for_in_vain_is_counted_with_the_problems(scene: ReconcilerScene) -> None:
    odd = replace(proxy(), warnings=("mode transparent: not served", "read_timeout: expected a duration"))
    scene.run(snapshot(upstream_state(upstream("web"), (ONE,)), proxy_=odd, version=1))

    assert scene.metrics.registry.get_sample_value("hcc_configuration_problems") == 2.0
    assert scene.reported().problems == ()

    scene.tell(SnapshotChanged(replace(odd_api(ONE, version=2), proxy=odd)))
    eventually(lambda: scene.reported().snapshot_version == 2, "the rest is applied")
    assert scene.metrics.registry.get_sample_value("hcc_configuration_problems") == 3.0


def odd_api(*endpoints: object, version: int) -> Snapshot:
    """As `with_api`, which cannot be written."""
    whole = with_api(*endpoints, version=version)
    web, api = whole.upstreams
    return replace(whole, upstreams=(web, replace(api, targets=(replace(web.targets[0], identity="spiffe://x y"),))))


def test_what_cannot_be_written_takes_nothing_from_a_reload_that_is_to_be_tried_again(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    third = upstream_state(upstream("third", 9393))
    scene.control.refusing = "no memory"
    before = with_endpoints(ONE, version=2)
    scene.tell(SnapshotChanged(replace(before, upstreams=(*before.upstreams, third))))
    eventually(lambda: "no memory" in scene.reported().failure, "the failure is reported")

    odd = odd_api(ONE, version=3)
    scene.tell(SnapshotChanged(replace(odd, upstreams=(*odd.upstreams, third))))
    scene.control.refusing = ""

    eventually(lambda: scene.reported().applied and scene.reported().snapshot_version == 3, "it is tried again")


def test_a_restarted_reconciler_takes_nothing_away_that_it_does_not_remember_and_cannot_write(
    scene: ReconcilerScene,
) -> None:
    scene.run(with_api(ONE, version=1))
    scene.tell(SnapshotChanged(odd_api(ONE, version=2)))
    eventually(lambda: scene.reported().snapshot_version == 2, "it stays as it was")
    assert "up:api:9999:to" in dict(scene.control.servers())

    scene.restart()
    scene.give_credentials()
    scene.tell(SnapshotChanged(odd_api(ONE, version=2)))
    scene.tell(HAProxyUp(1))

    eventually(lambda: "spiffe://x y" in scene.reported().failure, "it is reported")
    assert "up:api:9999:to" in dict(scene.control.servers())


def with_api(*endpoints: object, version: int) -> Snapshot:
    """Another structure than `with_endpoints` has."""
    web = upstream_state(upstream("web"), endpoints)  # type: ignore[arg-type] # endpoints
    return snapshot(web, upstream_state(upstream("api", 9999)), version=version)


def test_an_endpoint_that_changes_while_a_reload_is_to_be_tried_again_takes_nothing_from_that(
    scene: ReconcilerScene,
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "no room for another process"
    scene.tell(SnapshotChanged(with_api(ONE, version=2)))
    eventually(lambda: "no room" in scene.reported().failure, "the failure is reported")

    scene.tell(SnapshotChanged(with_api(ONE, TWO, version=3)))

    eventually(lambda: any(AddServer in kinds for kinds in scene.changes()), "the endpoint is added")
    scene.tell(Publish())
    scene.settle()
    assert "no room" in scene.reported().failure
    assert not scene.reported().applied
    scene.control.refusing = ""
    eventually(lambda: scene.reported().snapshot_version == 3, "it is tried again")
    assert Reload in {kind for plan in range(len(scene.control.plans)) for kind in scene.kinds(plan)}
    assert "127.0.0.1:9999" in (scene.control.actual.config or "")


def test_news_while_the_first_installation_is_to_be_tried_again_take_nothing_from_that(scene: ReconcilerScene) -> None:
    scene.control.refusing = "no space left"
    scene.give_credentials()
    scene.tell(SnapshotChanged(with_endpoints(ONE, version=1)))
    eventually(lambda: "no space" in scene.reported().failure, "the failure is reported")

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=2)))
    scene.tell(Publish())
    scene.settle()
    assert not scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled)
    scene.control.refusing = ""

    scene.expect(PROCESS_SUPERVISOR, ConfigurationInstalled)
    assert "10.0.0.2" in (scene.control.actual.config or "")


@pytest.mark.parametrize("runs", [False, True])
def test_who_starts_haproxy_may_ask_again_whether_there_is_something_to_start(
    scene: ReconcilerScene, runs: bool
) -> None:
    scene.tell(Publish())
    scene.expect(ADMIN, FactsReported)
    assert not scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled)
    scene.run(with_endpoints(ONE, version=1))
    if not runs:
        scene.tell(HAProxyDown("it died"))
    told = len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled))

    scene.tell(Publish())

    eventually(lambda: len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled)) == told + 1, "the answer")


@pytest.mark.parametrize("told", [(), ("web:dc1",), ("db:dc1", "web:dc1")])
def test_beside_a_haproxy_that_runs_callers_keep_their_lines_until_it_is_told_who_calls(told: tuple[str, ...]) -> None:
    earlier = ReconcilerScene()
    with playing(earlier):
        earlier.run(with_endpoints(ONE, version=1))
        earlier.tell(CallersChanged(("db:dc1", "web:dc1")))
        eventually(lambda: any(AddCaller in kinds for kinds in earlier.changes()), "lines of their own")
        eventually(lambda: earlier.kinds() == [WriteConfig], "they are written down")
    control, before = earlier.control, len(earlier.control.plans)
    later = ReconcilerScene(control=control)
    with playing(later):
        later.give_credentials()
        later.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=1)))
        eventually(lambda: later.reported().applied, "it goes on")
        eventually(lambda: "10.0.0.2" in (control.actual.config or ""), "all is written down")
        assert lines(control) == {"db:dc1", "web:dc1"}
        assert DeleteServer not in {kind for plan in range(before, len(control.plans)) for kind in later.kinds(plan)}

        later.tell(CallersChanged(told))

        eventually(lambda: lines(control) == set(told), "the lines of who calls")


def lines(control: FakeControl) -> set[str]:
    return {line.name for line in dict(control.actual.servers)["app"]} - {"app"}


def test_an_address_that_is_not_wanted_any_more_is_not_tried_any_more(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "TAKEN_RETRY_S", 0.05)
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)
    scene.run(snapshot(upstream_state(upstream("web", 9191)), upstream_state(upstream("api", 9292)), version=1))
    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("api", 9292)), version=2)))
    eventually(lambda: scene.reported().snapshot_version == 2, "it is not wanted any more")

    # Long enough for the try that was on its way, and several more.
    threading.Event().wait(0.2)
    seen = len(scene.all_of(ADMIN, FactsReported))
    threading.Event().wait(0.4)

    # By that try, and when all is read back.
    assert len(scene.all_of(ADMIN, FactsReported)) <= seen + 2


def test_a_taken_address_is_left_out_and_the_others_serve(
    scene: ReconcilerScene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)
    two = snapshot(upstream_state(upstream("web", 9191)), upstream_state(upstream("api", 9292)), version=1)

    scene.run(two)

    config = scene.control.actual.config or ""
    assert "127.0.0.1:9292" in config
    assert "127.0.0.1:9191" not in config
    left_out = ("cannot listen on 127.0.0.1:9191: in use",)
    assert scene.reported().taken == left_out
    assert scene.metrics.registry.get_sample_value("hcc_listeners_left_out") == 1.0
    eventually(lambda: previewed(scene).operations == (), "it is at rest")
    assert previewed(scene).left_out == left_out

    scene.control.taken_binds = ()
    scene.tell(SnapshotChanged(replace(two, version=2)))
    eventually(lambda: scene.reported().taken == (), "it is free")
    assert previewed(scene).left_out == ()
    assert scene.metrics.registry.get_sample_value("hcc_listeners_left_out") == 0.0
    assert "127.0.0.1:9191 is free now" in caplog.text


def test_a_taken_address_that_nobody_wants_any_more_is_not_said_to_be_free(
    scene: ReconcilerScene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)
    scene.run(snapshot(upstream_state(upstream("web", 9191)), upstream_state(upstream("api", 9292)), version=1))

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("api", 9292)), version=2)))

    eventually(lambda: scene.reported().taken == (), "nothing is left out")
    assert "is free now" not in caplog.text


def test_a_port_that_somebody_took_while_haproxy_was_down_is_left_out_before_it_starts(scene: ReconcilerScene) -> None:
    scene.run(snapshot(upstream_state(upstream("web", 9191)), upstream_state(upstream("api", 9292)), version=1))
    scene.control.actual = replace(scene.control.actual, running=False)
    scene.tell(HAProxyDown("it died"))
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)
    told = len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled))

    scene.tell(Publish())

    eventually(lambda: len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled)) > told, "it may start")
    assert "127.0.0.1:9191" not in (scene.control.actual.config or "")
    assert "127.0.0.1:9292" in (scene.control.actual.config or "")


def test_what_cannot_be_put_right_does_not_keep_haproxy_from_starting(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.actual = replace(scene.control.actual, running=False, config=None)
    scene.tell(HAProxyDown("it died"))
    scene.control.refusing = "no space left"
    told = len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled))

    scene.tell(Publish())

    eventually(lambda: len(scene.all_of(PROCESS_SUPERVISOR, ConfigurationInstalled)) > told, "it may start")
    eventually(lambda: "no space" in scene.reported().failure, "it is told")


@pytest.mark.parametrize("resync", [False, True])
def test_a_port_that_somebody_shares_with_a_running_haproxy_is_given_up(scene: ReconcilerScene, resync: bool) -> None:
    scene.run(snapshot(upstream_state(upstream("web", 9191)), upstream_state(upstream("api", 9292)), version=1))
    eventually(lambda: previewed(scene).operations == (), "it is at rest")
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)

    if resync:
        scene.tell(_Resync())
    else:
        scene.tell(HAProxyDown("it died"))
        scene.control.start()
        scene.tell(HAProxyUp(1))

    eventually(lambda: scene.reported().taken == ("cannot listen on 127.0.0.1:9191: in use",), "it is told")
    assert scene.kinds() == [Reload]
    assert "127.0.0.1:9191" not in (scene.control.actual.config or "")


@pytest.mark.parametrize("refusing", ["", "no"])
def test_who_watches_haproxy_hears_of_a_reload_before_it_begins_and_when_it_is_over(
    scene: ReconcilerScene, refusing: str
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    assert not scene.all_of(PROCESS_SUPERVISOR, Reloading)
    scene.control.refusing = refusing

    scene.tell(SnapshotChanged(with_api(ONE, version=2)))

    eventually(lambda: Reload in scene.kinds(), "a reload")
    scene.expect(PROCESS_SUPERVISOR, Reloading, lambda told: not told.under_way)


def test_a_port_is_not_looked_at_each_time_that_all_is_read_back(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.tell(_Resync())
    eventually(lambda: previewed(scene).operations == (), "it was looked at")
    scene.control.taken_binds = (TcpBind("127.0.0.1", 9191),)

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: scene.kinds() == [WriteConfig], "it is read back and written down")
    assert scene.reported().taken == ()


def previewed(scene: ReconcilerScene) -> Previewed:
    found = scene.tree.ask_actor(CONFIG_RECONCILER, Preview(), 5.0)
    assert isinstance(found, Previewed)
    return found


def test_a_sidecar_that_stops_plans_nothing(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE))
    scene.drain()

    with pytest.raises(ControlError, match="the sidecar is stopping"):
        previewed(scene)


def test_to_ask_what_would_be_done_fails_where_nothing_can_be_read_and_changes_nothing(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE))
    scene.control.unreadable = True

    with pytest.raises(ControlError, match="Permission denied"):
        previewed(scene)

    scene.control.unreadable = False
    assert previewed(scene).operations == ()
    assert scene.generation() == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_until_consul_has_said_which_servers_there_are_those_that_run_stay(
    scene: ReconcilerScene, restarted: bool
) -> None:
    scene.run(with_endpoints(ONE, TWO, version=1))
    if restarted:
        scene.restart()
        scene.give_credentials()
    state = upstream_state(upstream("web"), [])
    asking = replace(state, targets=tuple(replace(target, known=False) for target in state.targets))
    limited = replace(asking, upstream=replace(asking.upstream, max_connections=7))

    # A restarted one waits for the rest of the answers first.
    for version, told in ((2, asking), (3, limited)):
        scene.tell(SnapshotChanged(snapshot(told, version=version)))
        if not restarted:
            scene.expect(ADMIN, FactsReported, partial(_is_about, version))
        assert [server.address for server in scene.control.actual.servers[0][1]] == [ONE.address, TWO.address]

    scene.tell(SnapshotChanged(snapshot(upstream_state(limited.upstream, []), version=4)))
    eventually(lambda: scene.control.actual.servers[0][1] == (), "those that Consul does not list are gone")


def test_a_restarted_reconciler_asks_for_what_it_missed_and_drops_nothing_meanwhile(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.restart()
    for source in (CONSUL_WATCHER, CERT_MANAGER, PROCESS_SUPERVISOR):
        scene.expect(source, Publish)

    incomplete = replace(with_endpoints(ONE, version=2), leaf=None, policy=None)
    scene.tell(SnapshotChanged(incomplete))
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=3)))
    scene.give_credentials()

    eventually(lambda: scene.reported().snapshot_version == 3, "the complete snapshot is applied")
    done = [kind for plan in range(1, len(scene.control.plans)) for kind in scene.kinds(plan)]
    assert [kind for kind in done if kind is not WriteConfig] == [AddServer]


def test_a_restarted_reconciler_waits_for_who_may_sign_the_tokens_that_are_demanded(scene: ReconcilerScene) -> None:
    whole = with_endpoints(ONE, version=1)
    assert whole.policy is not None
    demanding = Intention("api", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))
    told = replace(whole.policy, intentions=(demanding,), http=True, providers=TokenProviders())
    scene.run(replace(whole, policy=told))
    scene.restart()
    scene.expect(PROCESS_SUPERVISOR, Publish)

    # What would be decided without them is another structure: a reload, and another when they are told.
    early = with_endpoints(ONE, TWO, version=2)
    scene.tell(SnapshotChanged(replace(early, policy=replace(told, providers=None))))
    scene.give_credentials()
    scene.tell(Publish())
    scene.settle()
    assert scene.reported().snapshot_version != 2
    scene.tell(SnapshotChanged(replace(with_endpoints(ONE, TWO, version=3), policy=told)))

    eventually(lambda: scene.reported().snapshot_version == 3, "the complete snapshot is applied")


def test_a_silent_haproxy_is_reported_and_tried_again(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.silent = True
    scene.tell(SnapshotChanged(with_endpoints(TWO, version=2)))
    eventually(lambda: "does not answer" in scene.reported().failure, "the failure is reported")

    scene.control.silent = False

    eventually(lambda: scene.reported().snapshot_version == 2, "the retry succeeds")


def test_many_news_while_haproxy_is_silent_for_a_moment_do_not_put_the_next_try_off(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each is tried at once.
    monkeypatch.setattr(pace, "WINDOW_S", 0.0)
    monkeypatch.setattr(pace, "SHORT_WINDOW_S", 0.0)
    scene.run(with_endpoints(ONE, version=1))
    scene.control.silent = True
    for version in range(2, 12):
        scene.tell(SnapshotChanged(with_endpoints(TWO, version=version)))
        scene.settle()
    assert "does not answer" in scene.reported().failure

    scene.control.silent = False

    # Twice as late with each of them would be half a minute.
    eventually(lambda: scene.reported().snapshot_version == 11, "the retry succeeds")


def test_a_haproxy_that_runs_and_cannot_be_reached_is_not_taken_for_none(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    ran, plans = scene.control.actual, len(scene.control.plans)
    scene.control.actual = replace(ran, running=False, pid=0, servers=())
    # Its own port would look like somebody else's.
    scene.control.taken_binds = scene.control.plans[0].operations[0].rendered.desired.binds()  # type: ignore[union-attr]
    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9999)), version=2)))

    eventually(lambda: "nobody listens on its sockets" in scene.reported().failure, "the failure is reported")
    assert len(scene.control.plans) == plans
    assert not scene.reported().applied

    scene.control.taken_binds = ()
    scene.tell(HAProxyDown("ended"))
    eventually(lambda: scene.kinds() == [Install], "what the next one starts with")


def test_a_drain_is_told_when_the_reload_under_way_is_over(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    with scene.control.applying:
        scene.tell(SnapshotChanged(with_api(ONE, version=2)))
        eventually(lambda: scene.control.begun == 2, "the reload is under way")
        scene.drain()
        assert not scene.at_rest.wait(0.1)
    assert scene.at_rest.wait(5.0)
    assert scene.kinds() == [Reload]


def test_a_drain_is_told_when_the_text_that_is_being_written_is(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    writing = being_written(scene)
    scene.drain()
    assert not scene.at_rest.wait(0.1)
    writing.set()
    assert scene.at_rest.wait(5.0)
    assert scene.kinds() == [WriteConfig]


def test_servers_come_and_go_while_draining(scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SETTLE_S", 0.05)
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    scene.tell(SnapshotChanged(with_endpoints(TWO, version=2)))
    eventually(lambda: scene.reported().snapshot_version == 2, "it is applied")
    assert scene.kinds() == [AddServer, DeleteServer]
    # Longer than it waits to write that down.
    threading.Event().wait(0.2)
    assert len(scene.control.plans) == 2


def test_nothing_is_asked_of_a_haproxy_that_was_told_to_end(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    scene.draining.ending = True
    # What it says, of each server.
    scene.control.unwilling = "it answered: Proxy is disabled."
    scene.tell(SnapshotChanged(with_endpoints(TWO, version=2)))
    scene.tell(Publish())
    scene.settle()
    # Longer than changes are gathered.
    threading.Event().wait(2 * pace.WINDOW_S)
    assert scene.reported().failure == ""
    assert scene.reported().snapshot_version == 1


def test_nothing_else_changes_while_draining(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    scene.tell(SnapshotChanged(with_api(ONE, version=2)))
    scene.tell(_Reconcile())
    scene.tell(_Reconcile(thorough=True))
    scene.tell(Publish())
    scene.settle()
    # Longer than changes are gathered.
    threading.Event().wait(2 * pace.WINDOW_S)
    assert len(scene.control.plans) == 1
    assert scene.reported().snapshot_version == 1


def closed(scene: ReconcilerScene) -> None:
    """What a drain does to the public listener."""
    actual = scene.control.actual
    shut = (replace(one, state=Listening.SHUT if one.name == PUBLIC else one.state) for one in actual.listeners)
    scene.control.actual = replace(actual, listeners=tuple(shut))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_drain_that_begins_before_a_change_was_read_back_follows_endpoints(
    scene: ReconcilerScene, restarted: bool
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    assert scene.at_rest.wait(5.0)
    # As after a reload.
    scene.control.known = None
    closed(scene)
    if restarted:
        scene.restart()
        scene.give_credentials()
        scene.tell(HAProxyUp(1))

    scene.tell(SnapshotChanged(with_endpoints(TWO, version=2)))

    eventually(lambda: running(scene) == {"10.0.0.2": True}, "it is followed")
    assert [type(one) for plan in scene.control.plans[1:] for one in plan.operations] == [AddServer, DeleteServer]


def test_what_haproxy_refuses_in_a_drain_is_tried_again_and_is_no_reason_to_reload(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "RETRY_S", 0.01)
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    closed(scene)
    scene.control.unwilling = "HAProxy does not answer"
    scene.tell(SnapshotChanged(with_endpoints(TWO, version=2)))
    eventually(lambda: len(scene.control.plans) > MOST_REFUSALS + 2, "it was refused")

    scene.control.unwilling = ""

    eventually(lambda: running(scene) == {"10.0.0.2": True}, "it is followed")
    kinds = {type(one) for plan in scene.control.plans[1:] for one in plan.operations}
    assert kinds == {AddServer, DeleteServer}


def test_one_that_is_restarted_in_a_drain_does_not_open_what_was_closed(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.drain()
    assert scene.at_rest.wait(5.0)
    scene.restart()
    scene.give_credentials()
    scene.tell(HAProxyUp(1))

    scene.tell(SnapshotChanged(with_api(ONE, version=2)))

    # Longer than changes are gathered.
    threading.Event().wait(2 * pace.WINDOW_S)
    assert len(scene.control.plans) == 1


def test_the_last_plans_are_told_the_newest_first_with_why_and_what(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(lambda: len(scene.reported().plans) == 2, "both plans are told")

    newest, first = scene.reported().plans

    assert newest.reasons == ("servers differ from what runs",)
    assert newest.operations[0].startswith("add server up:web:9191:to/10.0.0.2:21000")
    assert (newest.outcome, newest.operation_count, newest.reloaded, newest.drift) == ("applied", 1, False, False)
    assert first.operations[0].startswith("install configuration")
    assert newest.at >= first.at


def test_a_plan_that_failed_is_told_with_its_reason(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "line 3"
    other = snapshot(upstream_state(upstream("other", 9192), (ONE,)), version=2)

    scene.tell(SnapshotChanged(other))

    eventually(lambda: scene.reported().plans[0].outcome == "failed", "the failure is told")
    assert scene.reported().plans[0].failure == "HAProxy refuses: line 3"


def test_what_is_repaired_without_any_news_is_drift(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    name, servers = scene.control.actual.servers[0]
    scene.control.actual = replace(scene.control.actual, servers=((name, (replace(servers[0], weight=99),)),))

    scene.tell(_Resync())

    eventually(lambda: len(scene.reported().plans) == 2, "the repair is told")
    assert scene.reported().plans[0].drift
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 1.0


def test_structures_that_follow_each_other_come_by_few_reloads(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    monkeypatch.setattr(pace, "WINDOW_S", 1.0)
    ports, began_s = range(9101, 9111), time.monotonic()
    for version, port in enumerate(ports, start=2):
        scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", port), [ONE]), version=version)))
        threading.Event().wait(0.02)

    eventually(lambda: str(ports[-1]) in (scene.control.actual.config or ""), "the last one runs")
    took_s = time.monotonic() - began_s
    reloads = sum(isinstance(one, Reload) for made in scene.control.plans for one in made.operations)
    # The first at once, the others together, in each window; one more, as a window may end in between.
    assert 1 <= reloads <= 3 + int(took_s)


def test_all_is_read_back_again_and_again_at_moments_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the 300 s that it is told; without a draw nothing would happen for so long.
    monkeypatch.setattr(random, "uniform", lambda low, _: low * 1e-4)
    scene = ReconcilerScene()
    with playing(scene):
        scene.run(with_endpoints(ONE, version=1))
        for repairs in (1.0, 2.0):
            name, servers = scene.control.actual.servers[0]
            changed = ((name, (replace(servers[0], weight=99),)),)
            scene.control.actual = replace(scene.control.actual, servers=changed)
            eventually(partial(_has_repaired, scene, repairs), "it is repaired")


def _has_repaired(scene: ReconcilerScene, times: float) -> bool:
    return scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == times


def _has_written(scene: ReconcilerScene) -> bool:
    """Whether it wrote down what was done, for the first time, and knows that it did."""
    return scene.metrics.registry.get_sample_value("hcc_operations_total", {"kind": "WriteConfig"}) == 1.0


def test_a_file_that_somebody_changed_is_put_back_and_that_is_said(
    scene: ReconcilerScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(partial(_has_written, scene), "what was done is written down")
    written = scene.control.actual.config
    assert "the file on disk differs" not in caplog.text

    scene.control.actual = replace(scene.control.actual, config="nonsense")
    scene.tell(_Resync())

    eventually(lambda: scene.control.actual.config == written, "it is put back")
    assert caplog.text.count("the file on disk differs") == 1


def test_changes_in_a_row_are_done_before_anything_is_written_down(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    for version in range(2, 12):
        endpoints = [endpoint(f"10.0.0.{n}") for n in range(1, version)]
        scene.tell(SnapshotChanged(with_endpoints(*endpoints, version=version)))
        scene.expect(ADMIN, FactsReported, partial(_is_about, version))

    eventually(lambda: "10.0.0.10" in (scene.control.actual.config or ""), "all is written down")
    for plan in range(len(scene.control.plans)):
        assert not {AddServer, WriteConfig} <= set(scene.kinds(plan))


def _is_about(version: int, told: FactsReported) -> bool:
    return isinstance(told.facts, ReconcilerFacts) and told.facts.snapshot_version == version


def test_what_did_not_take_effect_is_found_out_soon_and_counts_as_drift(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.lost = {TWO.address}

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 1.0, "it is repaired")
    eventually(lambda: scene.kinds() == [WriteConfig], "what was done is written down")
    assert scene.changes() == [[Install], [AddServer], [AddServer]]
    assert len(scene.control.actual.servers[0][1]) == 2


def test_without_a_thread_to_write_in_its_owner_writes(scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.run(with_endpoints(ONE, version=1))
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "config-writer":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(partial(_has_written, scene), "what was done is written down")
    # And once more, as it is over.
    scene.tell(SnapshotChanged(with_endpoints(ONE, version=3)))
    eventually(lambda: scene.reported().snapshot_version == 3, "the next change")
    eventually(lambda: scene.kinds() == [WriteConfig], "that is written down")
    assert scene.tree.actors(10.0)[-1].generation == 1


def test_what_is_not_written_down_yet_is_at_the_end(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(lambda: any(AddServer in kinds for kinds in scene.changes()), "the server is added")

    scene.tree.stop(10.0)

    assert "10.0.0.2" in (scene.control.actual.config or "")


def test_while_one_text_is_written_endpoints_still_change_and_are_written_down_after_it(
    scene: ReconcilerScene,
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    three, writing = endpoint("10.0.0.3"), being_written(scene)

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, three, version=3)))

    eventually(lambda: scene.reported().snapshot_version == 3, "the change is applied")
    assert running(scene).keys() == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    assert "10.0.0.2" not in (scene.control.actual.config or "")
    writing.set()
    eventually(lambda: "10.0.0.3" in (scene.control.actual.config or ""), "all is written down")


def test_while_a_text_is_written_another_structure_waits_for_it(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    writing = being_written(scene)

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9999)), version=3)))
    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9998)), version=4)))
    scene.tell(Publish())
    scene.settle()
    assert scene.kinds() == [AddServer]

    writing.set()

    eventually(lambda: scene.reported().snapshot_version == 4, "the new structure runs")
    assert [kind for plan in range(2, len(scene.control.plans)) for kind in scene.kinds(plan)] == [WriteConfig, Reload]
    assert not scene.reported().plans[0].drift


def test_a_text_that_cannot_be_written_is_told_and_tried_until_it_can(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.full = "no space left"

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))

    eventually(lambda: scene.reported().failure == "no space left", "the failure is told")
    tried = scene.metrics.registry.get_sample_value("hcc_plans_total", {"outcome": "failed"})
    eventually(
        lambda: scene.metrics.registry.get_sample_value("hcc_plans_total", {"outcome": "failed"}) != tried,
        "it is tried again",
    )
    told = [one.facts for one in scene.all_of(ADMIN, FactsReported) if isinstance(one.facts, ReconcilerFacts)]
    first = next(n for n, facts in enumerate(told) if facts.failure)
    assert all(facts.failure and not facts.applied for facts in told[first:])

    scene.control.full = ""

    eventually(lambda: scene.reported().applied, "it is written")
    assert "10.0.0.2" in (scene.control.actual.config or "")
    assert not scene.reported().failure


def test_news_that_change_nothing_take_nothing_from_a_text_that_could_not_be_written(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.full = "no space left"
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(lambda: scene.reported().failure == "no space left", "the failure is told")

    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=3)))
    scene.tell(Publish())
    scene.settle()
    assert scene.reported().failure == "no space left"
    scene.control.full = ""

    eventually(lambda: "10.0.0.2" in (scene.control.actual.config or ""), "it is written")
    eventually(lambda: scene.reported().snapshot_version == 3, "all is well")


def test_what_was_refused_and_waits_for_a_text_being_written_is_tried_after_that(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "RETRY_S", 0.2)
    scene.run(with_endpoints(ONE, version=1))
    scene.control.refusing = "no room for another process"
    scene.tell(SnapshotChanged(with_api(ONE, version=2)))
    eventually(lambda: "no room" in scene.reported().failure, "the failure is reported")
    scene.control.may_write.clear()
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, version=3)))
    await_writing(scene)
    scene.control.refusing = ""

    scene.tell(SnapshotChanged(with_api(ONE, TWO, version=4)))
    # The retry comes meanwhile.
    threading.Event().wait(0.4)
    scene.control.may_write.set()

    eventually(lambda: scene.reported().snapshot_version == 4, "the new structure runs")


def test_a_text_that_is_being_written_at_the_end_is_waited_for(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    writing = being_written(scene)
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, endpoint("10.0.0.3"), version=3)))
    eventually(lambda: scene.reported().snapshot_version == 3, "the change is applied")
    letting_go = threading.Timer(0.3, writing.set)
    letting_go.start()

    scene.tree.stop(10.0)

    letting_go.join()
    assert "10.0.0.3" in (scene.control.actual.config or "")


def test_what_was_done_is_written_down_though_more_is_gathered_just_then(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    monkeypatch.setattr(pace, "WINDOW_S", 0.5)
    monkeypatch.setattr(pace, "SHORT_WINDOW_S", 0.5)
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(lambda: scene.reported().snapshot_version == 2, "the change is applied")

    # Gathered for longer than it takes until what was done is to be written.
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO, endpoint("10.0.0.3"), version=3)))

    eventually(lambda: scene.kinds() == [WriteConfig], "all is written down")
    assert "10.0.0.3" in (scene.control.actual.config or "")


def await_writing(scene: ReconcilerScene) -> None:
    """Return when an endpoint is added, and that waits to be written."""
    control = scene.control
    eventually(lambda: scene.kinds() == [AddServer] and control.begun > len(control.plans), "it is being written")


def being_written(scene: ReconcilerScene) -> threading.Event:
    """Add an endpoint, and wait until that is being written; the event ends it."""
    scene.control.may_write.clear()
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    await_writing(scene)
    return scene.control.may_write


@pytest.mark.parametrize("state", [Listening.PAUSED, Listening.SHUT])
def test_a_listener_that_somebody_paused_or_shut_takes_connections_again(
    scene: ReconcilerScene, state: Listening
) -> None:
    scene.run(with_endpoints(ONE, version=1))
    first, *others = scene.control.actual.listeners
    scene.control.actual = replace(scene.control.actual, listeners=(replace(first, state=state), *others))

    scene.tell(_Resync())

    eventually(lambda: len(scene.reported().plans) == 2, "the repair is told")
    assert scene.kinds() == ([EnableListener] if state is Listening.PAUSED else [Reload])
    assert scene.reported().plans[0].drift


@pytest.fixture
def probing() -> Iterator[ReconcilerScene]:
    made = ReconcilerScene(probes=True)
    with playing(made):
        yield made


def admitting(*endpoints: Endpoint, version: int = 2, probing: bool = False) -> AdmissionChanged:
    peers = frozenset(Peer(one.address, one.port, one.identity) for one in endpoints)
    return AdmissionChanged(Admission(version, peers, probing))


def running(scene: ReconcilerScene) -> dict[str, bool]:
    """Address of each endpoint's server, and whether it gets traffic."""
    upstreams = (found for name, found in scene.control.actual.servers if name.endswith(":to"))
    return {one.address: one.enabled for found in upstreams for one in found}


def test_nothing_is_done_before_it_is_known_who_may_get_traffic(probing: ReconcilerScene) -> None:
    probing.give_credentials()
    probing.tell(SnapshotChanged(with_endpoints(ONE, version=1)))
    probing.tell(_Resync())
    probing.settle()
    assert probing.control.plans == []

    probing.tell(admitting(version=1, probing=True))

    probing.expect(PROCESS_SUPERVISOR, ConfigurationInstalled)
    probing.control.start()
    assert running(probing) == {"10.0.0.1": False}


def test_an_endpoint_waits_in_maintenance_until_it_is_admitted(probing: ReconcilerScene) -> None:
    probing.tell(admitting(version=1))
    probing.run(with_endpoints(ONE, version=1))
    assert running(probing) == {"10.0.0.1": False}

    probing.tell(admitting(ONE, version=1))

    eventually(lambda: running(probing) == {"10.0.0.1": True}, "the endpoint gets traffic")
    assert probing.changes()[-1] == [SetServerState]


@pytest.mark.parametrize("times", [{"PROBE_S": 5.0, "PROBE_EACH_S": 0.0}, {"PROBE_S": 0.0, "PROBE_EACH_S": 5.0}])
def test_an_endpoint_that_is_probed_quickly_comes_into_service_by_one_plan(
    probing: ReconcilerScene, monkeypatch: pytest.MonkeyPatch, times: dict[str, float]
) -> None:
    # Quickly: also on a machine that is slow.
    for name, seconds in {**times, "MOST_PROBE_S": 5.0}.items():
        monkeypatch.setattr(config_reconciler, name, seconds)
    probing.tell(admitting(ONE, version=1))
    probing.run(with_endpoints(ONE, version=1))
    before = len(probing.changes())

    probing.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    probing.tell(admitting(ONE, probing=True))
    probing.tell(admitting(ONE, TWO))

    eventually(lambda: running(probing) == {"10.0.0.1": True, "10.0.0.2": True}, "both get traffic")
    assert probing.changes()[before:] == [[AddServer]]


def test_who_is_silent_goes_to_maintenance_without_a_reload_and_comes_back(probing: ReconcilerScene) -> None:
    admitted = admitting(ONE, TWO, version=1).admission
    silent = replace(admitted, silent=(Peer(ONE.address, ONE.port, ONE.identity),))
    probing.tell(AdmissionChanged(admitted))
    probing.run(with_endpoints(ONE, TWO, version=1))

    probing.tell(AdmissionChanged(silent))
    eventually(lambda: running(probing) == {"10.0.0.1": False, "10.0.0.2": True}, "the silent one is out")
    assert probing.changes()[-1] == [SetServerState]

    probing.tell(AdmissionChanged(admitted))
    eventually(lambda: running(probing) == {"10.0.0.1": True, "10.0.0.2": True}, "it is back")
    assert probing.changes()[-1] == [SetServerState]


def test_who_is_refused_goes_to_maintenance_at_once(probing: ReconcilerScene) -> None:
    probing.tell(admitting(ONE, TWO, version=1))
    probing.run(with_endpoints(ONE, TWO, version=1))

    probing.tell(admitting(TWO, version=1))

    eventually(lambda: running(probing) == {"10.0.0.1": False, "10.0.0.2": True}, "the impostor is out")


def test_a_restarted_reconciler_asks_who_may_get_traffic_and_takes_nobody_out_meanwhile(
    probing: ReconcilerScene,
) -> None:
    probing.tell(admitting(ONE, version=1))
    probing.run(with_endpoints(ONE, version=1))
    before = len(probing.control.plans)

    probing.restart()
    probing.expect(VERIFIER, Publish)
    probing.give_credentials()
    probing.tell(SnapshotChanged(with_endpoints(ONE, version=1)))
    probing.tell(admitting(ONE, version=1))

    eventually(lambda: probing.reported().snapshot_version == 1, "it has seen all again")
    assert len(probing.control.plans) == before
    assert running(probing) == {"10.0.0.1": True}


def test_a_restarted_reconciler_follows_a_new_splitter_when_it_was_probed_who_serves(
    probing: ReconcilerScene,
) -> None:
    splits, legs = (Split("v1", 50.0), Split("v2", 50.0)), (resolver("v1"), resolver("v2"))
    chain = routed_chain(splits=splits, legs=legs)
    split = snapshot(routed_state(chain, {"v1.web": [ONE], "v2.web": [TWO]}, upstream("web")), version=2)
    probing.tell(admitting(ONE, version=1))
    probing.run(snapshot(upstream_state(upstream("web"), [ONE], protocol="http"), version=1))
    probing.restart()
    probing.expect(VERIFIER, Publish)
    probing.give_credentials()

    probing.tell(SnapshotChanged(split))
    probing.tell(admitting(ONE, probing=True))
    threading.Event().wait(0.3)
    assert running(probing) == {"10.0.0.1": True}
    assert len(probing.control.plans) == 1

    probing.tell(admitting(ONE, TWO))
    eventually(lambda: len(probing.control.plans) == 2, "it to be followed")
    assert probing.kinds() == [Reload]
    legs_run = {name: found for name, found in probing.control.actual.servers if ":to:v" in name}
    assert {name[-2:]: [one.enabled for one in found] for name, found in legs_run.items()} == {
        "v1": [True],
        "v2": [True],
    }


def test_who_may_get_traffic_of_a_snapshot_to_come_takes_nobody_out_before_it(probing: ReconcilerScene) -> None:
    probing.tell(admitting(ONE, version=1))
    probing.run(with_endpoints(ONE, version=1))

    probing.tell(admitting(TWO, version=3))
    probing.tell(Publish())
    probing.settle()
    threading.Event().wait(2 * pace.WINDOW_S)
    assert running(probing) == {"10.0.0.1": True}

    probing.tell(SnapshotChanged(with_endpoints(TWO, version=3)))

    eventually(lambda: running(probing) == {"10.0.0.2": True}, "one for the other")


def test_while_nobody_knows_who_the_new_endpoints_are_the_old_ones_serve(probing: ReconcilerScene) -> None:
    probing.tell(admitting(ONE, version=1))
    probing.run(with_endpoints(ONE, version=1))

    probing.tell(SnapshotChanged(with_endpoints(TWO)))
    eventually(lambda: probing.reported().snapshot_version == 2, "the snapshot is applied as far as can be")
    assert running(probing).get("10.0.0.1")

    probing.tell(admitting(TWO))

    eventually(lambda: running(probing) == {"10.0.0.2": True}, "one for the other")


def test_the_last_endpoint_that_turns_critical_is_out_however_late_the_probes_are_heard_of(
    probing: ReconcilerScene,
) -> None:
    probing.tell(admitting(ONE, version=1))
    probing.run(with_endpoints(ONE, version=1))

    probing.tell(SnapshotChanged(with_endpoints(replace(ONE, health=Health.CRITICAL))))
    eventually(lambda: probing.reported().snapshot_version == 2, "the snapshot is applied as far as can be")

    # They have nothing to say but that they know of it.
    probing.tell(admitting(ONE))
    eventually(lambda: running(probing) == {"10.0.0.1": False}, "it is out")
    assert probing.changes()[-1] == [SetServerState]


def test_very_many_new_endpoints_come_by_a_reload(scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hcc.haproxy.plan.MOST_ADDED", 2)
    scene.run(with_endpoints(ONE, version=1))
    # What runs is known by then.
    scene.tell(SnapshotChanged(with_endpoints(ONE, TWO)))
    eventually(lambda: scene.reported().snapshot_version == 2, "the change is applied")

    scene.tell(SnapshotChanged(with_endpoints(*(endpoint(f"10.0.0.{n}") for n in range(1, 9)), version=3)))

    eventually(lambda: scene.reported().snapshot_version == 3, "the change is applied")
    assert Reload in {kind for plan in range(len(scene.control.plans)) for kind in scene.kinds(plan)}


def test_a_new_worker_is_seen_before_it_is_believed(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    scene.control.lost = {TWO.address}

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9999), [ONE, TWO]), version=2)))

    eventually(lambda: len(scene.control.actual.servers[0][1]) == 2, "what it lacks is put right")
    assert scene.changes() == [[Install], [Reload], [AddServer]]


def test_whoever_has_a_map_in_haproxy_hears_of_a_new_worker(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))

    scene.tell(SnapshotChanged(snapshot(upstream_state(upstream("web", 9999), [ONE]), version=2)))

    for hearer in (AUTHORISER, VERIFIER):
        scene.expect(hearer, WorkerReplaced)


def test_of_a_new_worker_is_told_what_it_looks_at(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    role = Permission(False, headers=(HeaderRule("x-role", HeaderMatch.PRESENT),))
    ruled = Policy("web", "td", (Intention("api", Action.PERMISSIONS, 9, (role,)),), True, 2, http=True)

    scene.tell(SnapshotChanged(snapshot(proxy_=proxy(protocol=Protocol.HTTP), policy_=ruled, version=2)))

    assert scene.expect(AUTHORISER, WorkerReplaced).sight == sight_for(Judgement(ruled))
    assert sight_for(Judgement(ruled)).headers


def test_while_haproxy_is_down_nothing_is_bound(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    assert scene.reported().public_bound

    scene.tell(HAProxyDown("it died"))

    eventually(lambda: scene.reported().failure == "it died", "it is told")
    assert not scene.reported().public_bound
    assert not scene.reported().applied


def test_a_server_with_connections_is_deleted_when_they_are_over_and_to_wait_is_no_drift(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "PENDING_RETRY_S", 0.4)
    scene.run(with_endpoints(ONE, TWO, version=1))
    scene.control.busy = frozenset(("10.0.0.2:21000",))
    scene.tell(SnapshotChanged(with_endpoints(ONE)))
    eventually(lambda: running(scene) == {"10.0.0.1": True, "10.0.0.2": False}, "it is out of service")
    # It was looked at once more by then, and tried again.
    eventually(lambda: len(scene.control.plans) > 3, "it is tried again")

    scene.control.busy = frozenset()

    eventually(lambda: running(scene) == {"10.0.0.1": True}, "it is gone")
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 0.0


def test_beside_a_haproxy_that_runs_what_is_missing_is_waited_for_longer_than_at_a_start(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "FIRST_GRACE_S", 0.05)
    scene.run(with_endpoints(ONE, version=1))
    scene.restart()
    scene.expect(PROCESS_SUPERVISOR, Publish)
    scene.tell(SnapshotChanged(replace(snapshot(version=2), leaf=None, policy=None)))

    threading.Event().wait(0.5)

    assert len(scene.control.plans) == 1
    assert running(scene) == {"10.0.0.1": True}


@pytest.mark.parametrize("missing", ["certificate", "policy"])
def test_a_haproxy_that_runs_is_left_as_it_is_as_long_as_it_would_be_told_to_serve_nobody(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(config_reconciler, "ADOPTED_GRACE_S", 0.05)
    scene.run(with_endpoints(ONE, version=1))
    scene.restart()
    scene.expect(PROCESS_SUPERVISOR, Publish)
    whole = with_endpoints(ONE, TWO, version=3)

    scene.tell(HAProxyUp(1))
    if missing == "certificate":
        scene.tell(SnapshotChanged(replace(whole, version=2)))
    else:
        scene.give_credentials()
        scene.tell(SnapshotChanged(replace(whole, version=2, policy=None)))

    threading.Event().wait(0.5)
    assert len(scene.control.plans) == 1
    with pytest.raises(ControlError, match=f"no {missing} that can be used"):
        previewed(scene)
    scene.give_credentials()
    scene.tell(SnapshotChanged(whole))
    eventually(lambda: running(scene) == {"10.0.0.1": True, "10.0.0.2": True}, "it goes on when that is there")
    assert not any(plan.reloads for plan in scene.control.plans)


def test_a_haproxy_that_lets_everybody_in_does_not_go_on_where_intentions_are_to_be_enforced(
    scene: ReconcilerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reconciler, "ADOPTED_GRACE_S", 0.05)
    whole = with_endpoints(ONE, version=1)
    scene.run(whole)
    # As if that had been an hcc without intentions.
    text = scene.control.actual.config or ""
    open_to_all = "".join(line for line in text.splitlines(True) if "txn.hcc.allowed" not in line)
    scene.control.actual = replace(scene.control.actual, config=open_to_all)
    scene.restart()

    scene.tell(HAProxyUp(1))
    scene.give_credentials()
    scene.tell(SnapshotChanged(replace(whole, version=2, policy=None)))

    eventually(lambda: not any(one.name == PUBLIC for one in scene.control.actual.listeners), "its listener is closed")


def test_without_a_public_listener_none_is_said_to_be_bound(scene: ReconcilerScene) -> None:
    web = upstream_state(upstream("web"), [ONE])

    scene.run(snapshot(web, proxy_=proxy(local_port=0, upstreams=(web.upstream,))))

    assert scene.reported().applied
    assert not scene.reported().public_bound


def test_what_somebody_changed_in_haproxy_and_in_its_file_is_one_drift(scene: ReconcilerScene) -> None:
    scene.run(with_endpoints(ONE, version=1))
    text, (name, servers) = scene.control.actual.config, scene.control.actual.servers[0]
    changed = (name, (replace(servers[0], weight=99),))
    scene.control.actual = replace(scene.control.actual, config="somebody's", servers=(changed,))

    scene.tell(_Resync())

    eventually(lambda: scene.control.actual.config == text, "it is written again")
    eventually(partial(_has_written, scene), "it is noted")
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 1.0
