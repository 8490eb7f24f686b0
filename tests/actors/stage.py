"""Actors that do what a test tells them to, and a record of what they did."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from hcc.actors.actor import Actor
from hcc.actors.child import ChildSpec
from hcc.actors.lifecycle import ActorStatus, StopReason
from hcc.actors.restart import Intensity
from hcc.actors.supervisor import Supervisor
from hcc.actors.tree import Tree, TreeExit, start_tree

DEADLINE_S = 10.0

Event = tuple[str, int, object]
"""Actor, generation, what it did."""


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as it holds; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        pause.wait(0.002)


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise this in the handler."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Hang:
    """Do not return from the handler until the stage is cleared."""


@dataclass(frozen=True, slots=True)
class Echo:
    """Write it down, and answer it."""

    value: object


@dataclass(frozen=True, slots=True)
class State:
    """A whole state; the newest is enough."""

    version: int
    coalesce_key: ClassVar[str] = "state"


@dataclass(frozen=True, slots=True)
class Forward:
    """Tell another actor; the answer is what `tell` returned."""

    to: str
    message: object


@dataclass(frozen=True, slots=True)
class Later:
    """Arm a timer; a cancel afterwards if asked for."""

    seconds: float
    value: object
    key: str | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class StopYourself:
    """End in an orderly way."""


@dataclass
class Stage:
    """The record, the faults to play, and the curtain that ends every hang."""

    events: list[Event] = field(default_factory=list)
    faults: dict[tuple[str, str, int], BaseException | Hang] = field(default_factory=dict)
    """By actor, place (`init`, `setup`, `teardown`) and generation; generation 0 means each."""
    curtain: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, actor: Actor, what: object) -> None:
        with self.changed:
            self.events.append((actor.context.name, actor.context.generation, what))
            self.changed.notify_all()

    def play(self, actor: Actor, place: str) -> None:
        name, generation = actor.context.name, actor.context.generation
        fault = self.faults.get((name, place, generation)) or self.faults.get((name, place, 0))
        if isinstance(fault, Hang):
            self.note(actor, f"hangs in {place}")
            assert self.curtain.wait(3 * DEADLINE_S)
        elif fault is not None:
            raise fault

    def wait(self, *event: object) -> None:
        """Return when that actor, in that generation, has done that."""
        with self.changed:
            seen = self.changed.wait_for(lambda: event in self.events, DEADLINE_S)
            assert seen, f"{event} not among {self.events}"

    def count(self, *event: object) -> int:
        with self.changed:
            return self.events.count(event)  # type: ignore[arg-type] # whatever a test wrote

    def of(self, name: str) -> list[Event]:
        with self.changed:
            return [event for event in self.events if event[0] == name]


class Probe(Actor):
    """Does what it is told to, and writes it down."""

    def init(self, *, stage: Stage) -> None:
        self.stage = stage
        stage.play(self, "init")

    def setup(self) -> None:
        self.stage.note(self, "setup")
        self.stage.play(self, "setup")

    def handle(self, message: object) -> object | None:
        match message:
            case Raise(error):
                raise error
            case Hang():
                self.stage.note(self, "hangs")
                assert self.stage.curtain.wait(3 * DEADLINE_S)
            case Later(seconds, value, key, cancelled):
                self.after(seconds, Echo(value), key)
                if cancelled and key is not None:
                    self.cancel(key)
            case Forward(to, inner):
                return self.tell(to, inner)
            case StopYourself():
                self.stop()
            case Echo(value):
                self.stage.note(self, value)
                return value
            case _:
                self.stage.note(self, message)
        return None

    def teardown(self, reason: StopReason) -> None:
        self.stage.note(self, reason)
        self.stage.play(self, "teardown")


@dataclass
class Theatre:
    """A tree of probes, with everything a test asks of it; `skipped_s` is how far its clock was set on."""

    stage: Stage
    skipped_s: float = 0.0
    exits: list[TreeExit] = field(default_factory=list)
    exited: threading.Event = field(default_factory=threading.Event)
    tree: Tree = field(init=False)

    def open(self, *children: ChildSpec, max_restarts: int = 100) -> Tree:
        self.tree = start_tree(
            children,
            intensity=Intensity(max_restarts, 60.0),
            on_exit=self._on_exit,
            jitter=lambda: 0.0,
            clock=lambda: time.monotonic() + self.skipped_s,
        )
        return self.tree

    def skip(self, seconds: float) -> None:
        """Set the clock on, and have the timers see that."""
        self.skipped_s += seconds
        changed = self.tree._services.timers._changed
        with changed:
            changed.notify()

    def probe(self, name: str, **kwargs: object) -> ChildSpec:
        return ChildSpec(name, Probe, {"stage": self.stage}, **kwargs)  # type: ignore[arg-type] # pass-through

    def group(self, name: str, *children: ChildSpec, max_restarts: int) -> ChildSpec:
        kwargs = {"children": children, "intensity": Intensity(max_restarts, 60.0)}
        return ChildSpec(name, Supervisor, kwargs)

    def status(self, name: str) -> ActorStatus:
        (found,) = [status for status in self.tree.actors(DEADLINE_S) if status.name == name]
        return found

    def generation(self, name: str) -> int:
        return self.status(name).generation

    def close(self) -> None:
        self.stage.curtain.set()
        if hasattr(self, "tree"):
            assert self.tree.stop(DEADLINE_S)
        eventually(lambda: not actor_threads(), "the end of all actors' threads")

    def _on_exit(self, tree_exit: TreeExit) -> None:
        self.exits.append(tree_exit)
        self.exited.set()


def actor_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("actor-", "timers"))]
