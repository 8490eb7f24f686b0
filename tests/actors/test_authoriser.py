import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from hcc.actors import authoriser, line_wait
from hcc.actors.authoriser import Authoriser, _CutAgain, _EndHold, _Resync, _TellStopping
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    CallersChanged,
    CallersMet,
    HAProxyDown,
    HAProxyUp,
    PolicyChanged,
    Preview,
    Publish,
    WorkerReplaced,
)
from hcc.actors.readiness import CallerFacts
from hcc.haproxy import hold
from hcc.haproxy.control import ControlError
from hcc.haproxy.map_text import MapChange
from hcc.haproxy.sight import Sight, sight_for
from hcc.mesh.caller import Remembered
from hcc.mesh.caller_certificate import certificate_digest, remembered_caller
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.metrics import Metrics
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually
from tests.fakes import FakeMaps
from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri, uri_names

MESH = Authority()
WEB = MESH.service("web").der()
DB = MESH.service("db").der()
NAMES = (ADMIN, CONFIG_RECONCILER, CONSUL_WATCHER, PROCESS_SUPERVISOR)


def policy(version: int = 1, default: bool = True, **actions: Action) -> Policy:
    intentions = tuple(Intention(source, action, 9) for source, action in actions.items())
    return Policy("server", TRUST_DOMAIN, intentions, default, version)


class AuthoriserScene(Scene):
    def __init__(self, maps: FakeMaps | None = None, *, cuts: bool = True) -> None:
        self.maps = maps or FakeMaps()
        self.metrics = Metrics()
        kwargs = {"maps": self.maps, "metrics": self.metrics, "resync_s": 300.0, "cuts": cuts}
        super().__init__(AUTHORISER, Authoriser, kwargs, NAMES)

    def verdicts(self, **expected: str) -> None:
        wanted = {service_uri(name): verdict for name, verdict in expected.items()}
        eventually(lambda: self.maps.loaded["verdicts"] == wanted, f"{wanted}, not {self.maps.loaded['verdicts']}")

    def knows(self, *ders: bytes) -> None:
        wanted = {certificate_digest(der) for der in ders}
        eventually(lambda: set(self.maps.loaded["identities"]) == wanted, f"{len(wanted)} certificates")


def remembered(der: bytes) -> Remembered:
    found = remembered_caller(der)
    assert found is not None
    return found


@pytest.fixture
def scene() -> Iterator[AuthoriserScene]:
    made = AuthoriserScene()
    with playing(made):
        yield made


def test_a_caller_that_was_met_is_remembered_with_its_verdict_first(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    eventually(lambda: scene.maps.done == ["store verdicts"], "that there are none is on disk")
    scene.maps.done.clear()

    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))

    scene.knows(WEB)
    scene.verdicts(web="allow")
    assert scene.maps.done == ["change verdicts", "store verdicts", "change identities"]
    assert scene.expect(CONFIG_RECONCILER, CallersChanged, lambda told: bool(told.callers)).callers == ("web:dc1",)
    eventually(lambda: scene.facts(ADMIN, CallerFacts) == CallerFacts((("web:dc1", "allow"),), 1), "the facts")


def test_the_certificates_of_a_new_caller_wait_for_its_line_and_those_of_others_do_not(scene: AuthoriserScene) -> None:
    scene.maps.with_line = {"db:dc1"}
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((DB, "10.0.0.2:4711"),)))
    scene.knows(DB)

    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))

    scene.expect(CONFIG_RECONCILER, CallersChanged, lambda told: told.callers == ("db:dc1", "web:dc1"))
    renewed = MESH.service("db").der()
    scene.tell(CallersMet(((renewed, "10.0.0.2:4712"),)))
    scene.knows(DB, renewed)
    scene.verdicts(web="allow", db="allow")
    scene.maps.with_line = {"db:dc1", "web:dc1"}
    scene.knows(DB, renewed, WEB)


def test_callers_that_come_one_after_the_other_do_not_put_off_the_look_for_lines(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_wait, "LINE_LOOK_S", 0.3)
    scene.tell(PolicyChanged(policy()))

    for number in range(100):
        scene.tell(CallersMet(((MESH.service(f"caller{number}").der(), f"10.0.0.1:{number}"),)))
        time.sleep(0.05)
        if scene.maps.loaded["identities"]:
            break

    assert scene.maps.loaded["identities"]


def test_a_line_that_does_not_come_is_not_waited_for_without_end(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_wait, "LINE_WITHIN_S", 0.1)
    scene.maps.with_line = set()
    scene.tell(PolicyChanged(policy()))

    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))

    scene.knows(WEB)


@pytest.mark.parametrize("has_lines", [False, True])
def test_where_callers_have_no_lines_or_nobody_is_cut_no_line_is_waited_for(has_lines: bool) -> None:
    scene = AuthoriserScene(cuts=not has_lines)
    scene.maps.has_lines, scene.maps.with_line = has_lines, set()
    with playing(scene):
        scene.tell(PolicyChanged(policy()))

        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))

        scene.knows(WEB)


def test_to_wait_for_a_line_is_no_difference_no_drift_and_nothing_for_a_new_worker(scene: AuthoriserScene) -> None:
    scene.maps.with_line = set()
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")

    for news in (_Resync(), WorkerReplaced(), HAProxyUp(1)):
        scene.tell(news)
        assert scene.tree.ask_actor(AUTHORISER, Preview(), 5.0) == ()

    assert scene.maps.loaded["identities"] == {}
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 0.0
    # One that HAProxy has is not taken from it.
    scene.maps.loaded["identities"] = {certificate_digest(WEB): remembered(WEB).text()}
    scene.tell(_Resync())
    assert scene.tree.ask_actor(AUTHORISER, Preview(), 5.0) == ()
    assert set(scene.maps.loaded["identities"]) == {certificate_digest(WEB)}


def test_what_waits_for_a_line_is_on_disk_when_the_actor_ends() -> None:
    scene = AuthoriserScene()
    scene.maps.with_line = set()
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
        scene.verdicts(web="allow")

    assert set(scene.maps.stored["identities"]) == {certificate_digest(WEB)}
    assert scene.maps.loaded["identities"] == {}


def test_more_certificates_of_known_callers_are_told_together(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)
    scene.maps.done.clear()
    monkeypatch.setattr(authoriser, "GATHER_S", 0.2)
    more = [MESH.service("web").der() for _ in range(3)]

    for der in more:
        scene.tell(CallersMet(((der, "10.0.0.1:4712"),)))

    scene.knows(WEB, *more)
    assert scene.maps.done == ["change identities"]


