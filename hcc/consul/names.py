"""Host names of instances and of the application, turned into addresses, since HAProxy is given addresses only."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from hcc.consul.answers import Answer, Instance, Registration
from hcc.consul.options import is_ip
from hcc.log import LastingProblem

# An answer that names hosts is told this much later at most.
PATIENCE_S = 1.0
# Of one watch. A name server that is silent holds each for 5 s or more.
MAX_THREADS = 16
# Names that the answer has no more are remembered, too, as their instances may come back; but not more of them.
MAX_GONE = 4_096

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    name: str
    whose: str
    else_: str


def look_up(name: str) -> tuple[str, ...]:
    """The addresses of a host name, at least one, in the resolver's order, but ::1 last.

    For `localhost` that mostly comes first, and more applications listen on 127.0.0.1 alone than on ::1 alone.

    Raises:
        OSError: it has none, or the name server does not answer. UnicodeError: it is no name.
    """
    found = (str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    return tuple(sorted(found, key=lambda address: address == "::1"))


class Names:
    """Resolves, and remembers the last good address of each name, so that a DNS failure takes nothing away.

    Name servers give several addresses in turns: one that is still among them stays. A name server that is silent
    lets us wait for many seconds, so names are looked up in daemon threads. One whose last look-up did not fail is
    waited for, but not longer than `PATIENCE_S`.

    Args:
        on_change: called in such a thread after an address changed that `ask` does not wait for.
    """

    def __init__(
        self, lookup: Callable[[str], tuple[str, ...]] = look_up, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._lookup = lookup
        self._on_change = on_change
        # Guards all below.
        self._lock = threading.Condition()
        self._known: dict[str, str] = {}
        # Whose last look-up failed, and whose last one we did not wait for to its end.
        self._failing: set[str] = set()
        self._slow: set[str] = set()
        # Being looked up, or waiting for a thread to do that.
        self._asked: set[str] = set()
        self._waiting: deque[_Question] = deque()
        # Whom `ask` waits for: its caller tells of them.
        self._awaited: frozenset[str] = frozenset()
        self._threads = 0
        self._scarcity = LastingProblem(log, logging.WARNING)
        self._bug: Exception | None = None
        self._stopped = False

    def ask(self, answer: Answer) -> None:
        """Look up the host names in an answer. Raises what a look-up is not known to raise."""
        names, whose, else_ = _names_in(answer)
        if not names or self._stopped:
            return
        with self._lock:
            self._forget_gone(names)
            # Of many those come first that are likely to have an address.
            new = sorted(names - self._asked, key=lambda name: (name in self._failing | self._slow, name))
            self._asked.update(new)
            self._waiting.extend(_Question(name, whose, else_) for name in new)
            while self._threads < min(MAX_THREADS, len(self._asked)):
                try:
                    threading.Thread(target=self._work, name="names", daemon=True).start()
                except RuntimeError as exc:
                    # With the next answer it may be another matter, and what was known stays.
                    self._scarcity.say(f"no thread to look host names up in ({exc}); it is tried again")
                    break
                self._threads += 1
                self._scarcity.over()
            self._awaited = awaited = names - self._failing - self._slow if self._threads else frozenset()
            self._lock.wait_for(lambda: self._stopped or not awaited & self._asked, PATIENCE_S)
            self._slow |= awaited & self._asked
            self._awaited = frozenset()
            bug, self._bug = self._bug, None
        if bug is not None:
            raise bug

    def resolved(self, answer: Answer) -> Answer:
        """The answer with the addresses that are known now.

        An instance that never had one is left out; the application's name stays, and a gateway as it is.
        """
        names, _, _ = _names_in(answer)
        if not names:
            return answer
        with self._lock:
            known = {name: self._known.get(name, "") for name in names}
        if isinstance(answer, Registration):
            name = answer.proxy.local_address
            return replace(answer, proxy=replace(answer.proxy, local_address=known[name] or name))
        found = (
            one if one.is_gateway else replace(one, address=known.get(one.address, one.address))
            for one in _instances(answer)
        )
        return tuple(instance for instance in found if instance.address)

    def stop(self) -> None:
        """Nobody waits any more, and no further name is looked up."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            self._lock.notify_all()

    def _forget_gone(self, names: frozenset[str]) -> None:
        if len(self._known.keys() | self._failing) > len(names) + MAX_GONE:
            self._known = {name: address for name, address in self._known.items() if name in names}
            self._failing &= names

    def _work(self) -> None:
        while (question := self._next()) is not None:
            if self._look(question):
                self._on_change()

    def _next(self) -> _Question | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None

    def _look(self, question: _Question) -> bool:
        """Whether the name has another address than before, and nobody waits for it."""
        name, addresses, failure = question.name, tuple[str, ...](), None
        try:
            addresses = self._lookup(name)
        except Exception as exc:  # noqa: BLE001 - a bug is the asker's to deal with
            failure = exc
        with self._lock:
            self._asked.discard(name)
            self._slow.discard(name)
            self._lock.notify_all()
            if failure is None:
                self._failing.discard(name)
                if self._known.get(name) in addresses:
                    return False
                self._known[name] = addresses[0]
                return name not in self._awaited
            if not isinstance(failure, OSError | UnicodeError):
                self._bug = failure
            elif name not in self._failing:
                self._failing.add(name)
                kept = self._known.get(name)
                log.warning(
                    "%s %s: expected a host name with an address, found %s; %s",
                    question.whose,
                    name,
                    failure,
                    f"keeping {kept}" if kept else question.else_,
                )
            return False


def _names_in(answer: Answer) -> tuple[frozenset[str], str, str]:
    """The host names that stand for addresses; whose they are, and what happens without one, in words."""
    if isinstance(answer, Registration):
        name = answer.proxy.local_address
        names = frozenset() if is_ip(name) else frozenset((name,))
        return names, "application", "its callers get no answer until it has one"
    # Nobody calls a gateway.
    names = frozenset(one.address for one in _instances(answer) if not (one.is_gateway or is_ip(one.address)))
    return names, "endpoint", "left out"


def _instances(answer: Answer) -> tuple[Instance, ...]:
    return answer if isinstance(answer, tuple) else ()
