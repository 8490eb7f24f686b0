"""A worker process: one thread, one epoll loop over listener, SPOP connections and control socket."""

from __future__ import annotations

import binascii
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import NoReturn

from hcc.spoe.cache import Answer, DecisionCache, answer_for
from hcc.spoe.caller import Asked
from hcc.spoe.channel import Channel
from hcc.spoe.connection import Connection, Event, Parted
from hcc.spoe.control import MAX_ORDER_BYTES, ControlMessage, Topic, message, refused_request
from hcc.spoe.counters import CounterSlots, Slot
from hcc.spoe.decision import Decision, refusal
from hcc.spoe.listener import Place
from hcc.spoe.policy_codec import decode_policy
from hcc.spoe.readiness import is_readable
from hcc.spoe.status import Status

RECEIVE_BYTES = 65_536
# Well below the usual limit of 1024 open files; further connections wait in the listener's queue.
MAX_CONNECTIONS = 900
# Who waits so long in another worker's queue is taken from it: that one is dead, hangs, or has too much to do.
STAND_IN_S = 0.03
# So soon it is tried again to accept where there is no file or memory left for another connection.
SCARCE_S = 1.0
_SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# A peer that asks but does not read its answers is not read either.
MAX_UNSENT_BYTES = 1024 * 1024
# Denials waiting for the main process; more are dropped and counted.
MAX_NOTICE_BYTES = 256 * 1024
# Denials told in a second; the others are counted.
MAX_DENIALS_TOLD = 20
# A certificate longer than this is asked about each time; the main process reads no more of us at once.
MAX_MET_BYTES = 8 * 1024
# How long a closed connection may take to read our last words, and a stopping worker to say them.
LINGER_S = 1.0
DRAIN_S = 2.0
_TICK_S = 0.1
# A main process that was killed, or left for an upgrade, has a successor within this time; then nobody is let in.
ALONE_S = 300.0
# Its sockets close before its process counts as gone.
_GONE_S = 1.0
# Reads per connection before parting: more than the questions HAProxy can have on their way.
_LAST_READS = 16
_EVENTS_AT_ONCE = 256


