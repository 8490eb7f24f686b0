"""`make bench-spoe`: what one SPOE worker answers on one core, how fast, and what memory it takes.

The worker is the real one, of a real pool, pinned to a core; the generator is this process, pinned to another. It
sends frames that were built before and counts the bytes that come back, so that a question costs it less than the
worker; `worker busy` near 1 shows that it was the worker that set the rate.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.spoe.events import PolicyApplied
from hcc.spoe.frames import LENGTH_BYTES
from hcc.spoe.pool import WorkerPool
from tests.bench.machine import load_average, versions
from tests.bench.memory import Member, cpu_s, pss_kib
from tests.bench.report import Cell, Report, Table
from tests.integration.spoe_frontend import events_until
from tests.spoe_certificates import TRUST_DOMAIN, Authority
from tests.spop_frames import caller, frames_of, hello, variables

ROUNDS = 7
ROUND_S = 2.0
CALLERS = 64
NEW_CALLERS = 4000
BATCHES = 64
# Of one answer that names a caller, for the floor.
ANSWER_BYTES = 45
# Connections, and questions on their way on each.
SHAPES = ((1, 1), (8, 1), (1, 16))
_RECEIVE_BYTES = 65_536
_CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Round:
    """One round: `times_ns` from sending a batch (on each connection) to having all answers, sorted."""

    messages: int
    seconds: float
    times_ns: list[int]
    worker_cpu_s: float
    own_cpu_s: float

    def percentile_us(self, share: float) -> float:
        return self.times_ns[min(len(self.times_ns) - 1, int(share * len(self.times_ns)))] / 1000


class Agent:
    """HAProxy's side of one connection to the worker."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(path)
        self.exchange(hello(), 1)

    def exchange(self, frames: bytes, answers: int) -> bytes:
        """Send frames, and receive that many."""
        self.sock.sendall(frames)
        received = b""
        while _whole_frames(received) < answers:
            received += _more(self.sock)
        return received


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(_RECEIVE_BYTES)
    assert data, "the worker closed the connection"
    return data


def main() -> None:
    """Run it, print the tables, write the file."""
    before = load_average()
    authority = Authority()
    known = [authority.service(f"caller-{number:03}").der() for number in range(CALLERS)]
    print(f"... making {NEW_CALLERS} certificates", flush=True)
    new = [authority.service(f"new-{number:05}").der() for number in range(NEW_CALLERS)]
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as folder:
        pool = WorkerPool((str(Path(folder) / "w.sock"),))
        try:
            pool.start()
            policy = Policy("server", TRUST_DOMAIN, (Intention("*", Action.ALLOW, 8),), False, 1)
            pool.set_policy(policy)
            events_until(pool, lambda seen: PolicyApplied(0, 1) in seen)
            os.sched_setaffinity(pool.workers()[0].pid, {_CORES[-1]})
            os.sched_setaffinity(0, {_CORES[0]})
            tables = _measured(pool, known, new)
        finally:
            pool.close(1)
    facts = {**versions(), "cores": str(len(_CORES)), "load": f"{before} before, {load_average()} after"}
    settings: dict[str, Cell] = {"rounds": ROUNDS, "round_s": ROUND_S, "callers": CALLERS, "der_bytes": len(known[0])}
    report = Report("spoe", facts, settings, tables)
    print(report.text())
    print(f"\nwritten to {report.write()}")


def _measured(pool: WorkerPool, known: Sequence[bytes], new: Sequence[bytes]) -> tuple[Table, ...]:
    state = pool.workers()[0]
    worker = Member(state.pid, 0, "python", "SPOE worker")
    memory = {"ready": pss_kib(worker.pid)}
    agents = [Agent(state.socket_path) for _ in range(max(connections for connections, _ in SHAPES))]
    rates = []
    for connections, depth in SHAPES:
        name = f"{connections} connection{'s' * (connections > 1)}, depth {depth}"
        print(f"... {name}, {ROUNDS} rounds", flush=True)
        batches = _batches(known, depth)
        _check(agents[0], batches[0], depth)
        socks = [agent.sock for agent in agents[:connections]]
        expected = len(agents[0].exchange(batches[0], depth))
        rounds = [_round(socks, batches, depth, expected, worker) for _ in range(ROUNDS)]
        rates.append(_row(name, rounds))
    memory["after known callers"] = pss_kib(worker.pid)
    print("... new callers", flush=True)
    rates.append(
        _row("new callers, 1 connection, depth 1", [_once(agents[0], [caller(der, 0, 1) for der in new], worker)])
    )
    memory[f"after {len(new):,} more callers"] = pss_kib(worker.pid)
    counters = pool.counters()[0]
    assert counters.denied == 0, f"{counters.denied} of the answers were no"
    for agent in agents:
        agent.sock.close()
    question = _batches(known, 1)[:1]
    with _echo(ANSWER_BYTES) as (sock, echo):
        rounds = [_round([sock], question, 1, ANSWER_BYTES, echo) for _ in range(ROUNDS)]
        rates.append(_row("floor: a loop that only echoes, depth 1", rounds))
    columns = ("questions", "per s", "min", "max", "p50 us", "p99 us", "CPU us each", "worker busy", "generator busy")
    note = (
        "Per second and times: median of the rounds; a time is that of a whole batch, one send for each connection. "
        "CPU: of the worker. Worker busy near 1: it set the rate; else the scheduler or other jobs did, and 1 s / CPU "
        "says what a core could do. The floor parses nothing: what the kernel's way to and fro takes here."
    )
    rows = tuple((when, round(kib / 1024, 1)) for when, kib in memory.items())
    return (
        Table("One worker on one core", columns, tuple(rates), note),
        Table("Memory of the worker", ("when", "PSS MiB"), rows, "Pages shared with the zygote are divided by both."),
    )