def test_a_denial_waits_for_no_crowd_of_new_callers() -> None:
    class Slow(FakeMaps):
        def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
            time.sleep(0.2)
            return super().change_verdicts(change, wanted)

    crowd = [MESH.service(f"caller{number}").der() for number in range(40)]
    scene = AuthoriserScene(Slow())
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
        scene.verdicts(web="allow")
        for number, der in enumerate(crowd):
            scene.tell(CallersMet(((der, f"10.0.0.1:{number}"),)))

        began = scene.maps.done.count("change verdicts")
        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

        eventually(lambda: scene.maps.loaded["verdicts"].get(service_uri("web")) == "deny", "the denial")
        # One for each of them would be forty.
        assert scene.maps.done.count("change verdicts") - began < 10
        scene.knows(WEB, *crowd)


def test_a_renewed_certificate_changes_no_verdict(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)
    renewed = MESH.service("web").der()

    scene.tell(CallersMet(((renewed, "10.0.0.1:4712"),)))

    scene.knows(WEB, renewed)
    assert scene.maps.done.count("change verdicts") == 1


def test_a_caller_that_becomes_denied_is_denied_first_and_cut_then(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    scene.knows(WEB, DB)
    scene.maps.done.clear()
    others = [("db:dc1", "10.0.0.2:4712"), ("app", "10.0.0.2:4711")]
    scene.maps.sessions = [*others, ("web:dc1", "10.0.0.1:4712"), ("app", "10.0.0.1:4711")]
    scene.maps.comes_then = [("web:dc1", "10.0.0.1:4713")]

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    scene.verdicts(web="deny", db="allow")
    eventually(lambda: scene.maps.sessions == others, "the cut, and one more for who just came in")
    scene.settle()
    assert scene.maps.done == ["change verdicts", "cut", "store verdicts", "cut"]
    # The line of who is denied stays, for when it is allowed again.
    assert scene.all_of(CONFIG_RECONCILER, CallersChanged)[-1].callers == ("db:dc1", "web:dc1")


def test_a_full_disk_keeps_nobody_in_and_nobody_out_and_what_it_did_not_take_is_written_later(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "STORE_S", 0.05)
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)
    scene.maps.disk_full = True

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
    scene.tell(CallersMet(((DB, "10.0.0.2:4711"),)))

    scene.verdicts(web="deny", db="allow")
    scene.knows(WEB, DB)
    eventually(lambda: caplog.text.count("No space left on device") == 1, "it is said, and once")
    assert scene.maps.stored["verdicts"] == {}

    scene.maps.disk_full = False

    eventually(lambda: scene.maps.stored["verdicts"] == scene.maps.loaded["verdicts"], "the verdicts on disk")
    eventually(lambda: scene.maps.stored["identities"] == scene.maps.loaded["identities"], "the identities on disk")
    assert scene.generation() == 1


def test_where_nothing_is_enforced_nobody_is_cut() -> None:
    scene = AuthoriserScene(cuts=False)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
        scene.verdicts(web="allow")
        scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
        scene.verdicts(web="deny")
    assert "cut" not in scene.maps.done
    assert scene.maps.sessions


def test_who_was_denied_while_haproxy_reloaded_is_cut_when_that_is_over_and_nobody_else(
    scene: AuthoriserScene,
) -> None:
    scene.tell(PolicyChanged(policy(web=Action.DENY)))
    eventually(lambda: scene.maps.stopping_told == 1, "the policy")
    # In a worker that stops, of which the master did not tell.
    scene.maps.stopping = {service_uri("web"): "allow", service_uri("db"): "allow"}
    there = [("web:dc1", "10.0.0.1:4711"), ("db:dc1", "10.0.0.2:4711"), ("app", "10.0.0.3:4711")]
    scene.maps.stopping_sessions = there

    scene.tell(WorkerReplaced())

    eventually(lambda: [line for line, _ in scene.maps.stopping_sessions] == ["db:dc1", "app"], "who is denied is cut")
    assert service_uri("web") not in scene.maps.stopping


def test_a_worker_that_stops_and_does_not_answer_is_told_of_a_denial_when_it_does(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.01)
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    scene.verdicts(web="allow", db="allow")
    scene.maps.stopping = dict(scene.maps.loaded["verdicts"])
    scene.maps.stopping_sessions = [("web:dc1", "10.0.0.1:1"), ("app", "10.9.9.9:1"), ("db:dc1", "10.0.0.2:1")]
    scene.tell(HAProxyUp(1))
    scene.maps.stopping_hangs = 5

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    eventually(lambda: not scene.maps.stopping_hangs, "it answers at last")
    eventually(lambda: scene.maps.stopping[service_uri("web")] == "deny", "the denial")
    # With whom nobody knows, as in the worker that serves.
    eventually(lambda: scene.maps.stopping_sessions == [("db:dc1", "10.0.0.2:1")], "the cut")
    assert scene.maps.loaded["verdicts"][service_uri("web")] == "deny"


