"""Where HAProxy asks about tokens: one unix socket, served by one thread of the main process.

While that thread is not there nobody answers, and HAProxy denies. No token is kept or told.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hcc.log import LastingProblem
from hcc.mesh.caller import told_source
from hcc.mesh.intentions import Policy, demands_of
from hcc.metrics import Metrics
from hcc.spoe.caller import BRIEF_ACTIONS, REFUSED_ARGUMENTS, Asked
from hcc.spoe.connection import Connection
from hcc.spoe.listener import Listener, ListenerError
from hcc.spoe.payloads import Entries, SetVar, encode_actions
from hcc.spoe.values import Kind, Value

if TYPE_CHECKING:
    from hcc.tokens.check import Outcome, TokenChecker

DEMAND = "demand"
# What is answered: the demand that is fulfilled, and the headers to be taken away, with a comma on either side of each.
GIVEN, STRIP = b"token", b"strip"
MAX_CONNECTIONS = 200
# A HAProxy that asks but does not read its answers.
SEND_TIMEOUT_S = 1.0
# Refusals told in a second; all are counted.
MAX_TOLD = 20
MAX_WORD_CHARACTERS = 100
_RECEIVE_BYTES = 65_536
# Few connections at once, as it is one thread.
_BACKLOG_PAUSE_S = 0.1
# HAProxy may hear of a demand before we do, or before the library is there, and goes by one that is no more until its
# verdicts say otherwise (`hcc.haproxy.hold.HOLD_S` at most). Less than it waits for an answer.
NEWER_WITHIN_S = 0.3
EARLIER_S = 6.0
MAX_VAIN = 100
# Whether its file is still there is looked for this often.
LOOK_S = 1.0
_NO = BRIEF_ACTIONS[False]

Refused = Callable[[str, str], None]

_log = logging.getLogger(__name__)


class TokenServer:
    """The socket, and the policy by which tokens are checked.

    `serve` runs in a thread of its owner; `set_policy` and `wake` may be called from others.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str, metrics: Metrics) -> None:
        self._listener = Listener(path)
        self._listener.take_place()
        self._problem = LastingProblem(_log)
        self._checks = metrics.token_checks
        self._checker: TokenChecker | None = None
        self._policy: Policy | None = None
        self._changed = threading.Condition()
        # Demands that were waited for and did not come.
        self._vain: set[str] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Written by the thread that serves alone.
        self.refused_total = 0
        self._told_until_s = 0.0
        self._told_left = 0

    def set_policy(self, policy: Policy) -> None:
        """Check by this policy from now on, and for a moment by what the one before demanded.

        One that is older than the last is not taken: an actor that hung may come with it after its successor.
        """
        with self._changed:
            before = self._policy
            if before is not None and policy.version < before.version:
                return
            self._policy = policy
        checker = None
        if demands_of(policy) or (before is not None and demands_of(before)):
            # Few sidecars need the library; the others start without it.
            from hcc.tokens.check import TokenChecker  # noqa: PLC0415

            checker = TokenChecker(policy, before, EARLIER_S)
        with self._changed:
            if self._policy is not policy:
                # It took long, and a newer one came meanwhile.
                return
            self._checker = checker
            self._vain.clear()
            self._changed.notify_all()

    def serve(self, stop: threading.Event, refused: Refused) -> None:
        """Answer until `stop` is set and `wake` was called; `refused` is told caller and reason of some refusals."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            selector.register(self._listener.sock, selectors.EVENT_READ)
            peers: dict[socket.socket, Connection] = {}
            try:
                while not stop.is_set():
                    for key, _ in selector.select(LOOK_S):
                        if key.fileobj == self._wake_fd:
                            self._awake()
                        elif key.fileobj is self._listener.sock:
                            self._accept(selector, peers)
                        elif isinstance(key.fileobj, socket.socket):
                            self._serve_peer(selector, peers, key.fileobj, refused)
                    if self._listener.lost():
                        self._bind_anew(selector)
            finally:
                for sock in peers:
                    sock.close()

    def wake(self) -> None:
        """Let `serve` look whether it is to stop."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Give up the socket; `serve` has returned."""
        self._listener.close()
        os.close(self._wake_fd)

    # ---- connections

    def _awake(self) -> None:
        # Perhaps it was rung for another thread, that had ended already.
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _bind_anew(self, selector: selectors.BaseSelector) -> None:
        before = self._listener
        try:
            self._listener = Listener(before.path)
        except ListenerError as exc:
            self._problem.say(f"somebody removed the socket for questions about tokens: {exc}")
            return
        self._problem.over()
        self._listener.take_place()
        selector.unregister(before.sock)
        selector.register(self._listener.sock, selectors.EVENT_READ)
        before.close()
        _log.warning("somebody removed %s, it is bound anew", before.path)

    def _accept(self, selector: selectors.BaseSelector, peers: dict[socket.socket, Connection]) -> None:
        try:
            sock, _ = self._listener.sock.accept()
        except OSError:
            # Somebody gave up waiting, or there is no file left.
            time.sleep(_BACKLOG_PAUSE_S)
            return
        if len(peers) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.settimeout(SEND_TIMEOUT_S)
        peers[sock] = Connection()
        selector.register(sock, selectors.EVENT_READ)

    def _serve_peer(
        self,
        selector: selectors.BaseSelector,
        peers: dict[socket.socket, Connection],
        sock: socket.socket,
        refused: Refused,
    ) -> None:
        try:
            over = self._exchange(peers[sock], sock, refused)
        except OSError:
            over = True
        except Exception as exc:  # noqa: BLE001 (one connection ends, and what it asked is denied)
            # Its text may quote a token.
            _log.error("a question about a token cannot be answered: %s", type(exc).__name__)
            over = True
        if over:
            selector.unregister(sock)
            del peers[sock]
            sock.close()

    def _exchange(self, connection: Connection, sock: socket.socket, refused: Refused) -> bool:
        """Read and answer once; whether the connection is over."""
        data = sock.recv(_RECEIVE_BYTES)
        if data:
            connection.receive_data(data)
        else:
            connection.receive_eof()
        for event in connection.events():
            if isinstance(event, Asked):
                connection.acknowledge(event.ids, self._answer(event.token, refused), _NO)
        sock.sendall(connection.data_to_send())
        return not data or connection.finished

    # ---- answers

    def _answer(self, asked: Entries, refused: Refused) -> bytes:
        """The actions of an answer: those that say yes name the demand they are about."""
        sent = _sent(asked)
        demand = str(sent.pop(DEMAND, ""))
        checker = self._checker_for(demand)
        told = [str(sent.pop(name.decode(), ""))[:MAX_WORD_CHARACTERS] for name in REFUSED_ARGUMENTS]
        if checker is None or not demand:
            self._tell(refused, told, "no token is looked at")
            return _NO
        outcome = checker.check(demand, sent, time.time())
        if not outcome.good:
            self._tell(refused, told, outcome.reason)
            return _NO
        self._checks.labels("good").inc()
        return _actions(demand, outcome)

    def _checker_for(self, demand: str) -> TokenChecker | None:
        """The newest that knows the demand, if HAProxy heard of that before us: it is waited for once."""

        def known() -> bool:
            return self._checker is not None and self._checker.knows(demand)

        with self._changed:
            if demand and demand not in self._vain and not self._changed.wait_for(known, NEWER_WITHIN_S):
                if len(self._vain) >= MAX_VAIN:
                    self._vain.clear()
                self._vain.add(demand)
            return self._checker

    def _tell(self, refused: Refused, told: list[str], reason: str) -> None:
        self._checks.labels("refused").inc()
        self.refused_total += 1
        now_s = time.monotonic()
        if now_s > self._told_until_s:
            self._told_until_s, self._told_left = now_s + 1.0, MAX_TOLD
        if self._told_left:
            self._told_left -= 1
            caller, method, path = told
            refused(told_source(caller), f"the token for {method} {path} is refused: {reason}")


def _sent(asked: Entries) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for name, value in asked:
        if isinstance(value.data, bytes):
            # What is not ASCII is no token.
            found[name.decode("latin-1")] = value.data.decode("ascii", "backslashreplace")
        elif type(value.data) is int:
            found[name.decode("latin-1")] = value.data
    return found


def _actions(demand: str, outcome: Outcome) -> bytes:
    actions = [SetVar(GIVEN, Value(Kind.STRING, demand.encode()))]
    if outcome.strip:
        actions.append(SetVar(STRIP, Value(Kind.STRING, f",{','.join(outcome.strip)},".encode())))
    return encode_actions(tuple(actions))