def _batches(ders: Sequence[bytes], depth: int) -> list[bytes]:
    """Batches of questions, as many bytes back for each; all callers come in turn."""
    return [
        b"".join(caller(ders[(number * depth + offset) % len(ders)], 1 + 2 * offset, 1) for offset in range(depth))
        for number in range(BATCHES)
    ]


def _check(agent: Agent, batch: bytes, depth: int) -> None:
    answers = frames_of(agent.exchange(batch, depth))
    assert [answer.stream_id for answer in answers] == [1 + 2 * offset for offset in range(depth)]
    assert all(variables(answer)["allowed"] is True for answer in answers)


def _round(
    socks: Sequence[socket.socket], batches: Sequence[bytes], depth: int, expected: int, worker: Member
) -> Round:
    """Batch after batch on all connections at once; answers to batches have one length, so bytes are counted."""
    now = time.perf_counter_ns
    times: list[int] = []
    cpu_before, own_before = cpu_s((worker,)), time.process_time()
    started = before = now()
    end = started + int(ROUND_S * 1e9)
    while before < end:
        for batch in batches:
            for sock in socks:
                sock.sendall(batch)
            for sock in socks:
                missing = expected
                while missing > 0:
                    missing -= len(_more(sock))
            after = now()
            times.append(after - before)
            before = after
    return Round(
        len(times) * depth * len(socks),
        (before - started) / 1e9,
        sorted(times),
        cpu_s((worker,)) - cpu_before,
        time.process_time() - own_before,
    )


@contextmanager
def _echo(answer_bytes: int) -> Iterator[tuple[socket.socket, Member]]:
    """A process on the worker's core with the worker's three system calls, and nothing between them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.sched_setaffinity(0, {_CORES[-1]})
        _echo_loop(theirs, bytes(answer_bytes))
    theirs.close()
    try:
        yield ours, Member(pid, os.getpid(), "python", "echo")
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _echo_loop(sock: socket.socket, answer: bytes) -> NoReturn:
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN)
    while True:
        for _ in poll.poll():
            if not sock.recv(_RECEIVE_BYTES):
                os._exit(0)
            sock.send(answer)


def _once(agent: Agent, questions: Sequence[bytes], worker: Member) -> Round:
    """Each question once: no answer is remembered."""
    times: list[int] = []
    cpu_before, own_before, started = cpu_s((worker,)), time.process_time(), time.perf_counter()
    for question in questions:
        before = time.perf_counter_ns()
        agent.exchange(question, 1)
        times.append(time.perf_counter_ns() - before)
    seconds = time.perf_counter() - started
    return Round(len(times), seconds, sorted(times), cpu_s((worker,)) - cpu_before, time.process_time() - own_before)


def _row(name: str, rounds: Sequence[Round]) -> tuple[Cell, ...]:
    rates = [one.messages / one.seconds for one in rounds]
    return (
        name,
        statistics.median(rates),
        min(rates),
        max(rates),
        statistics.median(one.percentile_us(0.5) for one in rounds),
        statistics.median(one.percentile_us(0.99) for one in rounds),
        1e6 * sum(one.worker_cpu_s for one in rounds) / sum(one.messages for one in rounds),
        sum(one.worker_cpu_s for one in rounds) / sum(one.seconds for one in rounds),
        sum(one.own_cpu_s for one in rounds) / sum(one.seconds for one in rounds),
    )


def _whole_frames(data: bytes) -> int:
    count = 0
    while len(data) >= LENGTH_BYTES:
        data = data[LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big") :]
        count += 1
    return count


if __name__ == "__main__":
    main()