def test_workers_that_stop_hear_of_denials_while_the_one_that_serves_is_silent(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    scene.verdicts(web="allow", db="allow")
    scene.settle()
    monkeypatch.setattr(authoriser, "RETRY_S", 60.0)
    monkeypatch.setattr(authoriser, "MAX_RETRY_S", 60.0)
    scene.maps.stopping = {service_uri("web"): "allow", service_uri("db"): "rules-before"}
    scene.maps.stopping_sessions = [("web:dc1", "10.0.0.1:1"), ("db:dc1", "10.0.0.2:1"), ("app", "10.9.9.9:1")]
    scene.maps.silent = True

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    eventually(lambda: web_verdict(scene.maps.stopping) == "deny", "the denial")
    eventually(lambda: len(scene.maps.stopping_sessions) == 2, "the cut")
    # It may be held, which only the one that serves can tell.
    assert scene.maps.stopping[service_uri("db")] == "rules-before"
    scene.tell(PolicyChanged(policy(3, web=Action.DENY, db=Action.DENY)))
    eventually(lambda: scene.maps.stopping[service_uri("db")] == "deny", "the next denial")
    assert scene.maps.loaded["verdicts"][service_uri("web")] == "allow"


def test_a_denial_goes_to_workers_that_stop_at_once_whatever_they_are_spared(
    scene: AuthoriserScene, before_reload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "HOLD_S", 60.0)
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the new rules are on disk")
    scene.maps.stopping = dict(scene.maps.loaded["verdicts"])

    scene.tell(PolicyChanged(policy(3, web=Action.DENY)))

    eventually(lambda: web_verdict(scene.maps.stopping) == "deny", "the denial")


def test_a_successor_tells_workers_that_stop_what_its_predecessor_could_not(scene: AuthoriserScene) -> None:
    # By a predecessor, which ended before it had told the workers that stop.
    scene.maps.loaded["verdicts"] = {service_uri("web"): "deny"}
    scene.maps.loaded["identities"] = {certificate_digest(WEB): remembered(WEB).text()}
    scene.maps.stopping = {service_uri("web"): "allow"}
    scene.restart()

    scene.tell(PolicyChanged(policy(web=Action.DENY)))

    eventually(lambda: scene.maps.stopping == {service_uri("web"): "deny"}, "the denial")


def test_whom_nobody_knows_is_not_cut_in_a_worker_that_stops_by_a_later_policy(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.01)
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.maps.stopping_sessions = [("app", "10.9.9.9:1"), ("web:dc1", "10.0.0.1:1")]
    scene.tell(HAProxyUp(1))
    scene.maps.stopping_hangs = 1_000_000
    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
    scene.verdicts(web="deny")
    eventually(lambda: scene.maps.stopping_hangs < 999_998, "tries")
    scene.tell(PolicyChanged(policy(3, web=Action.ALLOW)))
    scene.verdicts(web="allow")

    scene.maps.stopping = {service_uri("web"): "deny"}
    scene.maps.stopping_hangs = 0

    eventually(lambda: scene.maps.stopping == {service_uri("web"): "allow"}, "the last verdict")
    assert len(scene.maps.stopping_sessions) == 2


def test_whom_nobody_knows_is_cut_a_second_time_in_workers_that_stop_too(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "CUT_AGAIN_S", 60.0)
    scene.tell(PolicyChanged(policy()))
    eventually(lambda: scene.maps.stopping_told == 1, "the policy")
    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
    eventually(lambda: scene.maps.stopping_told == 2, "the denial")
    scene.maps.stopping_sessions = [("app", "10.9.9.9:1")]

    scene.tell(_CutAgain())

    eventually(lambda: not scene.maps.stopping_sessions, "the cut")


def test_where_no_haproxy_runs_workers_that_stop_are_owed_nothing_any_more(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "CUT_AGAIN_S", 60.0)
    scene.tell(HAProxyUp(1))
    deals_with(scene, policy())
    scene.maps.stopping_hangs = 1_000_000
    deals_with(scene, policy(2, web=Action.DENY))
    scene.tell(HAProxyDown("ended"))
    scene.tell(_TellStopping())
    scene.settle()

    scene.maps.stopping_sessions = [("web:dc1", "10.0.0.1:1"), ("app", "10.9.9.9:1")]
    scene.maps.stopping_hangs = 0
    scene.tell(HAProxyUp(2))

    # Of another HAProxy: whom nobody knows there came under the policy that counts.
    eventually(lambda: scene.maps.stopping_sessions == [("app", "10.9.9.9:1")], "who is denied is cut, nobody else")


def test_a_second_look_for_sessions_that_fails_is_made_again(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.01)
    monkeypatch.setattr(authoriser, "CUT_AGAIN_S", 60.0)
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
    eventually(lambda: "cut" in scene.maps.done, "the first look")

    scene.maps.sessions = [("web:dc1", "10.0.0.1:4712"), ("app", "10.9.9.9:1")]
    scene.maps.failing_cuts = 2
    scene.tell(_CutAgain())

    eventually(lambda: not scene.maps.failing_cuts, "two looks that fail")
    eventually(lambda: not scene.maps.sessions, "the cut")


def test_a_caller_allowed_again_is_not_cut(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy(default=False, web=Action.ALLOW)))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.tell(PolicyChanged(policy(2, default=False)))
    scene.verdicts(web="deny")
    scene.tell(PolicyChanged(policy(3, default=False, web=Action.ALLOW)))
    scene.verdicts(web="allow")
    # Its line may not be there again yet, so that nobody knows whose the second one is.
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711"), ("app", "10.0.0.1:4712")]

    eventually(lambda: scene.maps.done.count("cut") == 2, "the second look")
    assert len(scene.maps.sessions) == 2


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        # It came while hcc was away, or its certificate has expired: the book does not know it.
        (policy(1), policy(2, web=Action.DENY), ["db:dc1"]),
        (policy(1, False, web=Action.ALLOW, db=Action.ALLOW), policy(2, False, db=Action.ALLOW), ["db:dc1"]),
        # Whom nobody knows is cut only when somebody is denied who was not.
        (policy(1, db=Action.DENY), policy(2), ["web:dc1", "db:dc1", "app"]),
        (policy(1), policy(2, web=Action.ALLOW), ["web:dc1", "db:dc1", "app"]),
    ],
)  # fmt: skip
def test_callers_that_the_book_does_not_know_are_cut_when_they_become_denied(
    scene: AuthoriserScene, before: Policy, after: Policy, left: list[str]
) -> None:
    scene.tell(PolicyChanged(before))
    eventually(lambda: scene.maps.done == ["store verdicts"], "the policy")
    scene.maps.sessions = [(line, "10.0.0.1:4711") for line in ("web:dc1", "db:dc1", "app")]

    scene.tell(PolicyChanged(after))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4712"),)))

    scene.knows(WEB)
    assert [line for line, _ in scene.maps.sessions] == left


def deals_with(scene: AuthoriserScene, policy: Policy) -> None:
    """Tell of a policy, and wait until it was dealt with: of two that wait only the newer counts."""
    scene.tell(PolicyChanged(policy))
    scene.settle()


@pytest.mark.parametrize("more", [False, True])
def test_sessions_that_could_not_be_cut_are_cut_as_soon_as_haproxy_answers(scene: AuthoriserScene, more: bool) -> None:
    deals_with(scene, policy())
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene.maps.silent = True
    deals_with(scene, policy(2, web=Action.DENY))
    if more:
        # This one denies nobody who was let in by the one before.
        deals_with(scene, policy(3, web=Action.DENY, db=Action.ALLOW))
    assert scene.maps.sessions

    scene.maps.silent = False

    eventually(lambda: not scene.maps.sessions, "the cut")


def test_sessions_of_another_trust_domain_that_could_not_be_cut_are_cut_under_a_later_policy(
    scene: AuthoriserScene,
) -> None:
    other = "22222222-2222-2222-2222-222222222222.consul"
    deals_with(scene, policy())
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene.maps.silent = True
    for version in (2, 3):
        deals_with(scene, replace(policy(version), trust_domain=other))
    assert scene.maps.sessions

    scene.maps.silent = False

    eventually(lambda: not scene.maps.sessions, "the cut, though that policy lets their namesakes in")


