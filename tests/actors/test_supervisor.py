"""Each thing that can go wrong with one actor, among siblings that must not notice."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hcc.actors.child import ChildSpec
from hcc.actors.lifecycle import (
    ActorDownError,
    ActorFailedError,
    ActorNameError,
    ActorState,
    ActorTimeoutError,
    BeatDue,
    RootRestartError,
    StopReason,
    UnknownActorError,
)
from hcc.actors.mailbox import Mailbox
from hcc.actors.restart import Intensity, RestartType
from hcc.actors.supervisor import Supervisor
from hcc.actors.tree import ROOT
from hcc.errors import HccError
from tests.actors.stage import (
    DEADLINE_S,
    Echo,
    Forward,
    Hang,
    Probe,
    Raise,
    StopYourself,
    Theatre,
    actor_threads,
    eventually,
)

ERRORS = [ValueError("boom"), HccError("boom"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
by_type = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def open_trio(theatre: Theatre, **middle: object) -> None:
    theatre.open(theatre.probe("a"), theatre.probe("b", **middle), theatre.probe("c"))


def assert_siblings_did_not_notice(theatre: Theatre) -> None:
    for name in ("a", "c"):
        assert theatre.tree.ask_actor(name, Echo("here"), DEADLINE_S) == "here"
        assert theatre.generation(name) == 1
        assert theatre.stage.of(name) == [(name, 1, "setup"), (name, 1, "here")]
    assert not theatre.exits


def beat(theatre: Theatre) -> None:
    """Have b's first generation sent a heartbeat, or replaced where it did not answer the last one."""
    assert theatre.tree.tell(ROOT, BeatDue("b", 1))
    # The root has dealt with that.
    theatre.generation("b")


def all_running(theatre: Theatre) -> bool:
    return {status.state for status in theatre.tree.actors(DEADLINE_S)} == {ActorState.RUNNING}


@by_type
def test_an_error_in_setup_restarts_that_actor_alone(theatre: Theatre, error: BaseException) -> None:
    theatre.stage.faults["b", "setup", 1] = error
    open_trio(theatre)
    theatre.stage.wait("b", 2, "setup")
    assert theatre.tree.ask_actor("b", Echo("back"), DEADLINE_S) == "back"
    assert theatre.stage.count("b", 1, StopReason.FAILURE) == 1
    assert_siblings_did_not_notice(theatre)


@by_type
def test_an_error_in_init_restarts_that_actor_alone_without_a_teardown(theatre: Theatre, error: BaseException) -> None:
    theatre.stage.faults["b", "init", 1] = error
    open_trio(theatre)
    theatre.stage.wait("b", 2, "setup")
    assert theatre.stage.of("b") == [("b", 2, "setup")]
    assert_siblings_did_not_notice(theatre)


@by_type
def test_an_error_in_a_told_message_restarts_that_actor_alone(theatre: Theatre, error: BaseException) -> None:
    open_trio(theatre)
    theatre.stage.wait("b", 1, "setup")
    assert theatre.tree.tell("b", Raise(error))
    theatre.stage.wait("b", 2, "setup")
    assert theatre.stage.count("b", 1, StopReason.FAILURE) == 1
    assert type(error).__name__ in (theatre.status("b").last_error or "")
    assert_siblings_did_not_notice(theatre)


@pytest.mark.parametrize("error", [ValueError("boom"), RuntimeError("boom")])
def test_a_bug_met_by_a_request_goes_to_the_caller_and_restarts_that_actor(theatre: Theatre, error: Exception) -> None:
    open_trio(theatre)
    with pytest.raises(type(error), match="boom"):
        theatre.tree.ask_actor("b", Raise(error), DEADLINE_S)
    theatre.stage.wait("b", 2, "setup")
    assert_siblings_did_not_notice(theatre)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_an_exit_met_by_a_request_does_not_reach_the_callers_thread(theatre: Theatre, error: BaseException) -> None:
    open_trio(theatre)
    with pytest.raises(ActorFailedError, match=type(error).__name__):
        theatre.tree.ask_actor("b", Raise(error), DEADLINE_S)
    theatre.stage.wait("b", 2, "setup")
    assert_siblings_did_not_notice(theatre)


def test_an_error_for_a_person_is_an_answer_and_the_actor_lives(theatre: Theatre) -> None:
    open_trio(theatre)
    with pytest.raises(HccError, match="no such upstream"):
        theatre.tree.ask_actor("b", Raise(HccError("no such upstream")), DEADLINE_S)
    assert theatre.tree.ask_actor("b", Echo("here"), DEADLINE_S) == "here"
    assert theatre.generation("b") == 1


