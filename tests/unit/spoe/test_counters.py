from __future__ import annotations

from collections.abc import Iterator

import pytest

from hcc.spoe.counters import BUCKET_BOUNDS_NS, CounterMemory, CountersError, CounterSlots, Slot


@pytest.fixture
def memory() -> Iterator[CounterMemory]:
    made = CounterMemory(2)
    yield made
    made.close()


def test_each_worker_counts_in_its_own_slots(memory: CounterMemory) -> None:
    CounterSlots(memory.fd, 0).answered(3, 2, 7_000)
    CounterSlots(memory.fd, 1).add(Slot.FRAMES_BAD)
    first, second = memory.read()
    assert (first.requests, first.allowed, first.denied, first.frames_bad) == (3, 2, 1, 0)
    assert (second.requests, second.frames_bad) == (0, 1)


def test_a_successor_goes_on_counting_but_starts_with_no_connections(memory: CounterMemory) -> None:
    dead = CounterSlots(memory.fd, 0)
    dead.set(Slot.CONNECTIONS_OPEN, 5)
    dead.answered(1, 1, 1)
    memory.zero_gauges(0)
    CounterSlots(memory.fd, 0).answered(1, 1, 1)
    assert memory.read()[0].requests == 2
    assert memory.read()[0].connections_open == 0


@pytest.mark.parametrize(("elapsed_ns", "bucket"), [(0, 0), (5_000, 0), (5_001, 1), (25_000_000, 9), (10**10, 10)])
def test_times_fall_into_the_bucket_whose_bound_they_do_not_exceed(
    memory: CounterMemory, elapsed_ns: int, bucket: int
) -> None:
    CounterSlots(memory.fd, 1).answered(4, 0, elapsed_ns)
    read = memory.read()[1]
    assert read.latency_sum_ns == 4 * elapsed_ns
    assert read.latency_buckets[bucket] == sum(read.latency_buckets) == 4
    assert len(read.latency_buckets) == len(BUCKET_BOUNDS_NS) + 1


def test_slots_beyond_the_memory_are_refused(memory: CounterMemory) -> None:
    with pytest.raises(CountersError):
        CounterSlots(memory.fd, 2)