def test_sessions_of_a_running_haproxy_that_cannot_be_reached_are_cut_when_it_can(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.tell(HAProxyUp(1))
    deals_with(scene, policy())
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene.maps.running = False

    # There is no verdict to be changed: the book does not know this caller.
    deals_with(scene, policy(2, web=Action.DENY))

    eventually(lambda: "nobody listens on its sockets" in caplog.text, "an error")
    scene.maps.running = True
    eventually(lambda: not scene.maps.sessions, "the cut")


def test_sessions_on_a_line_whose_name_is_no_callers_are_cut_with_those_that_are_denied(
    scene: AuthoriserScene,
) -> None:
    deals_with(scene, policy())
    scene.maps.sessions = [("a:b:c:d:e:f:g", "10.0.0.1:4711"), ("db:dc1", "10.0.0.2:4711")]

    deals_with(scene, policy(2, web=Action.DENY))

    eventually(lambda: scene.maps.sessions == [("db:dc1", "10.0.0.2:4711")], "the cut")


def test_a_denial_that_a_running_haproxy_cannot_be_told_is_an_error_and_tried_again(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.tell(HAProxyUp(1))
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene.maps.running = False

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    eventually(lambda: "nobody listens on its sockets" in caplog.text, "an error")
    scene.maps.running = True
    scene.verdicts(web="deny")
    eventually(lambda: not scene.maps.sessions, "the cut")


class Blinking(FakeMaps):
    """Nobody listens the next time that verdicts are to be changed, and at once somebody does again."""

    blinks = False

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        if self.blinks:
            self.blinks = False
            return False
        return super().change_verdicts(change, wanted)


def test_a_denial_that_haproxy_did_not_hear_is_told_again_though_it_listens_by_now() -> None:
    maps = Blinking()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(HAProxyUp(1))
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
        scene.verdicts(web="allow")
        assert scene.tree.ask_actor(AUTHORISER, Preview(), 5.0) == ()
        maps.blinks = True

        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

        scene.verdicts(web="deny")


def test_where_no_haproxy_runs_there_is_nobody_to_be_told_of_a_denial(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.tell(HAProxyUp(1))
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.maps.running = False
    scene.tell(HAProxyDown("ended"))

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    eventually(lambda: scene.maps.stored["verdicts"] == {service_uri("web"): "deny"}, "what the next one starts with")
    assert "not up to date" not in caplog.text


def test_callers_of_another_trust_domain_are_cut_and_forgotten(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711"), ("db:dc1", "10.0.0.2:4711")]
    other = "22222222-2222-2222-2222-222222222222.consul"

    scene.tell(PolicyChanged(replace(policy(2), trust_domain=other)))

    scene.knows()
    scene.verdicts()
    eventually(lambda: not scene.maps.sessions, "the cut")
    renewed = Authority().leaf(*uri_names(service_uri("web", other))).der()
    # A worker may not have heard of it yet.
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (renewed, "10.0.0.1:4712"))))
    scene.knows(renewed)
    wanted = {service_uri("web", other): "allow"}
    eventually(lambda: scene.maps.loaded["verdicts"] == wanted, "its verdict, which is not that of its namesake")


def test_what_a_worker_tells_of_a_certificate_is_not_believed_but_read(scene: AuthoriserScene) -> None:
    two = MESH.leaf(*uri_names(service_uri("web"), service_uri("db")))
    scene.tell(PolicyChanged(policy()))

    scene.tell(CallersMet(((b"no certificate", "10.0.0.1:1"), (two.der(), "10.0.0.1:2"), (WEB, "10.0.0.1:3"))))

    scene.knows(WEB)
    scene.verdicts(web="allow")


def test_a_caller_whom_a_worker_let_in_by_an_older_policy_is_cut(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy(web=Action.ALLOW)))
    scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
    scene.verdicts(web="allow")
    scene.tell(PolicyChanged(policy(2, web=Action.DENY, db=Action.DENY)))
    scene.verdicts(web="deny")
    eventually(lambda: scene.maps.done.count("cut") == 2, "who was denied is cut")
    scene.maps.sessions = [("app", "10.0.0.2:1")]

    scene.tell(CallersMet(((DB, "10.0.0.2:1"),)))

    scene.verdicts(web="deny", db="deny")
    eventually(lambda: not scene.maps.sessions, "the cut")


def test_a_new_worker_of_haproxy_is_told_what_it_should_remember(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)

    for news in (WorkerReplaced(), HAProxyUp(1)):
        scene.maps.loaded |= {"identities": {"F" * 64: "stale|x|1"}, "verdicts": {service_uri("web"): "deny"}}
        scene.tell(news)
        scene.knows(WEB)
        scene.verdicts(web="allow")
    scene.tell(_Resync())
    scene.settle()
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 0.0


def test_while_no_haproxy_runs_the_verdicts_are_on_disk_for_the_next(scene: AuthoriserScene) -> None:
    scene.maps.running = False
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))

    eventually(lambda: scene.maps.stored["verdicts"] == {service_uri("web"): "allow"}, "the verdict on disk")
    eventually(lambda: certificate_digest(WEB) in scene.maps.stored["identities"], "the identity on disk")


def test_a_restarted_actor_goes_on_with_what_haproxy_remembers(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)

    scene.restart()
    scene.expect(CONSUL_WATCHER, Publish)
    # Whether HAProxy runs, without which one that cannot be reached would be taken for none.
    scene.expect(PROCESS_SUPERVISOR, Publish)
    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    scene.verdicts(web="deny")
    scene.knows(WEB)
    eventually(lambda: not scene.maps.sessions, "the cut")


def remembering(der: bytes, verdict: str) -> FakeMaps:
    """The maps of a HAProxy that an earlier hcc left."""
    maps, found = FakeMaps(), remembered_caller(der)
    assert found is not None
    maps.loaded["identities"] = {certificate_digest(der): found.text()}
    maps.stored["identities"] = dict(maps.loaded["identities"])
    maps.loaded["verdicts"] = {service_uri("web"): verdict}
    return maps


def test_who_may_have_a_line_is_told_though_nothing_changed_in_haproxy() -> None:
    scene = AuthoriserScene(remembering(WEB, "allow"))
    with playing(scene):
        scene.tell(PolicyChanged(policy()))

        assert scene.expect(CONFIG_RECONCILER, CallersChanged).callers == ("web:dc1",)
        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
        scene.verdicts(web="deny")
        scene.tell(Publish())
        eventually(lambda: len(scene.all_of(CONFIG_RECONCILER, CallersChanged)) == 2, "it is told again")
        assert scene.all_of(CONFIG_RECONCILER, CallersChanged)[-1].callers == ("web:dc1",)


@pytest.mark.parametrize(("action", "left"), [(Action.ALLOW, 1), (Action.DENY, 0)])
def test_verdicts_that_an_earlier_hcc_left_by_name_are_replaced_and_cut_only_who_is_denied(
    action: Action, left: int
) -> None:
    maps = remembering(WEB, "allow")
    maps.loaded["verdicts"] = {"web:dc1": "allow"}
    maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy(web=action)))

        scene.verdicts(web=action.value)
        scene.expect(CONFIG_RECONCILER, CallersChanged, lambda told: told.callers == ("web:dc1",))
        eventually(lambda: len(scene.maps.sessions) == left, "no session that is denied")


def test_maps_that_could_not_be_read_get_no_second_entry() -> None:
    maps = remembering(WEB, "allow")
    maps.silent = True
    maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    scene = AuthoriserScene(maps)
    with playing(scene):
        eventually(lambda: bool(scene.maps.failed), "it tried to read")
        scene.maps.silent = False
        scene.tell(PolicyChanged(policy(web=Action.DENY)))

        scene.verdicts(web="deny")
        eventually(lambda: not scene.maps.sessions, "the cut")