@by_type
def test_an_error_in_teardown_does_not_keep_the_successor_from_starting(theatre: Theatre, error: BaseException) -> None:
    theatre.stage.faults["b", "teardown", 1] = error
    open_trio(theatre)
    assert theatre.tree.restart("b", DEADLINE_S) == 2
    assert theatre.stage.count("b", 1, StopReason.RESTART) == 1
    assert type(error).__name__ in (theatre.status("b").last_error or "")
    assert_siblings_did_not_notice(theatre)


def test_errors_in_handler_and_teardown_make_one_restart(theatre: Theatre) -> None:
    theatre.stage.faults["b", "teardown", 1] = OSError("and again")
    open_trio(theatre)
    theatre.tree.tell("b", Raise(ValueError("first")))
    theatre.stage.wait("b", 2, "setup")
    assert theatre.status("b").last_error == "ValueError: first"
    assert theatre.status("b").restarts == 1
    assert_siblings_did_not_notice(theatre)


@pytest.mark.parametrize("place", ["handle", "setup", "init"])
def test_a_hung_actor_is_abandoned_and_replaced(theatre: Theatre, place: str) -> None:
    if place != "handle":
        theatre.stage.faults["b", place, 1] = Hang()
    open_trio(theatre)
    if place == "handle":
        theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 1, "hangs" if place == "handle" else f"hangs in {place}")
    beat(theatre)
    beat(theatre)
    theatre.stage.wait("b", 2, "setup")
    assert theatre.tree.ask_actor("b", Echo("back"), DEADLINE_S) == "back"
    assert theatre.status("b").zombies == 1
    assert "heartbeat" in (theatre.status("b").last_error or "")
    assert_siblings_did_not_notice(theatre)


def test_a_hung_actor_is_found_by_the_time_that_passes(theatre: Theatre) -> None:
    open_trio(theatre, heartbeat_s=0.3)
    theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 2, "setup")


def test_an_abandoned_actor_that_wakes_up_ends_without_harm(theatre: Theatre) -> None:
    open_trio(theatre)
    theatre.tree.tell("b", Hang())
    theatre.tree.tell("b", Forward("a", Echo("from the grave")))
    theatre.stage.wait("b", 1, "hangs")
    beat(theatre)
    beat(theatre)
    theatre.stage.wait("b", 2, "setup")
    theatre.stage.curtain.set()
    theatre.stage.wait("b", 1, StopReason.RESTART)
    eventually(lambda: actor_threads().count("actor-b") == 1, "the end of the abandoned thread")
    assert theatre.generation("b") == 2
    assert_siblings_did_not_notice(theatre)


def test_requests_queued_behind_a_hung_handler_are_answered_when_it_is_abandoned(theatre: Theatre) -> None:
    open_trio(theatre)
    theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 1, "hangs")
    beat(theatre)
    waiting = theatre.status("b").mailbox_depth
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(theatre.tree.ask_actor, "b", Echo("anyone"), DEADLINE_S)
        eventually(lambda: theatre.status("b").mailbox_depth > waiting, "the request to wait")
        beat(theatre)
        with pytest.raises(ActorDownError):
            answer.result()


def test_an_actor_that_answers_its_heartbeats_is_left_alone(theatre: Theatre) -> None:
    open_trio(theatre)
    for _ in range(3):
        assert theatre.tree.ask_actor("b", Echo("still here"), DEADLINE_S) == "still here"
        beat(theatre)
    assert theatre.generation("b") == 1


def test_an_ask_to_an_actor_that_is_down_says_so(theatre: Theatre) -> None:
    theatre.open(theatre.probe("b", restart=RestartType.TEMPORARY))
    theatre.tree.tell("b", Raise(ValueError("gone")))
    eventually(lambda: theatre.status("b").state is ActorState.FAILED, "the failure")
    with pytest.raises(ActorDownError, match="b is not running"):
        theatre.tree.ask_actor("b", Echo(1), DEADLINE_S)
    assert not theatre.tree.tell("b", Echo(1))
    assert theatre.status("b").dropped == 1


def test_an_ask_in_the_queue_of_a_dying_actor_is_answered_with_an_error(theatre: Theatre) -> None:
    theatre.open(theatre.probe("b", restart=RestartType.TEMPORARY))
    theatre.stage.wait("b", 1, "setup")
    theatre.tree.tell("b", Hang())
    theatre.tree.tell("b", Raise(ValueError("dying")))
    theatre.stage.wait("b", 1, "hangs")
    with pytest.raises(ActorTimeoutError):
        theatre.tree.ask_actor("b", Echo("first"), 0.01)
    theatre.stage.curtain.set()
    with pytest.raises(ActorDownError):
        theatre.tree.ask_actor("b", Echo("second"), DEADLINE_S)


