"""The two lanes of a mailbox, without a thread."""

from dataclasses import dataclass
from typing import Any

import pykka
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from hcc.actors.lifecycle import ActorDownError, Heartbeat, MailboxFullError, Stop, StopReason
from hcc.actors.mailbox import Mailbox


@dataclass(frozen=True, slots=True)
class Keyed:
    key: str
    version: int

    @property
    def coalesce_key(self) -> str:
        return self.key


def mailbox(limit: int = 3) -> Mailbox:
    made = Mailbox()
    made.owner, made.limit = "a", limit
    return made


def tell(box: Mailbox, *messages: object) -> None:
    for message in messages:
        box.put(Envelope(message))


def ask(box: Mailbox, message: object) -> pykka.Future[Any]:
    future: pykka.Future[Any] = pykka.ThreadingFuture()
    box.put(Envelope(message, reply_to=future))
    return future


def drained(box: Mailbox) -> list[object]:
    messages = []
    while not box.empty():
        messages.append(box.get().message)
    return messages


def test_messages_come_out_in_the_order_they_went_in() -> None:
    box = mailbox()
    tell(box, 1, 2, 3)
    assert box.depth() == 3
    assert drained(box) == [1, 2, 3]


def test_control_goes_first() -> None:
    box = mailbox()
    tell(box, 1, Heartbeat(), 2, Stop(StopReason.SHUTDOWN), _ActorStop())
    assert drained(box) == [Heartbeat(), Stop(StopReason.SHUTDOWN), _ActorStop(), 1, 2]


def test_a_full_lane_drops_the_oldest_and_counts_it() -> None:
    box = mailbox()
    tell(box, 1, 2, 3, 4, 5)
    assert box.dropped == 2
    assert drained(box) == [3, 4, 5]


def test_control_is_never_dropped() -> None:
    box = mailbox(limit=1)
    tell(box, *[Heartbeat()] * 10)
    assert len(drained(box)) == 10
    assert box.dropped == 0


def test_newer_state_takes_the_place_of_older() -> None:
    box = mailbox()
    tell(box, Keyed("x", 1), Keyed("y", 1), Keyed("x", 2))
    assert drained(box) == [Keyed("x", 2), Keyed("y", 1)]


def test_state_handled_already_is_not_replaced() -> None:
    box = mailbox()
    tell(box, Keyed("x", 1))
    box.get()
    tell(box, Keyed("x", 2))
    assert drained(box) == [Keyed("x", 2)]


def test_a_request_is_never_coalesced() -> None:
    box = mailbox()
    ask(box, Keyed("x", 1))
    ask(box, Keyed("x", 2))
    assert box.depth() == 2


def test_a_request_dropped_by_a_full_lane_gets_an_error() -> None:
    box = mailbox(limit=1)
    future = ask(box, "question")
    tell(box, "event")
    with pytest.raises(MailboxFullError, match="actor a is full"):
        future.get(timeout=0)


def test_a_closed_mailbox_answers_what_is_queued_and_what_comes_later() -> None:
    box = mailbox()
    early, stop = ask(box, "early"), ask(box, _ActorStop())
    tell(box, "event")
    box.close()
    late, late_stop = ask(box, "late"), ask(box, _ActorStop())
    for future in (early, late):
        with pytest.raises(ActorDownError):
            future.get(timeout=0)
    assert stop.get(timeout=0) is None
    assert late_stop.get(timeout=0) is None
    assert box.empty()


def test_a_stop_told_before_the_close_is_kept() -> None:
    box = mailbox()
    tell(box, Stop(StopReason.RESTART), "event")
    box.close()
    tell(box, "late")
    assert drained(box) == [Stop(StopReason.RESTART)]
    assert box.dropped == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())), st.integers(1, 5))
def test_the_newest_state_of_a_key_is_never_behind_an_older_one(states: list[tuple[str, int]], limit: int) -> None:
    box = mailbox(limit)
    tell(box, *(Keyed(*state) for state in states))
    left = drained(box)
    newest = dict(states)
    assert len(left) <= limit
    assert all(isinstance(state, Keyed) and newest[state.key] == state.version for state in left)
    assert len({state.key for state in left if isinstance(state, Keyed)}) == len(left)
