"""One real actor among neighbours that only listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from hcc.actors.actor import Actor
from hcc.actors.child import ChildSpec
from hcc.actors.messages import FactsReported
from hcc.actors.restart import Intensity
from hcc.actors.tree import start_tree
from tests.actors.stage import DEADLINE_S, eventually
from tests.fakes import Ear, Settled

T = TypeVar("T")


class Scene:
    """The tree, and what each neighbour was told; `ears` are those of neighbours that do more than listen.

    An actor that does not stop within `shutdown_s` is abandoned.
    """

    def __init__(
        self,
        name: str,
        factory: type[Actor],
        kwargs: Mapping[str, object],
        neighbours: tuple[str, ...],
        ears: Mapping[str, type[Ear]] | None = None,
        *,
        shutdown_s: float = 5.0,
    ) -> None:
        self.name = name
        self.heard: dict[str, list[object]] = {neighbour: [] for neighbour in neighbours}
        self.exits: list[object] = []
        listening = tuple(
            ChildSpec(neighbour, (ears or {}).get(neighbour, Ear), {"heard": heard})
            for neighbour, heard in self.heard.items()
        )
        spec = ChildSpec(name, factory, kwargs, shutdown_s=shutdown_s)
        self.tree = start_tree((*listening, spec), intensity=Intensity(5, 60.0), on_exit=self.exits.append)

    def tell(self, message: object) -> None:
        assert self.tree.tell(self.name, message)

    def settle(self) -> None:
        """Return when all that it was told before is dealt with, and its neighbours heard what it said of that."""
        for name in (self.name, *self.heard):
            self.tree.ask_actor(name, Settled(), DEADLINE_S)

    def restart(self) -> None:
        self.tree.restart(self.name, 5.0)

    def generation(self) -> int:
        """1 until the actor was restarted."""
        (status,) = [one for one in self.tree.actors(5.0) if one.name == self.name]
        return status.generation

    def expect(self, neighbour: str, kind: type[T], holds: Callable[[T], bool] = lambda _: True) -> T:
        """The newest message of that kind, as soon as one came for which it holds."""
        eventually(
            lambda: any(holds(message) for message in self.all_of(neighbour, kind)),
            f"{neighbour} hears a fitting {kind.__name__} among {self.heard[neighbour]}",
        )
        return [message for message in self.all_of(neighbour, kind) if holds(message)][-1]

    def all_of(self, neighbour: str, kind: type[T]) -> list[T]:
        """Every message of that kind so far, oldest first."""
        return [message for message in list(self.heard[neighbour]) if isinstance(message, kind)]

    def facts(self, neighbour: str, kind: type[T]) -> T | None:
        """The newest facts of that kind."""
        found = [m.facts for m in self.all_of(neighbour, FactsReported) if isinstance(m.facts, kind)]
        return found[-1] if found else None


@contextmanager
def playing(scene: Scene) -> Iterator[Scene]:
    """The scene, stopped at the end; the tree must not have given up."""
    try:
        yield scene
    finally:
        scene.tree.stop(10.0)
    assert scene.exits == []
