"""Numbers of the workers in shared memory: each worker writes its own slots, the main process reads them all.

The memory is a memfd of the main process, so that the numbers outlive a worker and its zygote. A slot is an
aligned 64-bit word with one writer; a reader sees each word whole, but not all words of one moment.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum

from hcc.errors import HccError

WORD_BYTES = 8
# Upper bounds of the histogram of the time that answering takes; one more bucket takes the rest.
BUCKET_BOUNDS_NS = (
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
)


class Slot(IntEnum):
    """Where each number stands; the histogram follows."""

    REQUESTS = 0
    ALLOWED = 1
    DENIED = 2
    ERRORS = 3
    CONNECTIONS_OPEN = 4
    CONNECTIONS_TOTAL = 5
    FRAMES_BAD = 6
    NOTICES_DROPPED = 7
    CACHED = 8
    LATENCY_SUM_NS = 9


_FIRST_BUCKET = len(Slot)
# For what runs once per question: looking up a member of an Enum is slow in Python 3.11.
_REQUESTS, _ALLOWED, _DENIED = int(Slot.REQUESTS), int(Slot.ALLOWED), int(Slot.DENIED)
_LATENCY_SUM_NS = int(Slot.LATENCY_SUM_NS)
_WORDS = _FIRST_BUCKET + len(BUCKET_BOUNDS_NS) + 1


class CountersError(HccError):
    """The shared memory cannot be made, or is too small."""


@dataclass(frozen=True, slots=True)
class WorkerCounters:
    """One worker's numbers since the pool started, over all its restarts.

    Args:
        requests: NOTIFYs answered: `allowed` plus `denied`.
        allowed: also callers whose requests are left to the rules in HAProxy.
        errors: of the denied, those whose certificate was missing or could not be read.
        frames_bad: connections ended for what HAProxy sent.
        notices_dropped: denials and callers met that the main process was not told of: all denials beyond so many in
            a second, and both while it does not read.
        cached: decisions remembered now.
        latency_sum_ns: from reading a batch of questions to sending its answers, summed over questions.
        latency_buckets: questions by that time, not summed up; bounds in BUCKET_BOUNDS_NS, the last has none.
    """

    requests: int
    allowed: int
    denied: int
    errors: int
    connections_open: int
    connections_total: int
    frames_bad: int
    notices_dropped: int
    cached: int
    latency_sum_ns: int
    latency_buckets: tuple[int, ...]


class CounterMemory:
    """The memory itself, on the side of the main process.

    Args:
        workers: how many have slots.
    """

    def __init__(self, workers: int) -> None:
        self.fd = os.memfd_create("hcc-spoe-counters", os.MFD_CLOEXEC)
        self._workers = workers
        size_bytes = workers * _WORDS * WORD_BYTES
        os.ftruncate(self.fd, size_bytes)
        self._map = mmap.mmap(self.fd, size_bytes)
        self._words = memoryview(self._map).cast("Q")

    def read(self) -> tuple[WorkerCounters, ...]:
        """The numbers of every worker, by index."""
        return tuple(map(self._worker, range(self._workers)))

    def zero_gauges(self, index: int) -> None:
        """Forget what only a living worker has; only for a worker that is dead."""
        for slot in (Slot.CONNECTIONS_OPEN, Slot.CACHED):
            self._words[index * _WORDS + slot] = 0

    def close(self) -> None:
        """Give the memory back."""
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def _worker(self, index: int) -> WorkerCounters:
        words = self._words[index * _WORDS : (index + 1) * _WORDS].tolist()
        named = {slot.name.lower(): int(words[slot]) for slot in Slot}
        return WorkerCounters(**named, latency_buckets=tuple(map(int, words[_FIRST_BUCKET:])))


class CounterSlots:
    """One worker's slots, on the side of the worker: `answered` costs about half a microsecond.

    Args:
        fd: of the memory; closed by the caller when it likes.
        index: of the worker.
    """

    __slots__ = ("_map", "_words")

    def __init__(self, fd: int, index: int) -> None:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < (index + 1) * _WORDS * WORD_BYTES:
            raise CountersError(f"expected slots for worker {index}, found {size_bytes} bytes of memory")
        self._map = mmap.mmap(fd, size_bytes)
        self._words = memoryview(self._map).cast("Q")[index * _WORDS : (index + 1) * _WORDS]

    def add(self, slot: Slot, number: int = 1) -> None:
        """Count up."""
        self._words[slot] += number

    def set(self, slot: Slot, number: int) -> None:
        """Say what is now."""
        self._words[slot] = number

    def answered(self, questions: int, allowed: int, elapsed_ns: int) -> None:
        """Count questions that were answered together, this long after they were read."""
        words = self._words
        words[_REQUESTS] += questions
        words[_ALLOWED] += allowed
        words[_DENIED] += questions - allowed
        words[_LATENCY_SUM_NS] += elapsed_ns * questions
        words[_FIRST_BUCKET + bisect_left(BUCKET_BOUNDS_NS, elapsed_ns)] += questions