class _Peer:
    """One connection of HAProxy."""

    __slots__ = ("connection", "linger_until", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection = Connection()
        self.unsent = b""
        # Set once all is said; until then what comes is read away: closing on unread bytes is a reset.
        self.linger_until = 0.0


class Worker:
    """The loop; `run` returns when the worker is to exit.

    Args:
        listener: bound and listening; shared with the main process, which keeps it for a successor, and the others.
        others: listeners of the other workers, whom this one stands in for.
        control: the socket to the main process; its end is our end.
        slots: our counters.
        main_pidfd: readable when the main process is gone.
    """

    def __init__(
        self,
        listener: socket.socket,
        others: Sequence[socket.socket],
        control: socket.socket,
        slots: CounterSlots,
        main_pidfd: int,
    ) -> None:
        for one in (listener, *others):
            one.setblocking(False)
        self._listener: socket.socket | None = listener
        self._others = {other.fileno(): other for other in others}
        # When to look who still waits there; 0 while nobody came.
        self._stand_in_at = 0.0
        self._accepting = False
        # When to accept again; 0 while nothing is scarce.
        self._accept_at = 0.0
        self._channel = Channel(control, MAX_ORDER_BYTES)
        self._control_mask = select.EPOLLIN
        self._slots = slots
        self._cache = DecisionCache()
        self._peers: dict[int, _Peer] = {}
        self._lingering: set[int] = set()
        self._epoll = select.epoll()
        for other in others:
            # Tells once of whoever comes: mostly the other takes it.
            self._epoll.register(other, select.EPOLLIN | select.EPOLLET)
        self._drain_until = 0.0
        self._denials_until = 0.0
        self._denials_left = 0
        self._main_pidfd = main_pidfd
        self._place = Place(listener)
        self._alone_until = 0.0

    def run(self) -> None:
        """Serve until told to stop and drained.

        When the main process is gone: until the workers of its successor serve in our place, or for `ALONE_S`, by
        the last policy. HAProxy goes on as well then, and callers need not notice.
        """
        self._slots.set(Slot.CONNECTIONS_OPEN, 0)
        self._slots.set(Slot.CACHED, 0)
        self._epoll.register(self._channel, self._control_mask)
        self._channel.send(message(Topic.READY, pid=os.getpid()))
        self._serve_control()
        while self._channel.receiving and not self._channel.ended:
            # A policy that was left to be read first. Without it a caller would be refused who may come in.
            self._epoll.poll(_TICK_S)
            self._serve_control()
        self._accept_more()
        while not self._drained() and (not self._channel.ended or self._alone()):
            for fd, mask in self._epoll.poll(self._timeout_s(), _EVENTS_AT_ONCE):
                self._serve(fd, mask)
            if self._lingering:
                self._end_lingering()
            if self._accept_at:
                self._accept_again()
            if self._stand_in_at:
                self._stand_in()

    def _timeout_s(self) -> float:
        due = [at for at in (self._stand_in_at, self._accept_at) if at]
        if due:
            return min(max(min(due) - time.monotonic(), 0.0), _TICK_S)
        return _TICK_S if self._lingering or self._drain_until or self._alone_until else -1

    def _alone(self) -> bool:
        """Whether there is something to do without a main process."""
        now = time.monotonic()
        if self._drain_until:
            return bool(self._alone_until)
        if not self._alone_until:
            if self._cache.policy is None or not is_readable(self._main_pidfd, _GONE_S):
                return False
            self._epoll.unregister(self._channel)
            self._alone_until = now + ALONE_S
        if now > self._alone_until or self._place.taken():
            self._stop()
        return True

    def _drained(self) -> bool:
        return bool(self._drain_until) and (not self._peers or time.monotonic() > self._drain_until)

    def _serve(self, fd: int, mask: int) -> None:
        peer = self._peers.get(fd)
        if peer is not None:
            try:
                self._serve_peer(peer, mask)
            except BlockingIOError:
                # An event about a connection that had this number before.
                return
            except OSError:
                self._drop(peer)
        elif fd == self._channel.fileno():
            self._serve_control()
        elif self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
        elif fd in self._others and not self._stand_in_at:
            self._stand_in_at = time.monotonic() + STAND_IN_S

    # ---- connections

    def _stand_in(self) -> None:
        """Take whoever waits for the others, once it is time."""
        now = time.monotonic()
        if now < self._stand_in_at:
            return
        self._stand_in_at = 0.0
        if self._cache.policy is None:
            # We could only deny.
            return
        while self._accepting and any(self._accept(other) for other in self._others.values()):
            pass
        if self._others and not self._accepting:
            # We cannot take them now, and are not told of them again.
            self._stand_in_at = now + STAND_IN_S

    def _accept(self, listener: socket.socket) -> bool:
        """Whether somebody was there, and taken."""
        try:
            sock, _ = listener.accept()
        except OSError as exc:
            # Somebody gave up waiting. Or there is no file left, but one when a connection of whoever ends; the queue
            # keeps the others.
            if exc.errno in _SCARCE:
                self._accept_no_more()
                self._accept_at = time.monotonic() + SCARCE_S
            return False
        sock.setblocking(False)
        peer = _Peer(sock)
        self._peers[sock.fileno()] = peer
        self._epoll.register(sock, select.EPOLLIN)
        self._slots.add(Slot.CONNECTIONS_TOTAL)
        self._slots.set(Slot.CONNECTIONS_OPEN, len(self._peers))
        if len(self._peers) >= MAX_CONNECTIONS:
            self._accept_no_more()
        return True

    def _accept_no_more(self) -> None:
        if self._listener is not None and self._accepting:
            self._epoll.unregister(self._listener)
            self._accepting = False

    def _accept_again(self) -> None:
        if time.monotonic() >= self._accept_at:
            self._accept_at = 0.0
            if len(self._peers) < MAX_CONNECTIONS:
                self._accept_more()

    def _accept_more(self) -> None:
        if self._listener is not None and not self._accepting:
            self._epoll.register(self._listener, select.EPOLLIN)
            self._accepting = True

    def _serve_peer(self, peer: _Peer, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._send(peer, b"")
        if not mask & ~select.EPOLLOUT:
            return
        data = peer.sock.recv(RECEIVE_BYTES)
        if peer.linger_until:
            if not data:
                self._drop(peer)
            return
        started_ns = time.perf_counter_ns()
        connection = peer.connection
        if data:
            connection.receive_data(data)
        else:
            connection.receive_eof()
        answered, allowed = self._answer(connection, connection.events())
        self._send(peer, connection.data_to_send())
        if answered:
            self._slots.answered(len(answered), allowed, time.perf_counter_ns() - started_ns)
            # Behind the answers, as somebody waits for those.
            self._tell(answered)
        if not data:
            self._drop(peer)

    def _send(self, peer: _Peer, data: bytes) -> None:
        """Send what waits and `data`, in one piece if the socket takes it; the rest waits for EPOLLOUT."""
        waited = peer.unsent
        if waited:
            data = waited + data
        if data:
            try:
                peer.unsent = data[peer.sock.send(data) :]
            except BlockingIOError:
                peer.unsent = data
        if peer.unsent or waited:
            reading = select.EPOLLIN if len(peer.unsent) < MAX_UNSENT_BYTES else 0
            self._epoll.modify(peer.sock, reading | (select.EPOLLOUT if peer.unsent else 0))
        if not peer.unsent and peer.connection.finished and not peer.linger_until:
            self._linger(peer)

    def _linger(self, peer: _Peer) -> None:
        peer.sock.shutdown(socket.SHUT_WR)
        peer.linger_until = time.monotonic() + LINGER_S
        self._lingering.add(peer.sock.fileno())

    def _end_lingering(self) -> None:
        now = time.monotonic()
        for peer in [self._peers[fd] for fd in self._lingering]:
            if now > peer.linger_until:
                self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        fd = peer.sock.fileno()
        self._lingering.discard(fd)
        del self._peers[fd]
        peer.sock.close()
        self._slots.set(Slot.CONNECTIONS_OPEN, len(self._peers))
        self._accept_more()

    # ---- answers

    def _answer(self, connection: Connection, events: list[Event]) -> tuple[list[tuple[Asked, Answer]], int]:
        """Answer every question among the events; which there were, and how many callers may come in."""
        known = self._cache.answers
        answered: list[tuple[Asked, Answer]] = []
        allowed = 0
        for event in events:
            if type(event) is Asked:
                answer = known.get(event.der) if event.der else None
                if answer is None:
                    answer = self._decide(event)
                elif not answer.decision.understood:
                    self._slots.add(Slot.ERRORS)
                connection.acknowledge(event.ids, answer.actions, answer.brief)
                answered.append((event, answer))
                allowed += answer.counted
            elif type(event) is Parted and not event.by_peer and event.status != Status.NORMAL:
                self._slots.add(Slot.FRAMES_BAD)
        return answered, allowed

    def _decide(self, asked: Asked) -> Answer:
        if asked.refused:
            return answer_for(refusal("rules refuse the request"))
        if asked.fault:
            self._slots.add(Slot.ERRORS)
            return answer_for(refusal(asked.fault))
        answer = self._cache.decide(asked.der)
        self._slots.set(Slot.CACHED, len(self._cache.answers))
        decision = answer.decision
        if not decision.understood:
            self._slots.add(Slot.ERRORS)
        return answer

    # ---- the main process

    def _tell(self, answered: list[tuple[Asked, Answer]]) -> None:
        for asked, answer in answered:
            if not answer.counted:
                self._tell_denied(asked, answer.decision)
            elif asked.peer:
                self._tell_met(asked)

    def _tell_denied(self, asked: Asked, decision: Decision) -> None:
        """Tell of a denial, of so many in a second; of a fault not: it says something about a configuration."""
        if asked.fault:
            return
        now = time.monotonic()
        if now > self._denials_until:
            self._denials_until, self._denials_left = now + 1.0, MAX_DENIALS_TOLD
        if not self._denials_left:
            self._slots.add(Slot.NOTICES_DROPPED)
            return
        self._denials_left -= 1
        if asked.refused:
            self._notify(refused_request(asked.refused))
        else:
            self._notify(message(Topic.DENIED, source=decision.source, reason=decision.reason))

    def _tell_met(self, asked: Asked) -> None:
        """Let the main process make HAProxy remember this caller; it does not take our word for who it is."""
        if len(asked.der) <= MAX_MET_BYTES:
            der = binascii.b2a_base64(asked.der, newline=False).decode("ascii")
            self._notify(message(Topic.MET, der=der, peer=asked.peer.hex()))

    def _notify(self, notice: ControlMessage) -> None:
        if self._channel.ended:
            return
        if self._channel.waiting_bytes > MAX_NOTICE_BYTES:
            self._slots.add(Slot.NOTICES_DROPPED)
            return
        self._channel.send(notice)
        self._watch_control()

    def _serve_control(self) -> None:
        for received in self._channel.receive():
            if received.topic is Topic.POLICY:
                policy = decode_policy(received.body)
                self._cache.set_policy(policy)
                self._slots.set(Slot.CACHED, 0)
                # Who came before there was one may wait there still.
                self._stand_in_at = time.monotonic() + STAND_IN_S
                self._channel.send(message(Topic.POLICY_APPLIED, version=policy.version))
            elif received.topic is Topic.PING:
                self._channel.send(ControlMessage(Topic.PONG))
            elif received.topic is Topic.STOP:
                self._stop()
        self._channel.flush()
        self._watch_control()

    def _watch_control(self) -> None:
        mask = select.EPOLLIN | (select.EPOLLOUT if self._channel.waiting_bytes else 0)
        if self._channel.ended:
            return
        if mask != self._control_mask:
            self._epoll.modify(self._channel, mask)
            self._control_mask = mask

    def _stop(self) -> None:
        """Accept nobody, answer what is in, part from everybody."""
        self._drain_until = time.monotonic() + DRAIN_S
        if self._listener is not None:
            # Closing is not enough: the main process holds the socket too, and epoll would go on reporting.
            if self._accepting:
                self._epoll.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for other in self._others.values():
            self._epoll.unregister(other)
            other.close()
        self._others = {}
        for peer in list(self._peers.values()):
            try:
                self._serve_last(peer)
            except OSError:
                self._drop(peer)

    def _serve_last(self, peer: _Peer) -> None:
        try:
            for _ in range(_LAST_READS):
                if peer.linger_until or peer.sock.fileno() < 0:
                    return
                self._serve_peer(peer, select.EPOLLIN)
        except BlockingIOError:
            pass
        if peer.sock.fileno() < 0:
            # Its end came with the last read.
            return
        peer.connection.stop()
        peer.connection.events()
        self._send(peer, peer.connection.data_to_send())


def serve(
    listener: socket.socket,
    others: Sequence[socket.socket],
    control: socket.socket,
    counters_fd: int,
    index: int,
    main_pidfd: int,
) -> NoReturn:
    """Be a worker until the process ends: with status 0, drained or relieved."""
    slots = CounterSlots(counters_fd, index)
    os.close(counters_fd)
    Worker(listener, others, control, slots, main_pidfd).run()
    os._exit(0)
