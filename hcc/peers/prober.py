"""Probes endpoints: many handshakes at once in one thread, so that endpoints that say nothing hold up nobody."""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hcc.mesh.peer_book import NoAnswer, Outcome, Peer
from hcc.peers.handshake import Handshake, reason

# Connecting and the handshake together.
TIMEOUT_S = 3.0
CHUNK_BYTES = 16 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of the probe of one endpoint."""

    peer: Peer
    outcome: Outcome


Deliver = Callable[[tuple[Probed, ...]], None]


class Prober:
    """One daemon thread; `stop` ends it, and every probe that is under way without an outcome.

    Args:
        deliver: called in that thread with outcomes as they come, those of one moment together; and once with nothing
            when the thread ends by itself, which is an error.
    """

    def __init__(self, deliver: Deliver, timeout_s: float = TIMEOUT_S) -> None:
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._asked: deque[tuple[Peer, ssl.SSLContext]] = deque()
        self._stopping = False
        self._waker, self._bell = socket.socketpair()
        for end in (self._waker, self._bell):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin.

        Raises:
            OSError: no thread is left; another prober may find one later.
        """
        try:
            self._thread.start()
        except RuntimeError as exc:
            self.stop()
            raise OSError(errno.EAGAIN, str(exc)) from exc

    def stop(self) -> None:
        """Return when the thread has ended."""
        self._stopping = True
        self._ring()
        if self.running:
            self._thread.join(self._timeout_s)
        self._waker.close()
        if self._thread.ident is None:
            # Never started: there is no thread whose own it is.
            self._bell.close()

    def ask(self, peers: Iterable[Peer], context: ssl.SSLContext) -> None:
        """Probe these, by this context. From any thread."""
        self._asked.extend((peer, context) for peer in peers)
        self._ring()

    def _ring(self) -> None:
        # A full pipe rings already; a closed one has nobody to hear it.
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                _Loop(selector, self._bell, self._timeout_s).run(self._asked, self._deliver, lambda: self._stopping)
        except Exception:  # noqa: BLE001 (the thread ends here, and its owner hears of it)
            _log.exception("the prober failed")
            self._deliver(())
        finally:
            self._bell.close()


@dataclass(slots=True)
class _Probe:
    number: int
    peer: Peer
    sock: socket.socket
    handshake: Handshake
    deadline_s: float
    to_send: bytes = b""
    connected: bool = False


class _Loop:
    """The thread's own."""

    def __init__(self, selector: selectors.BaseSelector, bell: socket.socket, timeout_s: float) -> None:
        self._selector = selector
        self._bell = bell
        self._timeout_s = timeout_s
        # By a number of their own, which no later probe has.
        self._probes: dict[int, _Probe] = {}
        self._numbers = itertools.count()
        self._deadlines: list[tuple[float, int]] = []
        self._done: list[Probed] = []

    def run(self, asked: deque[tuple[Peer, ssl.SSLContext]], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        self._selector.register(self._bell, selectors.EVENT_READ)
        try:
            while not stopping():
                while asked:
                    self._begin(*asked.popleft())
                self._hand_over(deliver)
                for key, _ in self._selector.select(self._wait_s()):
                    if key.data is None:
                        self._quiet()
                    else:
                        self._go_on(key.data)
                self._expire()
                self._hand_over(deliver)
        finally:
            for probe in self._probes.values():
                probe.sock.close()

    def _hand_over(self, deliver: Deliver) -> None:
        if self._done:
            done, self._done = tuple(self._done), []
            deliver(done)

    def _quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def _wait_s(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._probes:
            heapq.heappop(self._deadlines)
        return max(0.0, self._deadlines[0][0] - time.monotonic()) if self._deadlines else None

    def _begin(self, peer: Peer, context: ssl.SSLContext) -> None:
        family = socket.AF_INET6 if ":" in peer.address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:
            self._done.append(Probed(peer, NoAnswer(reason(exc), asked=False)))
            return
        sock.setblocking(False)
        probe = _Probe(next(self._numbers), peer, sock, Handshake(context), time.monotonic() + self._timeout_s)
        try:
            failed = sock.connect_ex((peer.address, peer.port))
        except (OSError, OverflowError) as exc:
            failed, text = -1, str(exc)
        else:
            text = os.strerror(failed)
        if failed not in (0, errno.EINPROGRESS):
            sock.close()
            # Nothing was sent: what the other side says to it comes later.
            self._done.append(Probed(peer, NoAnswer(f"cannot be connected to: {text}", asked=False)))
            return
        self._probes[probe.number] = probe
        heapq.heappush(self._deadlines, (probe.deadline_s, probe.number))
        self._selector.register(sock, selectors.EVENT_WRITE, probe)

    def _go_on(self, probe: _Probe) -> None:
        try:
            if not probe.connected:
                self._connected(probe)
            elif probe.to_send:
                self._send(probe)
            else:
                self._take(probe, probe.handshake.receive(probe.sock.recv(CHUNK_BYTES)))
        except BlockingIOError:
            return
        except OSError as exc:
            self._end(probe, NoAnswer(f"breaks the connection: {reason(exc)}"))

    def _connected(self, probe: _Probe) -> None:
        failed = probe.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self._end(probe, NoAnswer(f"cannot be connected to: {os.strerror(failed)}"))
            return
        probe.connected = True
        self._take(probe, probe.handshake.start())

    def _take(self, probe: _Probe, step: bytes | Outcome) -> None:
        if isinstance(step, bytes):
            probe.to_send = step
            self._send(probe)
        else:
            self._end(probe, step)

    def _send(self, probe: _Probe) -> None:
        if probe.to_send:
            with contextlib.suppress(BlockingIOError):
                probe.to_send = probe.to_send[probe.sock.send(probe.to_send) :]
        self._selector.modify(probe.sock, selectors.EVENT_WRITE if probe.to_send else selectors.EVENT_READ, probe)

    def _expire(self) -> None:
        now_s = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            probe = self._probes.get(heapq.heappop(self._deadlines)[1])
            if probe is not None:
                what = "does not finish the handshake" if probe.connected else "cannot be connected to"
                self._end(probe, NoAnswer(f"{what} within {self._timeout_s:g} s"))

    def _end(self, probe: _Probe, outcome: Outcome) -> None:
        del self._probes[probe.number]
        self._selector.unregister(probe.sock)
        probe.sock.close()
        self._done.append(Probed(probe.peer, outcome))