def test_a_transient_actor_that_stops_itself_stays_down(theatre: Theatre) -> None:
    open_trio(theatre, restart=RestartType.TRANSIENT)
    theatre.tree.tell("b", StopYourself())
    eventually(lambda: theatre.status("b").state is ActorState.STOPPED, "the stop")
    assert theatre.stage.count("b", 1, StopReason.SHUTDOWN) == 1
    assert_siblings_did_not_notice(theatre)


def test_a_permanent_actor_that_stops_itself_comes_back(theatre: Theatre) -> None:
    open_trio(theatre)
    theatre.tree.tell("b", StopYourself())
    theatre.stage.wait("b", 2, "setup")
    assert_siblings_did_not_notice(theatre)


def test_the_operator_restarts_each_actor_in_turn_and_nobody_else_notices(theatre: Theatre) -> None:
    inner = theatre.group("group", theatre.probe("c"), theatre.probe("d"), max_restarts=0)
    theatre.open(theatre.probe("a"), theatre.probe("b"), inner, max_restarts=0)
    eventually(lambda: all_running(theatre), "the start of all actors")
    done: list[str] = []
    for name in ("A", "b", "C", "d"):
        assert theatre.tree.restart(name, DEADLINE_S) == 2
        assert all_running(theatre)
        done.append(name.lower())
        for status in theatre.tree.actors(DEADLINE_S):
            assert status.generation == (2 if status.name in done else 1), status
    assert not theatre.exits


def test_the_operator_restarts_a_group_with_all_its_children(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"), theatre.group("group", theatre.probe("c"), max_restarts=0))
    theatre.stage.wait("c", 1, "setup")
    assert theatre.tree.restart("group", DEADLINE_S) == 2
    theatre.stage.wait("c", 1, StopReason.RESTART)
    theatre.stage.wait("c", 2, "setup")
    assert theatre.generation("a") == 1
    assert theatre.status("c").parent == "group"


def test_the_operators_restart_does_not_wait_for_an_actor_that_will_not_stop(theatre: Theatre) -> None:
    open_trio(theatre, shutdown_s=0.05)
    theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 1, "hangs")
    assert theatre.tree.restart("b", DEADLINE_S) == 2
    assert theatre.status("b").zombies == 1
    assert_siblings_did_not_notice(theatre)


def test_the_operators_restart_brings_back_what_had_stayed_down(theatre: Theatre) -> None:
    open_trio(theatre, restart=RestartType.TEMPORARY)
    theatre.tree.tell("b", Raise(ValueError("gone")))
    eventually(lambda: theatre.status("b").state is ActorState.FAILED, "the failure")
    assert theatre.tree.restart("b", DEADLINE_S) == 2
    assert theatre.status("b").state is ActorState.RUNNING


def test_the_operator_hears_why_a_restart_failed(theatre: Theatre) -> None:
    theatre.stage.faults["b", "setup", 2] = OSError("port taken")
    open_trio(theatre)
    with pytest.raises(ActorFailedError, match="port taken"):
        theatre.tree.restart("b", DEADLINE_S)
    theatre.stage.wait("b", 3, "setup")


def test_the_operator_hears_when_a_restart_takes_too_long(theatre: Theatre) -> None:
    open_trio(theatre)
    theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 1, "hangs")
    with pytest.raises(ActorTimeoutError):
        theatre.tree.restart("b", 0.01)
    theatre.stage.curtain.set()
    theatre.stage.wait("b", 2, "setup")


def test_a_restart_of_an_unknown_actor_names_those_there_are(theatre: Theatre) -> None:
    open_trio(theatre)
    with pytest.raises(UnknownActorError, match=r"'nobody'.*root, a, b, c\."):
        theatre.tree.restart("nobody", DEADLINE_S)
    with pytest.raises(RootRestartError):
        theatre.tree.restart("root", DEADLINE_S)


def test_too_many_restarts_in_a_group_restart_the_group_and_then_end_the_tree(theatre: Theatre) -> None:
    theatre.stage.faults["bad", "setup", 0] = ValueError("always")
    group = theatre.group("group", theatre.probe("bad"), theatre.probe("good"), max_restarts=2)
    theatre.open(theatre.probe("a"), group, max_restarts=1)
    assert theatre.exited.wait(DEADLINE_S)
    (tree_exit,) = theatre.exits
    assert "group ended again" in tree_exit.cause
    assert "bad ended again" in tree_exit.cause
    assert "ValueError: always" in tree_exit.cause
    # Three starts for each of the two lives of the group; the sibling once for each; the elder never.
    assert len([event for event in theatre.stage.of("bad") if event[2] == "setup"]) == 6
    assert [event[2] for event in theatre.stage.of("good")] == ["setup", StopReason.FAILURE] * 2
    assert theatre.stage.of("a") == [("a", 1, "setup"), ("a", 1, StopReason.FAILURE)]
    eventually(lambda: not actor_threads(), "the end of all threads")
    with pytest.raises(ActorDownError):
        theatre.tree.actors(DEADLINE_S)


