"""A child as its supervisor knows it: what was ordered, and how it is getting on."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pykka

from hcc.actors.actor import Actor
from hcc.actors.context import Context
from hcc.actors.lifecycle import ActorError
from hcc.actors.mailbox import DEFAULT_LIMIT
from hcc.actors.restart import History, RestartType

_GROUP_SLACK_S = 1.0
"""What a supervisor may take beyond the sum of its children's stops."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start, and how to deal with it. A group is a child whose factory is Supervisor."""

    name: str
    factory: type[Actor]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    """For the factory's `init`."""
    restart: RestartType = RestartType.PERMANENT
    shutdown_s: float = 5.0
    """How long it may take to stop before it is abandoned."""
    heartbeat_s: float = 10.0
    """How long a handler or `setup` may take before the actor counts as hung and is replaced."""
    mailbox_limit: int = DEFAULT_LIMIT

    @property
    def group(self) -> "tuple[ChildSpec, ...]":
        """The specifications below this one."""
        children = self.kwargs.get("children", ())
        return tuple(spec for spec in children if isinstance(spec, ChildSpec)) if isinstance(children, tuple) else ()

    @property
    def stop_bound_s(self) -> float:
        """`shutdown_s`, or longer if its children one after the other may take longer."""
        below = sum(spec.stop_bound_s for spec in self.group)
        return max(self.shutdown_s, below + _GROUP_SLACK_S) if below else self.shutdown_s

    @property
    def beat_bound_s(self) -> float:
        """`heartbeat_s`, or longer: a failing supervisor stops its children first and is not hung then."""
        return max(self.heartbeat_s, self.stop_bound_s) if self.group else self.heartbeat_s


@dataclass(slots=True)
class Child:
    """The supervisor's notes on one child."""

    spec: ChildSpec
    generation: int
    context: Context | None = None
    ref: pykka.ActorRef[Any] | None = None
    """None while no thread of it is awaited."""
    stopping: int | None = None
    """The generation that was told to stop and has not exited yet."""
    beat_answered: bool = True
    own: tuple[float, ...] = ()
    waiters: "list[Future[int]]" = field(default_factory=list)

    def history(self, group: tuple[float, ...]) -> History:
        return History(own=self.own, group=group)

    def gone(self) -> None:
        """Its thread is no longer awaited."""
        self.ref, self.context, self.stopping = None, None, None

    def answer(self, error: ActorError | None = None) -> None:
        """Tell the operators who wait for its restart."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.set_running_or_notify_cancel():
                continue
            if error is None:
                waiter.set_result(self.generation)
            else:
                waiter.set_exception(error)
