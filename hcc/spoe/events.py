"""What a pool of workers tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hcc.spoe.control import ControlError, ControlMessage, Topic


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker serves; it denies everybody until its first policy is applied."""

    index: int
    pid: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker is gone, or could not be started (pid 0).

    Args:
        status: exit status, -N for signal N; None if nobody could say (the zygote is gone).
        reason: why it could not be started, or empty.
    """

    index: int
    pid: int
    status: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PolicyApplied:
    """A worker decides by the policy of this version from now on."""

    index: int
    version: int


@dataclass(frozen=True, slots=True)
class Denied:
    """A worker denied a certificate; told once per certificate and policy while the worker remembers.

    Args:
        source: the caller's service, or empty if that is not certain.
        serial: of the certificate, in hexadecimal, or empty if it could not be read.
    """

    index: int
    source: str
    reason: str
    serial: str = ""


@dataclass(frozen=True, slots=True)
class ZygoteExited:
    """No worker can be started until `respawn_zygote`; those that live go on."""

    pid: int
    status: int | None


PoolEvent = WorkerReady | WorkerExited | PolicyApplied | Denied | ZygoteExited


class WorkerPhase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker, now.

    Args:
        pid: 0 while there is no process.
        policy_version: of the policy it has applied; None before the first.
        starts: how often it was started.
    """

    index: int
    socket_path: str
    phase: WorkerPhase
    pid: int
    policy_version: int | None
    starts: int


def worker_event(index: int, news: ControlMessage) -> WorkerReady | PolicyApplied | Denied:
    """The event that a worker's message tells.

    Raises:
        ControlError: no worker of this version sends such a message.
    """
    fields = news.fields()
    if news.topic is Topic.READY and isinstance(pid := fields.get("pid"), int):
        return WorkerReady(index, pid)
    if news.topic is Topic.POLICY_APPLIED and isinstance(version := fields.get("version"), int):
        return PolicyApplied(index, version)
    texts = [fields.get(name) for name in ("source", "reason", "serial")]
    if news.topic is Topic.DENIED and all(isinstance(text, str) for text in texts):
        return Denied(index, *map(str, texts))
    raise ControlError(f"expected news of a worker, found {news.topic.name} with {sorted(fields)}")