def test_certificates_that_expired_meanwhile_are_not_taken_over() -> None:
    maps = FakeMaps()
    old = Remembered(ServiceIdentity(TRUST_DOMAIN, "old", "dc1"), 1_000)
    found = remembered_caller(WEB)
    assert found is not None
    maps.loaded["identities"] = {"A" * 64: old.text(), certificate_digest(WEB): found.text(), "B" * 64: "nonsense"}
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(HAProxyUp(1))
        scene.knows(WEB)
        scene.verdicts(web="allow")


def test_a_haproxy_that_does_not_answer_is_told_as_soon_as_it_does(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)

    scene.maps.sessions = [("web:dc1", "10.0.0.1:4711")]
    with caplog.at_level(logging.ERROR):
        scene.maps.silent = True
        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
        eventually(lambda: "not up to date" in caplog.text, "a word about it")
    scene.settle()
    assert scene.maps.stored["verdicts"] == {service_uri("web"): "deny"}
    scene.maps.silent = False

    scene.verdicts(web="deny")
    eventually(lambda: not scene.maps.sessions, "the cut")


def ruled(version: int, *permissions: Permission) -> Policy:
    intention = Intention("web", Action.PERMISSIONS, 9, permissions)
    return Policy("server", TRUST_DOMAIN, (intention,), False, version, http=True)


def test_rules_are_there_before_a_verdict_names_them_and_go_after_the_last_one(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy(default=False, web=Action.ALLOW)))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.verdicts(web="allow")
    scene.knows(WEB)
    scene.settle()
    scene.maps.done.clear()
    read = Permission(True, PathRule(PathMatch.PREFIX, "/read"))

    scene.tell(PolicyChanged(ruled(2, read)))

    eventually(lambda: scene.maps.loaded["verdicts"][service_uri("web")].startswith("rules-"), "the rules")
    name = scene.maps.loaded["verdicts"][service_uri("web")]
    scene.settle()
    assert scene.maps.done == ["replace rules", "change verdicts", "store verdicts"]
    assert [verdict for entry, verdict in scene.maps.loaded["rules"].items() if name in entry] == ["allow", "deny"]
    assert scene.maps.stored["rules"] == scene.maps.loaded["rules"]
    scene.tell(PolicyChanged(policy(3)))
    eventually(lambda: scene.maps.loaded["rules"] == {}, "no rules")
    scene.verdicts(web="allow")


def test_rules_that_haproxy_does_not_take_hold_up_no_verdict_and_are_not_what_it_starts_with(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.05)
    read = Permission(True, PathRule(PathMatch.PREFIX, "/read"))
    scene.tell(PolicyChanged(ruled(1, read)))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    eventually(lambda: scene.maps.loaded["verdicts"].get(service_uri("db")) == "deny", "the verdicts")
    before = dict(scene.maps.loaded["rules"])
    scene.maps.refusing_rules = True
    db = Intention("db", Action.PERMISSIONS, 9, (Permission(True, PathRule(PathMatch.PREFIX, "/write")),))

    scene.tell(PolicyChanged(replace(ruled(2), intentions=(Intention("web", Action.DENY, 9), db))))

    eventually(lambda: scene.maps.loaded["verdicts"][service_uri("web")] == "deny", "the denial")
    eventually(lambda: scene.maps.stored["verdicts"] == scene.maps.loaded["verdicts"], "the verdicts on disk")
    assert scene.maps.loaded["rules"] == scene.maps.stored["rules"] == before
    scene.maps.refusing_rules = False
    eventually(lambda: "/write" in "".join(scene.maps.loaded["rules"]), "the rules, as soon as it takes them")
    eventually(lambda: scene.maps.stored["rules"] == scene.maps.loaded["rules"], "and on disk")


def test_permissions_that_are_too_long_for_haproxy_are_told(
    scene: AuthoriserScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/" + "a" * 20_000)))))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    eventually(lambda: scene.maps.loaded["verdicts"].get(service_uri("web"), "").startswith("rules-"), "the verdict")
    assert scene.maps.loaded["rules"] == {}
    assert caplog.text.count("permissions of 1 intentions are too long for HAProxy") == 1


def test_until_haproxy_looks_at_another_header_the_rules_are_there_for_both(scene: AuthoriserScene) -> None:
    scene.tell(HAProxyUp(1))
    scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/read")))))
    eventually(lambda: len(scene.maps.loaded["rules"]) == 2, "the rules")
    by_header = Permission(True, PathRule(PathMatch.PREFIX, "/read"), (HeaderRule("x-role", HeaderMatch.PRESENT),))

    scene.tell(PolicyChanged(ruled(2, Permission(True, methods=("GET",)), by_header)))
    eventually(lambda: len(scene.maps.loaded["rules"]) == 3, "rules for the worker to come")
    scene.tell(WorkerReplaced())
    eventually(lambda: len(scene.maps.loaded["rules"]) == 3, "no others")


def by_role(version: int, *more: Intention) -> Policy:
    """Everything but the role of a fool; HAProxy has to be reloaded to look at it."""
    role = HeaderRule("x-role", HeaderMatch.EXACT, "fool")
    made = ruled(version, Permission(False, headers=(role,)), Permission(True, PathRule(PathMatch.PREFIX, "/")))
    return replace(made, intentions=(*made.intentions, *more))


@pytest.fixture
def before_reload(scene: AuthoriserScene) -> str:
    """HAProxy runs, looks at no header, and lets web in by rules of this name."""
    scene.tell(HAProxyUp(1))
    scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/read")))))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    scene.knows(WEB, DB)
    name = scene.maps.loaded["verdicts"][service_uri("web")]
    assert name.startswith("rules-")
    return name


def web_verdict(entries: Mapping[str, str]) -> str:
    return entries[service_uri("web")]


def test_until_haproxy_looks_at_another_header_a_caller_goes_on_by_the_rules_before(
    scene: AuthoriserScene, before_reload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "HOLD_S", 60.0)
    monkeypatch.setattr(hold, "HOLD_STOPPING_S", 60.0)
    scene.tell(PolicyChanged(by_role(2)))

    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the new rules are on disk")
    assert web_verdict(scene.maps.loaded["verdicts"]) == before_reload
    assert before_reload in "".join(scene.maps.loaded["rules"])
    # As a HAProxy that is reloaded does.
    coming = web_verdict(scene.maps.stored["verdicts"])
    scene.maps.stopping = dict(scene.maps.loaded["verdicts"])
    scene.maps.loaded = {name: dict(entries) for name, entries in scene.maps.stored.items()}
    assert coming in "".join(scene.maps.loaded["rules"])
    scene.tell(WorkerReplaced())

    eventually(lambda: before_reload not in "".join(scene.maps.loaded["rules"]), "the old rules are gone")
    assert web_verdict(scene.maps.loaded["verdicts"]) == coming
    scene.settle()
    assert web_verdict(scene.maps.stopping) == before_reload
    scene.tell(_EndHold())
    eventually(lambda: web_verdict(scene.maps.stopping) == coming, "workers that stop are told, too")


def test_that_haproxy_runs_is_no_news_to_callers_that_wait_for_its_reload(
    scene: AuthoriserScene, before_reload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "HOLD_STOPPING_S", 0.05)
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the new rules are on disk")

    # As ProcessSupervisor tells when another actor was restarted and asked.
    scene.tell(HAProxyUp(1))

    time.sleep(0.3)
    assert web_verdict(scene.maps.loaded["verdicts"]) == before_reload
    scene.tell(HAProxyUp(2))
    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) != before_reload, "another one looks at all")