def test_a_stop_is_no_exit_and_goes_in_reverse_order_of_start(theatre: Theatre) -> None:
    inner = theatre.group("group", theatre.probe("b"), theatre.probe("c"), max_restarts=0)
    theatre.open(theatre.probe("a"), inner, theatre.probe("d"))
    for name in "abcd":
        theatre.stage.wait(name, 1, "setup")
    assert theatre.tree.stop(DEADLINE_S)
    stops = [event for event in theatre.stage.events if event[2] != "setup"]
    assert stops == [(name, 1, StopReason.SHUTDOWN) for name in "dcba"]
    assert not theatre.exits
    assert not theatre.tree.tell("a", Echo(1))
    assert theatre.tree.stop(DEADLINE_S)


def test_a_stop_does_not_wait_for_a_hung_actor_longer_than_its_bound(theatre: Theatre) -> None:
    open_trio(theatre, shutdown_s=0.05)
    theatre.tree.tell("b", Hang())
    theatre.stage.wait("b", 1, "hangs")
    assert theatre.tree.stop(DEADLINE_S)
    assert theatre.stage.count("a", 1, StopReason.SHUTDOWN) == 1
    assert theatre.stage.count("c", 1, StopReason.SHUTDOWN) == 1
    assert theatre.stage.count("b", 1, StopReason.SHUTDOWN) == 0


def test_a_hung_group_is_replaced_and_its_orphans_are_stopped(theatre: Theatre) -> None:
    class Stuck(Supervisor):
        def handle(self, message: object) -> object | None:
            if isinstance(message, Hang):
                assert theatre.stage.curtain.wait(3 * DEADLINE_S)
            return super().handle(message)

    kwargs = {"children": (theatre.probe("c", shutdown_s=0.1),), "intensity": Intensity(0, 60.0)}
    theatre.open(theatre.probe("a"), ChildSpec("group", Stuck, kwargs, heartbeat_s=0.1, shutdown_s=0.1))
    theatre.stage.wait("c", 1, "setup")
    theatre.tree.tell("group", Hang())
    theatre.stage.wait("c", 1, StopReason.RESTART)
    theatre.stage.wait("c", 2, "setup")
    theatre.stage.curtain.set()
    eventually(lambda: actor_threads().count("actor-group") == 1, "the end of the abandoned group")
    assert theatre.tree.ask_actor("c", Echo("here"), DEADLINE_S) == "here"
    assert theatre.generation("c") == 2
    assert theatre.status("group").zombies == 1
    assert theatre.stage.of("a") == [("a", 1, "setup")]


def test_siblings_that_start_together_can_tell_each_other_at_once(theatre: Theatre) -> None:
    told = threading.Event()

    class Eager(Probe):
        def setup(self) -> None:
            self.stage.note(self, self.tell("z", Echo("first words")))
            told.set()

    class Late(Probe):
        @staticmethod
        def _create_actor_inbox() -> Mailbox:
            assert not told.wait(0.2)
            return Mailbox()

    specs = [ChildSpec(name, kind, {"stage": theatre.stage}) for name, kind in (("a", Eager), ("z", Late))]
    theatre.open(*specs)
    theatre.stage.wait("a", 1, True)
    theatre.stage.wait("z", 1, "first words")


def test_two_actors_of_one_name_are_refused_before_anything_starts(theatre: Theatre) -> None:
    with pytest.raises(ActorNameError, match="'B'"):
        theatre.open(theatre.probe("b"), theatre.group("group", theatre.probe("B"), max_restarts=0))
    assert not actor_threads()


def test_threads_carry_the_names_of_their_actors(theatre: Theatre) -> None:
    open_trio(theatre)
    assert {"actor-root", "actor-a", "actor-b", "actor-c"} <= set(actor_threads())


def test_a_crash_is_one_line_of_error_and_its_traceback_is_for_debugging(
    theatre: Theatre, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    open_trio(theatre)
    theatre.tree.tell("b", Raise(ValueError("first line\nsecond line")))
    theatre.stage.wait("b", 2, "setup")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "Actor b (generation 1) failed: ValueError: first line second line"
    ]
    assert errors[0].exc_info is None
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.DEBUG)


def test_a_message_of_no_use_to_a_supervisor_does_not_end_it(theatre: Theatre) -> None:
    open_trio(theatre)
    assert theatre.tree.ask(Echo(1), DEADLINE_S) is None
    assert theatre.tree.tell("root", Echo(1))
    assert_siblings_did_not_notice(theatre)
