"""What supervisors and their children say to each other, and why such a conversation fails.

All of it travels in the mailbox's control lane: before anything queued there, never dropped.
"""

import enum
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from hcc.errors import HccError


class StopReason(enum.Enum):
    """Why a teardown runs."""

    SHUTDOWN = "shutdown"
    """The whole tree stops, or the actor stopped itself."""
    RESTART = "restart"
    """A successor is about to start, or has already started if this actor hung."""
    FAILURE = "failure"
    """The actor failed, or the group it belongs to did."""


class ActorState(enum.StrEnum):
    """Where an actor is in its life."""

    STARTING = "starting"
    """Its thread runs `init` or `setup`."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """Stopping for a restart, or waiting for its back-off to pass."""
    FAILED = "failed"
    """Failed, and its restart type leaves it down."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """One actor as the operator sees it."""

    name: str
    state: ActorState
    generation: int
    restarts: int
    """Times it was started again, for whatever reason."""
    last_error: str | None
    mailbox_depth: int
    uptime_s: float
    """Since the current generation started; 0 while it is down."""
    parent: str | None
    dropped: int = 0
    """Messages that met no running actor or a full mailbox."""
    zombies: int = 0
    """Generations that hung and were abandoned."""


@dataclass(frozen=True, slots=True)
class Urgent:
    """A message that goes before all others and is never dropped."""


@dataclass(frozen=True, slots=True)
class Stop(Urgent):
    """To a child: end after the message in hand."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Heartbeat(Urgent):
    """To a child: show that your mailbox loop turns."""


@dataclass(frozen=True, slots=True)
class Alive(Urgent):
    """From a child: the answer to a Heartbeat."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Started(Urgent):
    """From a child: `setup` is done."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Exited(Urgent):
    """From a child's thread, as its last act."""

    name: str
    generation: int
    reason: StopReason
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Due(Urgent):
    """From the timers: the time of this message has come."""

    message: object
    key: str | None
    serial: int


@dataclass(frozen=True, slots=True)
class BeatDue:
    """From a supervisor to itself: time to see whether the child answered the last heartbeat."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class StopDue:
    """From a supervisor to itself: that generation should have stopped by now."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class RestartDue:
    """From a supervisor to itself: the back-off has passed."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class RestartChild(Urgent):
    """From the operator: restart that child; the answer is its new generation, once its setup is done."""

    name: str
    answer: "Future[int]"


@dataclass(frozen=True, slots=True)
class ListActors(Urgent):
    """From the operator: the answer is a tuple of ActorStatus, parents before children."""


class ActorError(HccError):
    """A message to an actor did not have the effect it was meant to have."""


class ActorDownError(ActorError):
    """The actor is not running now."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Actor {name} is not running now; ask again when it has restarted.")


class ActorFailedError(ActorError):
    """The actor failed while it answered, or failed to start."""


class ActorTimeoutError(ActorError, TimeoutError):
    """No answer in time; the request may still take effect."""

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(f"Actor {name} gave no answer within {timeout_s:g} s; it may be busy or hung.")


class MailboxFullError(ActorError):
    """The request was the oldest in a full mailbox."""


class RestartIntensityError(ActorError):
    """A child failed too often; its supervisor fails in turn."""


class StaleGenerationError(ActorError):
    """An abandoned supervisor woke up and tried to act."""


class ActorNameError(ActorError):
    """Two actors of one tree have the same name."""


class RootRestartError(ActorError):
    """The root cannot be restarted within the process."""


class UnknownActorError(ActorError):
    """No actor of the tree has that name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"There is no actor {name!r}; the actors are: {', '.join(known)}.")


def describe(error: BaseException) -> str:
    """Type and text of an error on one line, whatever its text does."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the first error
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
