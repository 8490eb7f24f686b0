"""What an actor can count on while it lives: its mailbox, its timers, its generation."""

import threading

import pykka
import pytest
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from hcc.actors.child import ChildSpec
from hcc.actors.lifecycle import ActorDownError, StopReason
from tests.actors.stage import (
    DEADLINE_S,
    Echo,
    Forward,
    Hang,
    Later,
    Probe,
    Raise,
    State,
    Theatre,
    eventually,
)


def test_a_flood_of_events_is_bounded_and_the_newest_stay(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a", mailbox_limit=10), theatre.probe("b"))
    theatre.tree.tell("a", Hang())
    theatre.stage.wait("a", 1, "hangs")
    for number in range(100):
        assert theatre.tree.tell("a", Echo(number))
    assert theatre.status("a").mailbox_depth >= 10
    assert theatre.status("a").dropped == 90
    theatre.stage.curtain.set()
    theatre.stage.wait("a", 1, 99)
    assert [event[2] for event in theatre.stage.of("a")][2:] == [*range(90, 100)]


def test_a_flood_of_states_leaves_the_newest_in_the_place_of_the_first(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a", mailbox_limit=10))
    theatre.tree.tell("a", Hang())
    theatre.stage.wait("a", 1, "hangs")
    theatre.tree.tell("a", State(0))
    theatre.tree.tell("a", Echo("event"))
    for version in range(1, 1000):
        theatre.tree.tell("a", State(version))
    assert theatre.status("a").dropped == 0
    theatre.stage.curtain.set()
    theatre.stage.wait("a", 1, "event")
    assert [event[2] for event in theatre.stage.of("a")][2:] == [State(999), "event"]


def test_a_stop_goes_before_everything_queued(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    theatre.tree.tell("a", Hang())
    theatre.stage.wait("a", 1, "hangs")
    for number in range(100):
        theatre.tree.tell("a", Echo(number))
    stopping = threading.Thread(target=theatre.tree.restart, args=("a", DEADLINE_S))
    stopping.start()
    eventually(lambda: theatre.generation("a") == 2, "the request to restart")
    theatre.stage.curtain.set()
    stopping.join(DEADLINE_S)
    assert theatre.stage.of("a") == [
        ("a", 1, "setup"),
        ("a", 1, "hangs"),
        ("a", 1, StopReason.RESTART),
        ("a", 2, "setup"),
    ]


def test_a_timer_fires_once(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    theatre.tree.tell("a", Later(0.01, "tick"))
    theatre.tree.tell("a", Later(0.05, "tock"))
    theatre.stage.wait("a", 1, "tock")
    assert [event[2] for event in theatre.stage.of("a")] == ["setup", "tick", "tock"]


def test_a_newer_timer_takes_the_place_of_one_with_the_same_key(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    theatre.tree.tell("a", Later(3.0, "old", key="k"))
    theatre.tree.tell("a", Later(2.0, "new", key="k"))
    theatre.tree.tell("a", Later(4.0, "end"))
    assert theatre.tree.ask_actor("a", Echo("armed"), DEADLINE_S) == "armed"
    theatre.skip(5.0)
    theatre.stage.wait("a", 1, "end")
    assert [event[2] for event in theatre.stage.of("a")] == ["setup", "armed", "new", "end"]


def test_a_cancelled_timer_does_not_fire(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    theatre.tree.tell("a", Later(0.01, "never", key="k", cancelled=True))
    theatre.tree.tell("a", Later(0.05, "end"))
    theatre.stage.wait("a", 1, "end")
    assert theatre.stage.count("a", 1, "never") == 0


def test_a_timer_cancelled_while_its_message_is_queued_does_not_fire(theatre: Theatre) -> None:
    class Late(Probe):
        def handle(self, message: object) -> object | None:
            if message == "start":
                self.after(0.0, Echo("never"), key="k")
                eventually(lambda: not self._mailbox.empty(), "the message in the mailbox")
                self.cancel("k")
                self.after(0.0, Echo("end"))
                return None
            return super().handle(message)

    theatre.open(ChildSpec("a", Late, {"stage": theatre.stage}))
    theatre.tree.tell("a", "start")
    theatre.stage.wait("a", 1, "end")
    assert theatre.stage.count("a", 1, "never") == 0


def test_a_timer_of_an_old_generation_does_not_fire_in_the_new_one(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    theatre.tree.tell("a", Later(60.0, "old"))
    assert theatre.tree.restart("a", DEADLINE_S) == 2
    theatre.tree.tell("a", Later(61.0, "new"))
    assert theatre.tree.ask_actor("a", Echo("armed"), DEADLINE_S) == "armed"
    theatre.skip(62.0)
    theatre.stage.wait("a", 2, "new")
    assert "old" not in [event[2] for event in theatre.stage.of("a")]


def test_an_actor_that_ended_leaves_no_timer_behind(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"))
    timers = theatre.tree._services.timers
    before = timers.pending()
    theatre.tree.tell("a", Later(3600.0, "never"))
    eventually(lambda: timers.pending() == before + 1, "the timer")
    theatre.tree.restart("a", DEADLINE_S)
    assert timers.pending() == before


def test_a_request_that_comes_after_the_end_is_answered(theatre: Theatre) -> None:
    actors = []

    class Known(Probe):
        def setup(self) -> None:
            actors.append(self)

    theatre.open(ChildSpec("a", Known, {"stage": theatre.stage}))
    theatre.tree.restart("a", DEADLINE_S)
    future: pykka.Future[object] = pykka.ThreadingFuture()
    actors[0].actor_inbox.put(Envelope(Echo("late"), reply_to=future))
    with pytest.raises(ActorDownError):
        future.get(timeout=DEADLINE_S)


def test_a_helper_thread_of_an_old_generation_is_not_heard(theatre: Theatre) -> None:
    addresses = []

    class Owner(Probe):
        def setup(self) -> None:
            addresses.append(self.address)
            super().setup()

    theatre.open(ChildSpec("a", Owner, {"stage": theatre.stage}))
    theatre.stage.wait("a", 1, "setup")
    assert addresses[0].tell(Echo("heard"))
    theatre.stage.wait("a", 1, "heard")
    theatre.tree.restart("a", DEADLINE_S)
    before = theatre.status("a").dropped
    assert not addresses[0].tell(Echo("unheard"))
    assert theatre.status("a").dropped == before + 1
    assert addresses[1].tell(Echo("heard"))
    theatre.stage.wait("a", 2, "heard")


def test_a_tell_to_an_actor_that_is_down_or_unknown_is_false(theatre: Theatre) -> None:
    theatre.stage.faults["b", "setup", 0] = ValueError("never up")
    theatre.open(theatre.probe("a"), theatre.probe("b"))
    assert theatre.tree.ask_actor("a", Forward("nobody", Echo(1)), DEADLINE_S) is False
    # While it is being started a message waits for it.
    eventually(lambda: theatre.tree.ask_actor("a", Forward("b", Echo(1)), DEADLINE_S) is False, "it is down")
    assert theatre.status("b").dropped > 0


def test_an_actor_that_was_replaced_cannot_tell(theatre: Theatre) -> None:
    owners = []

    class Owner(Probe):
        def setup(self) -> None:
            owners.append(self)
            super().setup()

    theatre.open(ChildSpec("a", Owner, {"stage": theatre.stage}), theatre.probe("b"))
    theatre.tree.restart("a", DEADLINE_S)
    assert not owners[0].tell("b", Echo("stale"))
    assert owners[1].tell("b", Echo("fresh"))
    theatre.stage.wait("b", 1, "fresh")
    assert theatre.stage.count("b", 1, "stale") == 0


def test_no_pykka_actor_is_left_in_its_registry(theatre: Theatre) -> None:
    theatre.open(theatre.probe("a"), theatre.probe("b"))
    theatre.tree.tell("a", Raise(ValueError("x")))
    theatre.stage.wait("a", 2, "setup")
    assert theatre.tree.stop(DEADLINE_S)
    assert pykka.ActorRegistry.get_all() == []


@pytest.mark.parametrize("name", ["_create_actor_inbox", "_start_actor_loop", "_actor_loop"])
def test_pykka_still_has_the_private_names_we_build_on(name: str) -> None:
    assert callable(getattr(pykka.ThreadingActor, name))


def test_pykka_still_uses_its_inbox_and_its_envelope_as_we_do() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.put_envelopes: list[Envelope[object]] = []

        def put(self, envelope: Envelope[object], /) -> None:
            self.put_envelopes.append(envelope)

    class Plain(pykka.ThreadingActor):
        pass

    actor = Plain()
    recorder = Recorder()
    actor.actor_ref.actor_inbox = recorder  # type: ignore[assignment] # only put is used here
    actor.actor_ref.tell("told")
    actor.actor_ref.ask("asked", block=False)
    actor.stop()
    told, asked, stop = recorder.put_envelopes
    assert (told.message, told.reply_to) == ("told", None)
    assert asked.reply_to is not None
    assert isinstance(stop.message, _ActorStop)
    assert not actor.actor_stopped.is_set()
