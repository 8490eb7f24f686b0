"""hcc with a saboteur inside: `python -m tests.e2e.faults.saboteur ORDERS run ...`.

Whatever is written to the file ORDERS, one JSON object, is done to the running daemon: the real program, whose actors
can be told to fail. Everything else is `hcc`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hcc.actors import cert_manager
from hcc.actors.actor import Actor
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import Publish
from hcc.actors.tree import Tree, start_tree
from hcc.app import sidecar
from hcc.cli.commands import main

LOOK_S = 0.05
FLOOD = 50_000


@dataclass(frozen=True)
class Sabotage:
    """To any actor: fail in this way."""

    kind: str


class Trap:
    """What the next `setup` and `teardown` of an actor do."""

    def __init__(self) -> None:
        self.setup: dict[str, int] = {}
        self.teardown: set[str] = set()


TRAP = Trap()
TREES: list[Tree] = []


def plant() -> None:
    """Put the saboteur between the actors and their messages."""
    start = start_tree

    def started(*args: Any, **kwargs: Any) -> Tree:
        tree = start(*args, **kwargs)
        TREES.append(tree)
        return tree

    sidecar.start_tree = started  # type: ignore[attr-defined]  # the name it calls it by
    for kind in _all(Actor):
        _wrap(kind)


def _all(kind: type[Actor]) -> set[type[Actor]]:
    return {kind}.union(*(_all(one) for one in kind.__subclasses__()))


def _wrap(kind: type[Actor]) -> None:
    handle, setup, teardown = kind.__dict__.get("handle"), kind.__dict__.get("setup"), kind.__dict__.get("teardown")
    if kind is Actor or not (handle and setup and teardown):
        return

    def handled(self: Actor, message: object) -> object:
        if isinstance(message, Sabotage):
            _fail(message.kind)
        return handle(self, message)

    def set_up(self: Actor) -> None:
        name = self.context.name
        if TRAP.setup.get(name, 0) > 0:
            TRAP.setup[name] -= 1
            raise RuntimeError("sabotaged start")
        setup(self)

    def tear_down(self: Actor, reason: StopReason) -> None:
        teardown(self, reason)
        if self.context.name in TRAP.teardown:
            TRAP.teardown.discard(self.context.name)
            raise RuntimeError("sabotaged stop")

    kind.handle, kind.setup, kind.teardown = handled, set_up, tear_down  # type: ignore[method-assign]


def _fail(kind: str) -> None:
    if kind == "exit":
        raise SystemExit(3)
    if kind == "hang":
        time.sleep(3600)
    raise RuntimeError("sabotaged")


def obey(order: dict[str, Any]) -> None:
    """Do what the test orders."""
    actor, kind = order.get("actor", ""), order["kind"]
    tree = TREES[-1]
    if kind == "start":
        TRAP.setup[actor] = 2
        tree.tell(actor, Sabotage("raise"))
    elif kind == "stop":
        TRAP.teardown.add(actor)
        tree.tell(actor, Sabotage("raise"))
    elif kind == "flood":
        for _ in range(FLOOD):
            tree.tell(actor, Publish())
            tree.tell(actor, f"no message {_}")
    elif kind == "clock":
        _set_clock(timedelta(seconds=order["seconds"]))
    else:
        tree.tell(actor, Sabotage(kind))


def _set_clock(ahead: timedelta) -> None:
    """The wall clock jumps, for all that asks it for more than the time of a log line."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz or UTC) + ahead

    cert_manager.datetime = Clock  # type: ignore[attr-defined]


def watch(orders: Path) -> None:
    """Look for orders until the end of the process."""
    while True:
        if orders.exists():
            # Gone once it is obeyed.
            obey(json.loads(orders.read_text()))
            orders.unlink()
        time.sleep(LOOK_S)


if __name__ == "__main__":
    plant()
    threading.Thread(target=watch, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main(sys.argv[2:]))
