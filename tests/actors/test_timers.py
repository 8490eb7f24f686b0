"""The timer thread alone, with a book that has nobody in it."""

from collections.abc import Iterator

import pytest

from hcc.actors.address import Address, AddressBook
from hcc.actors.timers import Timers
from tests.actors.stage import actor_threads, eventually


class Recorder(AddressBook):
    """Writes down what it is told instead of delivering it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []

    def tell(self, name: str, message: object, generation: int | None = None) -> bool:
        self.told.append(message)
        if isinstance(message, Exception):
            raise message
        return True


@pytest.fixture
def timers() -> Iterator[Timers]:
    timers = Timers()
    timers.start()
    try:
        yield timers
    finally:
        timers.stop()
        eventually(lambda: not actor_threads(), "its thread's end")


def test_messages_come_in_the_order_of_their_times() -> None:
    now_s = [0.0]
    timers, book = Timers(lambda: now_s[0]), Recorder()
    for delay_s in (0.3, 0.1, 0.2):
        timers.schedule(delay_s, Address("a", 1, book), delay_s)
    now_s[0] = 1.0
    timers.start()
    eventually(lambda: len(book.told) == 3, "three messages")
    timers.stop()
    assert book.told == [0.1, 0.2, 0.3]


def test_timers_that_are_replaced_over_and_over_do_not_pile_up(timers: Timers) -> None:
    address = Address("a", 1, Recorder())
    for _ in range(10_000):
        timers.schedule(3600.0, address, "x", "key")
    assert timers.pending() == 1
    assert len(timers._heap) < 200


def test_the_thread_wakes_for_what_comes_first_alone(timers: Timers, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[None] = []
    notify = timers._changed.notify

    def noted() -> None:
        woken.append(None)
        notify()

    monkeypatch.setattr(timers._changed, "notify", noted)
    book = Recorder()
    for delay_s in (3600.0, 3601.0, 3602.0, 0.05, 3603.0):
        timers.schedule(delay_s, Address("a", 1, book), delay_s)
    assert len(woken) == 2
    eventually(lambda: book.told == [0.05], "the one that came last but one")


def test_one_generations_timers_are_forgotten_together(timers: Timers) -> None:
    book = Recorder()
    for generation in (1, 2):
        for number in range(100):
            timers.schedule(3600.0, Address("a", generation, book), number, str(number % 50))
    timers.forget(Address("a", 1, book))
    assert timers.pending() == 50


def test_a_delivery_that_fails_does_not_end_the_thread(timers: Timers) -> None:
    book = Recorder()
    address = Address("a", 1, book)
    timers.schedule(0.0, address, ValueError("broken"))
    timers.schedule(0.01, address, "next")
    eventually(lambda: "next" in book.told, "the next message")


@pytest.mark.parametrize("delay_s", [-1.0, float("nan"), float("inf")])
def test_a_delay_that_is_no_time_is_refused(timers: Timers, delay_s: float) -> None:
    with pytest.raises(ValueError, match="delay"):
        timers.schedule(delay_s, Address("a", 1, Recorder()), "x")


def test_stopped_timers_take_nothing_more() -> None:
    timers = Timers()
    timers.start()
    timers.stop()
    timers.schedule(0.0, Address("a", 1, Recorder()), "x")
    assert timers.pending() == 0
    timers.stop()