def test_a_worker_that_was_made_for_an_older_policy_goes_by_the_rules_before_too(
    scene: AuthoriserScene, before_reload: str
) -> None:
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the policy")
    coming = web_verdict(scene.maps.stored["verdicts"])
    scene.maps.loaded = {name: dict(entries) for name, entries in scene.maps.stored.items()}

    scene.tell(WorkerReplaced(Sight()))

    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) == before_reload, "the verdict that it can go by")
    assert before_reload in "".join(scene.maps.loaded["rules"])
    scene.maps.loaded = {name: dict(entries) for name, entries in scene.maps.stored.items()}
    scene.tell(WorkerReplaced(sight_for(Judgement(by_role(2)))))
    eventually(lambda: before_reload not in "".join(scene.maps.loaded["rules"]), "the old rules are gone")
    assert web_verdict(scene.maps.loaded["verdicts"]) == coming


def test_rules_that_haproxy_is_not_reloaded_for_deny_after_a_while(
    scene: AuthoriserScene, before_reload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "HOLD_S", 60.0)
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the policy")
    assert web_verdict(scene.maps.loaded["verdicts"]) == before_reload

    scene.tell(_EndHold())

    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) != before_reload, "the new rules, that deny")
    assert before_reload not in "".join(scene.maps.loaded["rules"])
    later = replace(by_role(3), intentions=(Intention("db", Action.DENY, 9), *by_role(3).intentions))
    scene.tell(PolicyChanged(later))
    eventually(lambda: scene.maps.loaded["verdicts"][service_uri("db")] == "deny", "the next policy")
    assert web_verdict(scene.maps.loaded["verdicts"]) != before_reload


def test_that_while_ends_by_itself(scene: AuthoriserScene, before_reload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "HOLD_S", 0.05)
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) != before_reload, "the new rules, that deny")


def test_who_is_denied_is_so_at_once_whatever_others_wait_for(scene: AuthoriserScene, before_reload: str) -> None:
    scene.tell(PolicyChanged(by_role(2)))
    eventually(lambda: web_verdict(scene.maps.stored["verdicts"]) != before_reload, "the policy")
    assert web_verdict(scene.maps.loaded["verdicts"]) == before_reload

    scene.tell(PolicyChanged(replace(ruled(3), intentions=(Intention("web", Action.DENY, 9),))))

    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) == "deny", "the denial")
    # Of whom HAProxy denied it lets nobody in before it looks at what the rules look at.
    scene.tell(PolicyChanged(by_role(4)))
    eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]).startswith("rules-"), "the rules again")
    assert web_verdict(scene.maps.loaded["verdicts"]) != before_reload


def test_beside_a_haproxy_that_ran_before_rules_count_at_once_and_later_ones_wait_for_its_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hold, "HOLD_S", 60.0)
    scene = AuthoriserScene(remembering(WEB, "allow"))
    with playing(scene):
        # In an adoption before the policy; an earlier hcc let web in, and its HAProxy looks at that header.
        scene.tell(HAProxyUp(1))

        deals_with(scene, by_role(1))

        first = web_verdict(scene.maps.loaded["verdicts"])
        assert first.startswith("rules-")
        by_team = Permission(False, headers=(HeaderRule("x-team", HeaderMatch.EXACT, "fools"),))
        deals_with(scene, ruled(2, by_team, Permission(True, PathRule(PathMatch.PREFIX, "/"))))
        assert web_verdict(scene.maps.loaded["verdicts"]) == first
        assert first in "".join(scene.maps.loaded["rules"])
        assert web_verdict(scene.maps.stored["verdicts"]) != first


def test_rules_out_of_their_order_are_put_right(scene: AuthoriserScene) -> None:
    read = Permission(True, PathRule(PathMatch.PREFIX, "/read"))
    scene.tell(PolicyChanged(ruled(1, read)))
    eventually(lambda: len(scene.maps.loaded["rules"]) == 2, "the rules")
    wanted = list(scene.maps.loaded["rules"].items())

    scene.maps.loaded["rules"] = dict(reversed(wanted))
    scene.tell(WorkerReplaced())

    eventually(lambda: list(scene.maps.loaded["rules"].items()) == wanted, "their order")


def test_the_maps_are_compared_again_and_again_at_moments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the 300 s that it is told; without a draw nothing would happen for so long.
    monkeypatch.setattr(random, "uniform", lambda low, _: low * 1e-4)
    scene = AuthoriserScene()
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        for forged in ("one", "two"):
            scene.maps.loaded["verdicts"] = {service_uri(forged): "allow"}
            scene.verdicts()


def test_what_somebody_changed_in_the_maps_is_put_right_and_counted(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy(db=Action.DENY)))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"), (DB, "10.0.0.2:4711"))))
    scene.knows(WEB, DB)
    scene.tell(_Resync())
    scene.settle()
    scene.maps.loaded["verdicts"][service_uri("db")] = "allow"
    scene.maps.loaded["identities"] = {"00": "forged:dc1|spiffe://x|forged"}

    scene.tell(_Resync())

    scene.knows(WEB, DB)
    scene.verdicts(web="allow", db="deny")
    eventually(
        lambda: scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 1.0, "one repair is counted"
    )


def test_whom_nobody_knows_is_cut_at_the_second_look_too_under_the_policy_that_denied(scene: AuthoriserScene) -> None:
    scene.tell(PolicyChanged(policy()))
    eventually(lambda: scene.maps.done == ["store verdicts"], "the policy")
    # After the first look.
    scene.maps.comes_then = [("app", "10.0.0.9:1"), ("db:dc1", "10.0.0.2:1")]

    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

    eventually(lambda: scene.maps.sessions == [("db:dc1", "10.0.0.2:1")], "the cut")


