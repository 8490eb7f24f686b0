"""Messages that arrive later: one daemon thread and a heap for the whole tree."""

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hcc.actors.address import Address

logger = logging.getLogger(__name__)

_COMPACT_MIN = 64
"""Cancelled entries below this number are left for the heap to reach."""


@dataclass(slots=True, order=True)
class _Entry:
    due: float
    serial: int
    address: Address = field(compare=False)
    message: object = field(compare=False)
    key: str | None = field(compare=False)
    live: bool = field(compare=False, default=True)


class Timers:
    """Delivers messages to addresses when their time has come; an address fences out old generations."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._heap: list[_Entry] = []
        self._keyed: dict[tuple[Address, str], _Entry] = {}
        self._dead = 0
        self._serial = itertools.count()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="timers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Deliver nothing more; waits a bounded time for the thread."""
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._keyed.clear()
            self._changed.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def schedule(self, delay_s: float, address: Address, message: object, key: str | None = None) -> None:
        """Deliver `message` after `delay_s` seconds, in place of an older one with the same address and key.

        Raises:
            ValueError: the delay is negative or no number.
        """
        if not (math.isfinite(delay_s) and delay_s >= 0):
            raise ValueError(f"a timer's delay must be a number of seconds from 0 up, not {delay_s!r}")
        with self._changed:
            if self._stopped:
                return
            entry = _Entry(self._clock() + delay_s, next(self._serial), address, message, key)
            if key is not None:
                self._kill(self._keyed.get((address, key)))
                self._keyed[address, key] = entry
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                # Else the thread waits for an earlier one.
                self._changed.notify()

    def cancel(self, address: Address, key: str) -> None:
        """Forget the timer with that key, if there is one."""
        with self._changed:
            self._kill(self._keyed.get((address, key)))

    def forget(self, address: Address) -> None:
        """Forget all timers of one generation of an actor."""
        with self._changed:
            for entry in [entry for entry in self._heap if entry.live and entry.address == address]:
                self._kill(entry)

    def pending(self) -> int:
        """How many timers are going to fire."""
        with self._changed:
            return len(self._heap) - self._dead

    def _kill(self, entry: _Entry | None) -> None:
        if entry is None:
            return
        entry.live = False
        self._dead += 1
        if entry.key is not None:
            del self._keyed[entry.address, entry.key]
        if self._dead > _COMPACT_MIN and self._dead > len(self._heap) // 2:
            self._heap = [kept for kept in self._heap if kept.live]
            heapq.heapify(self._heap)
            self._dead = 0

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            try:
                entry.address.tell(entry.message)
            except Exception as error:  # noqa: BLE001 - all actors depend on this thread
                logger.error("A timer's message to %s was lost: %s", entry.address.name, error)

    def _next(self) -> _Entry | None:
        """The next entry that is due; waits for it. None when stopped."""
        with self._changed:
            while not self._stopped:
                entry = self._pop_due()
                if entry is not None:
                    return entry
                self._changed.wait(self._wait_s())
            return None

    def _wait_s(self) -> float | None:
        return max(0.0, self._heap[0].due - self._clock()) if self._heap else None

    def _pop_due(self) -> _Entry | None:
        while self._heap and (not self._heap[0].live or self._heap[0].due <= self._clock()):
            entry = heapq.heappop(self._heap)
            if entry.live:
                if entry.key is not None:
                    del self._keyed[entry.address, entry.key]
                return entry
            self._dead -= 1
        return None
