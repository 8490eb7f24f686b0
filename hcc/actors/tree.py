"""The whole tree from outside: for the main thread, the admin threads and tests."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from hcc.actors.address import AddressBook, dismiss
from hcc.actors.child import ChildSpec
from hcc.actors.context import Context, Services
from hcc.actors.lifecycle import (
    ActorDownError,
    ActorNameError,
    ActorState,
    ActorStatus,
    ActorTimeoutError,
    Exited,
    ListActors,
    RestartChild,
    RootRestartError,
    Started,
    StopReason,
    Urgent,
)
from hcc.actors.restart import Intensity
from hcc.actors.supervisor import Supervisor
from hcc.actors.timers import Timers

logger = logging.getLogger(__name__)

ROOT = "root"
LAUNCH_BOUND_S = 5.0
"""How long `start_tree` waits for the root to have started its children's threads."""


@dataclass(frozen=True, slots=True)
class TreeExit:
    """The tree ended without being asked to."""

    cause: str


class Tree:
    """A running tree of actors. Every method that waits has a bound."""

    def __init__(self, services: Services, on_exit: Callable[[TreeExit], None]) -> None:
        self._services = services
        self._book = services.book
        self._on_exit = on_exit
        self._stopping = threading.Event()
        self._launched = threading.Event()
        self._ended = threading.Event()
        self._context = Context(
            name=ROOT,
            generation=services.book.enlist(ROOT, None),
            services=services,
            report=self._on_news,
        )

    def ask(self, message: object, timeout_s: float) -> object:
        """The root's answer; errors as for `ask_actor`."""
        return self._book.ask(ROOT, message, timeout_s)

    def actors(self, timeout_s: float) -> tuple[ActorStatus, ...]:
        """All actors, parents before children, as the root says.

        Raises:
            ActorDownError: the tree has ended.
            ActorTimeoutError: no answer in time.
        """
        answer = self.ask(ListActors(), timeout_s)
        return answer if isinstance(answer, tuple) else ()

    def tell(self, name: str, message: object) -> bool:
        """True when the message was queued; False, counted, when the actor is down.

        Raises:
            UnknownActorError: nobody has that name.
        """
        return self._book.tell(self._book.resolve(name)[0], message)

    def ask_actor(self, name: str, message: object, timeout_s: float) -> object:
        """That actor's answer.

        Raises:
            UnknownActorError: nobody has that name.
            ActorDownError: it is not running, or stopped before it came to this request.
            ActorTimeoutError: no answer in time.
            Exception: what the actor raised while it answered.
        """
        return self._book.ask(self._book.resolve(name)[0], message, timeout_s)

    def restart(self, name: str, timeout_s: float) -> int:
        """The new generation of that actor, once its setup is done. Does not count towards the intensity.

        Raises:
            UnknownActorError: nobody has that name.
            RootRestartError: the root has nobody above it.
            ActorDownError: its supervisor is not running now.
            ActorFailedError: it failed to start; its supervisor goes on trying.
            ActorTimeoutError: not up in time; the restart goes on.
        """
        name, parent = self._book.resolve(name)
        if parent is None:
            raise RootRestartError("The root cannot be restarted; restart hcc itself, or one of the other actors.")
        answer: Future[int] = Future()
        if not self._book.tell(parent, RestartChild(name, answer)):
            raise ActorDownError(parent)
        try:
            return answer.result(timeout_s)
        except TimeoutError as error:
            raise ActorTimeoutError(name, timeout_s) from error

    def stop(self, timeout_s: float) -> bool:
        """True when all actors have stopped, children in reverse order of start, within that time."""
        self._stopping.set()
        dismiss(self._root, StopReason.SHUTDOWN)
        ended = self._ended.wait(timeout_s)
        self._services.timers.stop()
        if not ended:
            logger.error("The actors did not stop within %g s", timeout_s)
        return ended

    def launch(self, children: tuple[ChildSpec, ...], intensity: Intensity) -> None:
        """Start the timers and the root; returns when the root's children have mailboxes."""
        self._enlist(ROOT, children)
        self._services.timers.start()
        try:
            self._root = Supervisor.start(self._context, children=children, intensity=intensity)
        except BaseException:
            self._services.timers.stop()
            raise
        self._launched.wait(LAUNCH_BOUND_S)

    def _enlist(self, parent: str, specs: Iterable[ChildSpec]) -> None:
        """Make every name known before anybody can ask for it."""
        for spec in specs:
            self._book.enlist(spec.name, parent)
            self._enlist(spec.name, spec.group)

    def _on_news(self, message: Urgent) -> None:
        match message:
            case Started(name, generation):
                self._book.mark(name, generation, ActorState.RUNNING)
                self._launched.set()
            case Exited(_, _, _, error):
                self._on_end(error)
            case _:
                pass

    def _on_end(self, error: str | None) -> None:
        """In the root's thread, after its teardown."""
        self._book.retire(ROOT, self._context.generation, ActorState.FAILED if error else ActorState.STOPPED)
        self._services.timers.stop()
        self._launched.set()
        self._ended.set()
        if self._stopping.is_set():
            return
        try:
            self._on_exit(TreeExit(error or "the root stopped itself"))
        except Exception:
            logger.exception("The end of the actors could not be reported")


def start_tree(
    root_children: tuple[ChildSpec, ...],
    *,
    intensity: Intensity,
    on_exit: Callable[[TreeExit], None],
    jitter: Callable[[], float] = random.random,
    clock: Callable[[], float] = time.monotonic,
) -> Tree:
    """A running tree: the root's children can be told, though they may still be in their `setup`.

    Args:
        root_children: started in this order, stopped in reverse.
        intensity: unplanned restarts that the root makes before it gives up.
        on_exit: called once, from the root's thread, when the tree ended without `Tree.stop`.
        jitter: numbers from 0 up to but not including 1.
        clock: monotonic seconds.

    Raises:
        ActorNameError: a name appears twice, in whatever case.
    """
    _check_names(root_children)
    services = Services(book=AddressBook(clock), timers=Timers(clock), clock=clock, jitter=jitter)
    tree = Tree(services, on_exit)
    tree.launch(root_children, intensity)
    return tree


def _check_names(specs: Iterable[ChildSpec]) -> None:
    seen = {ROOT}
    for name in _names(specs):
        if name.casefold() in seen:
            raise ActorNameError(f"Two actors are called {name!r}; every actor of a tree needs a name of its own.")
        seen.add(name.casefold())


def _names(specs: Iterable[ChildSpec]) -> Iterator[str]:
    for spec in specs:
        yield spec.name
        yield from _names(spec.group)