def test_after_a_change_of_the_trust_domain_callers_of_the_new_one_stay(scene: AuthoriserScene) -> None:
    other = "22222222-2222-2222-2222-222222222222.consul"
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
    scene.knows(WEB)
    scene.tell(PolicyChanged(replace(policy(2), trust_domain=other)))
    eventually(lambda: scene.maps.done.count("cut") == 2, "all of the old one are cut, and once more")
    scene.maps.sessions = [("web:dc1", "10.0.0.1:1"), ("db:dc1", "10.0.0.2:1")]

    scene.tell(PolicyChanged(replace(policy(3, db=Action.DENY), trust_domain=other)))

    eventually(lambda: scene.maps.done.count("cut") == 4, "who is denied is cut, and once more")
    assert scene.maps.sessions == [("web:dc1", "10.0.0.1:1")]


def test_an_hcc_that_starts_under_another_trust_domain_cuts_those_of_the_old_one() -> None:
    maps = remembering(WEB, "deny")
    maps.sessions = [("db:dc1", "10.0.0.2:1"), ("app", "10.0.0.3:1")]
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(replace(policy(), trust_domain="22222222-2222-2222-2222-222222222222.consul")))

        scene.verdicts()
        eventually(lambda: not maps.sessions, "the cut")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("verdicts", [{service_uri("web"): "deny"}, {}])
def test_sessions_that_an_earlier_hcc_was_to_cut_are_cut_at_the_first_policy(
    verdicts: dict[str, str], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.01)
    # It denied the caller and ended before the cut; or the caller's certificate expired and it was denied afterwards.
    maps = remembering(WEB, "deny") if verdicts else FakeMaps()
    stay = [("db:dc1", "10.0.0.2:1"), ("app", "10.0.0.3:1")]
    maps.sessions, maps.failing_cuts = [("web:dc1", "10.0.0.1:1"), *stay], int(fails)
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(HAProxyUp(1))
        scene.tell(PolicyChanged(policy(web=Action.DENY)))

        eventually(lambda: maps.sessions == stay, "the cut of who is denied, and of nobody else")
        scene.settle()
        cuts = maps.done.count("cut")
        deals_with(scene, policy(2, web=Action.DENY))
        assert maps.done.count("cut") == cuts


@pytest.mark.parametrize("more", [False, True])
def test_sessions_that_a_predecessor_was_to_cut_are_cut_though_haproxy_is_heard_of_late(
    more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "CUT_AGAIN_S", 60.0)
    maps = remembering(WEB, "deny")
    maps.sessions = [("web:dc1", "10.0.0.1:1")]
    scene = AuthoriserScene(maps)
    with playing(scene):
        # As for a moment in a reload.
        maps.running = False
        deals_with(scene, policy(web=Action.DENY))
        if more:
            # A denial is cut in none then, which is no look at what the predecessor owed.
            deals_with(scene, policy(2, web=Action.DENY, db=Action.DENY))
        maps.running = True
        assert maps.sessions

        scene.tell(HAProxyUp(1))

        eventually(lambda: not maps.sessions, "the cut")


class HalfWay(FakeMaps):
    """Does only half of what it is to do with verdicts, as often as `failing` says, and then does not answer."""

    failing = 0

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        if not self.failing:
            return super().change_verdicts(change, wanted)
        self.failing -= 1
        self.loaded["verdicts"] |= dict(change.added)
        raise ControlError("the runtime socket does not answer any more")


def test_verdicts_of_which_some_may_be_there_get_no_second_entry() -> None:
    maps = HalfWay()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        eventually(lambda: maps.done == ["store verdicts"], "the policy")
        maps.failing = 1
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        scene.tell(PolicyChanged(policy(2, web=Action.DENY)))

        scene.verdicts(web="deny")
        assert scene.generation() == 1


class Watched(FakeMaps):
    """Remembers which rules were there when verdicts changed."""

    def __init__(self) -> None:
        super().__init__()
        self.rules_then: list[str] = []

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        self.rules_then.append("".join(self.loaded["rules"]))
        return super().change_verdicts(change, wanted)


def test_while_verdicts_change_the_rules_of_old_ones_and_new_ones_are_there() -> None:
    maps = Watched()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/read")))))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        eventually(lambda: maps.loaded["verdicts"].get(service_uri("web"), "").startswith("rules-"), "the verdict")
        old = maps.loaded["verdicts"][service_uri("web")]

        scene.tell(PolicyChanged(ruled(2, Permission(True, PathRule(PathMatch.PREFIX, "/write")))))

        eventually(lambda: maps.loaded["verdicts"][service_uri("web")] != old, "the new verdict")
        assert old in maps.rules_then[-1]
        assert maps.loaded["verdicts"][service_uri("web")] in maps.rules_then[-1]
        eventually(lambda: old not in "".join(maps.loaded["rules"]), "the old rules are gone")


def test_until_haproxy_looks_at_another_header_rules_without_one_are_there_twice(scene: AuthoriserScene) -> None:
    scene.tell(HAProxyUp(1))
    scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/read")))))
    eventually(lambda: len(scene.maps.loaded["rules"]) == 2, "the rules")
    before = set(scene.maps.loaded["rules"])
    by_header = Permission(True, headers=(HeaderRule("x-role", HeaderMatch.PRESENT),))
    db = Intention("db", Action.PERMISSIONS, 9, (by_header,))
    both = ruled(2, Permission(True, PathRule(PathMatch.PREFIX, "/read")))

    scene.tell(PolicyChanged(replace(both, intentions=(*both.intentions, db))))

    eventually(lambda: len(scene.maps.loaded["rules"]) == 6, "for both, and those of db")
    assert before < set(scene.maps.loaded["rules"])
    scene.tell(WorkerReplaced())
    eventually(lambda: len(scene.maps.loaded["rules"]) == 4, "for the new one alone")


def test_what_a_full_disk_lost_is_written_again_also_when_it_is_as_it_was_before(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "STORE_S", 300.0)
    scene.tell(PolicyChanged(policy()))
    scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
    eventually(lambda: scene.maps.stored["verdicts"] == {service_uri("web"): "allow"}, "the verdict on disk")
    scene.maps.disk_full = True
    scene.tell(PolicyChanged(policy(2, web=Action.DENY)))
    eventually(lambda: scene.maps.stored["verdicts"] == {}, "nothing is on disk")
    scene.maps.disk_full = False

    scene.tell(PolicyChanged(policy(3)))

    eventually(lambda: scene.maps.stored["verdicts"] == {service_uri("web"): "allow"}, "it is on disk again")


def test_a_certificate_that_expires_is_forgotten_with_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoriser, "EXPIRY_S", 0.05)
    maps = FakeMaps()
    now = time.time
    one = Remembered(ServiceIdentity(TRUST_DOMAIN, "web", "dc1"), int(time.time()) + 3600)
    maps.loaded["identities"] = {"A" * 64: one.text()}
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.verdicts(web="allow")

        monkeypatch.setattr(time, "time", lambda: now() + 3600.0)

        scene.verdicts()
        scene.knows()


