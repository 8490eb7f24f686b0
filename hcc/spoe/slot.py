"""One worker's place in the pool: its listener and number stay, its processes come and go."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from hcc.spoe.channel import Channel
from hcc.spoe.control import MAX_NEWS_BYTES, ControlMessage, ControlMessageError, Topic
from hcc.spoe.events import (
    PolicyApplied,
    PoolEvent,
    WorkerExited,
    WorkerPhase,
    WorkerReady,
    WorkerState,
    worker_event,
)
from hcc.spoe.listener import Listener
from hcc.spoe.readiness import Readiness, is_readable
from hcc.spoe.spawner import Forked, Spawner, SpawnError


class WorkerSlot:
    """The process that is there now, if any, and the channel to it.

    Args:
        index: of the worker.
        listener: handed to each process.
        readiness: where the channel and the pidfd are watched.
        emit: takes what is to be told to the pool's owner.
        on_death: called when the process has ended; it is to call `vacate`.
    """

    def __init__(
        self,
        index: int,
        listener: Listener,
        readiness: Readiness,
        emit: Callable[[PoolEvent], None],
        on_death: Callable[[WorkerSlot], None],
    ) -> None:
        self.index = index
        self.phase = WorkerPhase.EXITED
        self.pid = 0
        self.starts = 0
        self._listener = listener
        self._readiness = readiness
        self._emit = emit
        self._on_death = on_death
        self._channel: Channel | None = None
        self._pidfd = -1
        self._policy_version: int | None = None
        # Of the process that is there now: looks at it in a row that it did not answer.
        self._unanswered = 0
        # Said by the worker, which can be quicker than the zygote's report.
        self._ready: WorkerReady | None = None

    @property
    def listener(self) -> Listener:
        return self._listener

    @property
    def unborn(self) -> bool:
        """Asked for, but the zygote has not said yet that it has a process."""
        return self.phase is not WorkerPhase.EXITED and self._pidfd < 0

    def state(self) -> WorkerState:
        """The worker, now."""
        return WorkerState(self.index, self._listener.path, self.phase, self.pid, self._policy_version, self.starts)

    def begin(
        self, spawner: Spawner, counters_fd: int, policy: ControlMessage | None, others: Iterable[Listener]
    ) -> None:
        """Ask the zygote for a process, and leave it the policy to read first.

        Args:
            spawner: of the zygote.
            counters_fd: of the memory that all workers count in.
            policy: what to decide by, None while none is known.
            others: the other workers' listeners.

        Raises:
            SpawnError: the zygote is gone, or there is no file left.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise SpawnError(f"cannot talk to SPOE worker {self.index + 1}: {exc.strerror}") from exc
        channel = Channel(ours, MAX_NEWS_BYTES)
        if policy is not None:
            # Before there is a process: it must find the policy before the first question.
            channel.send(policy)
        with theirs:
            try:
                listeners = (one.sock.fileno() for one in (self._listener, *others))
                descriptors = (theirs.fileno(), counters_fd, *listeners)
                spawner.spawn(self.index, self.starts + 1, descriptors)
            except BaseException:
                channel.close()
                raise
        self.phase = WorkerPhase.STARTING
        self._unanswered = 0
        self.starts += 1
        self._channel = channel
        self._readiness.watch(channel.fileno(), self.hear)
        self._settle(channel)

    def adopt(self, forked: Forked, *, wanted: bool) -> None:
        """Take the process that the zygote made; one that came too late to be wanted has no channel, and exits."""
        if not wanted:
            os.close(forked.pidfd)
            return
        self.pid, self._pidfd = forked.pid, forked.pidfd
        self._readiness.watch(self._pidfd, self._see_death)
        self._announce()

    def order(self, message: ControlMessage) -> None:
        """Tell the process, if there is one; an order about the same topic that still waits is dropped."""
        if self._channel is not None:
            self._channel.replace(message)
            self._settle(self._channel)

    def ping(self) -> int:
        """Ask for a sign of life; how many were asked for since the last one came."""
        if self.phase is not WorkerPhase.EXITED:
            self._unanswered += 1
            self.order(ControlMessage(Topic.PING))
        return self._unanswered

    def hear(self) -> None:
        """Emit what the process tells; one that sends nonsense loses its channel, and so exits."""
        channel = self._channel
        if channel is None:
            return
        try:
            for news in channel.receive():
                self._take(news)
        except ControlMessageError:
            self.kill()
            channel.ended = True
        channel.flush()
        self._settle(channel)

    def kill(self) -> None:
        """End the process at once; one that is unborn will find its channel closed, and exit."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self.unborn:
            self.vacate(None, "it was not wanted any more")

    def find_listener(self) -> bool:
        """Bind the socket anew where it is lost, and end the process, which listens on the old one; whether so.

        Raises:
            ListenerError: it cannot be bound; all stays as it is.
        """
        if not self._listener.lost():
            return False
        before, self._listener = self._listener, Listener(self._listener.path)
        before.close()
        self.kill()
        return True

    def vacate(self, status: int | None, reason: str = "") -> None:
        """Emit the end of the process, and be ready for another."""
        self._end_channel()
        if self._pidfd >= 0:
            self._readiness.unwatch(self._pidfd)
            os.close(self._pidfd)
        self._emit(WorkerExited(self.index, self.pid, status, reason))
        self.phase, self.pid, self._pidfd = WorkerPhase.EXITED, 0, -1
        self._policy_version = self._ready = None

    def leave(self) -> None:
        """Let the process go on by itself once ours has ended."""
        if self._channel is not None:
            self._readiness.unwatch(self._channel.fileno())
            self._channel.leave()
            self._channel = None

    def close(self) -> None:
        """Give everything back; no process may be left."""
        self._end_channel()
        self._listener.close()

    def _take(self, news: ControlMessage) -> None:
        # Whatever it says, it lives.
        self._unanswered = 0
        if news.topic is Topic.PONG:
            return
        event = worker_event(self.index, news)
        if isinstance(event, PolicyApplied):
            self._policy_version = event.version
            # Now it can decide, and whoever served there before may go.
            self._listener.take_place()
        elif isinstance(event, WorkerReady):
            self._ready = event
            self._announce()
            return
        self._emit(event)

    def _announce(self) -> None:
        """Emit that the worker is ready, once it says so itself and its process is known."""
        if self._ready is not None and self._pidfd >= 0:
            self.phase = WorkerPhase.READY
            self._emit(self._ready)
            self._ready = None

    def _see_death(self) -> None:
        if self._pidfd >= 0 and is_readable(self._pidfd, 0):
            self.hear()
            self._on_death(self)

    def _settle(self, channel: Channel) -> None:
        if channel is not self._channel:
            return
        if channel.ended:
            self._end_channel()
        else:
            self._readiness.want_write(channel.fileno(), bool(channel.waiting_bytes))

    def _end_channel(self) -> None:
        if self._channel is not None:
            self._readiness.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None