class Counting(FakeMaps):
    """Counts how often identities are written."""

    writes = 0
    last_s = 0.0

    def store_identities(self, entries: Mapping[str, str]) -> None:
        self.writes += 1
        self.last_s = time.monotonic()
        super().store_identities(entries)

    def quiet_for_s(self) -> float:
        return time.monotonic() - self.last_s


def test_what_is_not_on_disk_yet_is_written_when_the_actor_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoriser, "STORE_S", 300.0)
    maps = Counting()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        scene.knows(WEB)
        assert maps.writes == 0

        scene.restart()

        assert set(maps.stored["identities"]) == {certificate_digest(WEB)}
        assert maps.writes == 1
        scene.tell(PolicyChanged(policy(2)))
        scene.tell(CallersMet(((DB, "10.0.0.2:1"),)))
        scene.knows(WEB, DB)
    assert set(maps.stored["identities"]) == {certificate_digest(WEB), certificate_digest(DB)}
    assert maps.writes == 2


def is_to_store(scene: AuthoriserScene) -> bool:
    return any(key == "store" for _, key in list(scene.tree._services.timers._keyed))


def test_what_is_on_disk_is_not_written_again_when_the_actor_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoriser, "STORE_S", 0.01)
    maps = Counting()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.restart()
        assert maps.writes == 0
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        eventually(lambda: set(maps.stored["identities"]) == {certificate_digest(WEB)}, "the identity on disk")
        # Once for the call, and perhaps once more when the caller is decided.
        eventually(lambda: maps.quiet_for_s() > 0.5 and not is_to_store(scene), "no more writes")
        scene.settle()
        written = maps.writes
    assert maps.writes == written


def test_an_actor_ends_in_order_though_the_disk_does_not_take_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(authoriser, "STORE_S", 300.0)
    maps = Counting()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        scene.knows(WEB)
        maps.disk_full = True
    assert maps.writes == 1
    assert "cannot be written for its next start: No space left on device" in caplog.text
    assert "failed" not in caplog.text


class Late(FakeMaps):
    """While HAProxy is being reloaded its master tells of no worker that stops."""

    unseen = 0

    def tell_stopping(self, *args: Any) -> Any:
        if self.unseen:
            self.unseen -= 1
            self.stopping_told += 1
            return (), None
        return super().tell_stopping(*args)


def test_a_worker_that_stops_and_of_which_the_master_tells_late_is_told_who_is_denied() -> None:
    maps = Late()
    scene = AuthoriserScene(maps)
    with playing(scene):
        scene.tell(PolicyChanged(policy(web=Action.DENY)))
        eventually(lambda: maps.stopping_told == 1, "the policy")
        maps.stopping = {service_uri("web"): "allow", service_uri("db"): "allow"}
        maps.stopping_sessions = [("web:dc1", "10.0.0.1:4711"), ("db:dc1", "10.0.0.2:4711")]
        maps.unseen = 1
        scene.tell(WorkerReplaced())
        eventually(lambda: [line for line, _ in maps.stopping_sessions] == ["db:dc1"], "who is denied is cut")


def test_sessions_of_another_trust_domain_are_still_to_be_cut_in_a_worker_that_hangs_after_one_more_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 0.05)
    monkeypatch.setattr(authoriser, "MAX_STOPPING_RETRY_S", 0.05)
    other = "22222222-2222-2222-2222-222222222222.consul"
    scene = AuthoriserScene()
    with playing(scene):
        scene.tell(HAProxyUp(1))
        scene.tell(PolicyChanged(policy()))
        scene.tell(CallersMet(((WEB, "10.0.0.1:4711"),)))
        scene.verdicts(web="allow")
        scene.maps.stopping_sessions = [("web:dc1", "10.0.0.1:4711")]
        scene.maps.stopping_hangs = 10**6
        scene.tell(PolicyChanged(replace(policy(2), trust_domain=other)))
        scene.settle()
        time.sleep(0.2)  # Some tries more.
        scene.tell(PolicyChanged(replace(policy(3, db=Action.DENY), trust_domain=other)))
        scene.settle()
        time.sleep(0.2)
        assert scene.maps.stopping_sessions
        scene.maps.stopping_hangs = 0
        eventually(lambda: not scene.maps.stopping_sessions, "who began under the other trust domain is cut")


def test_a_denied_caller_that_comes_again_is_looked_for_a_second_time_too() -> None:
    scene = AuthoriserScene()
    with playing(scene):
        scene.tell(PolicyChanged(policy(web=Action.DENY)))
        scene.tell(HAProxyUp(1))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        scene.verdicts(web="deny")
        # For whom an earlier hcc was to cut, and for that call, twice.
        eventually(lambda: scene.maps.done.count("cut") == 3, "what it had to look for is over")
        scene.settle()
        # After the first look.
        scene.maps.comes_then = [("web:dc1", "10.0.0.1:2")]
        scene.tell(CallersMet(((WEB, "10.0.0.1:2"),)))
        eventually(lambda: not (scene.maps.comes_then or scene.maps.sessions), "the second look")


def test_a_worker_that_stops_hears_of_rules_that_were_held_back_once_they_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hold, "HOLD_STOPPING_S", 1.0)
    scene = AuthoriserScene()
    with playing(scene):
        scene.tell(HAProxyUp(1))
        scene.tell(PolicyChanged(ruled(1, Permission(True, PathRule(PathMatch.PREFIX, "/")))))
        scene.tell(CallersMet(((WEB, "10.0.0.1:1"),)))
        eventually(lambda: bool(scene.maps.loaded["verdicts"]), "a verdict")
        scene.settle()
        old = scene.maps.loaded["verdicts"][service_uri("web")]
        scene.tell(PolicyChanged(by_role(2)))
        scene.settle()
        assert web_verdict(scene.maps.loaded["verdicts"]) == old
        scene.maps.stopping = {service_uri("web"): old}
        scene.tell(WorkerReplaced())
        eventually(lambda: web_verdict(scene.maps.loaded["verdicts"]) != old, "the verdict in the new worker")
        scene.settle()
        eventually(lambda: scene.maps.stopping[service_uri("web")] != old, "the verdict in the one that stops, too")


def test_a_second_look_that_makes_good_a_later_denial_cuts_whom_nobody_knows_too(
    scene: AuthoriserScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoriser, "RETRY_S", 60.0)
    monkeypatch.setattr(authoriser, "MAX_RETRY_S", 60.0)
    monkeypatch.setattr(authoriser, "CUT_AGAIN_S", 60.0)
    deals_with(scene, policy())
    deals_with(scene, policy(2, db=Action.DENY))
    scene.maps.failing_cuts = 1
    deals_with(scene, policy(3, db=Action.DENY, web=Action.DENY))
    assert not scene.maps.failing_cuts
    scene.maps.sessions = [("app", "10.9.9.9:1")]

    scene.tell(_CutAgain())
    scene.settle()

    assert not scene.maps.sessions
