"""What a pool of workers tells its owner."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import Any

from hcc.spoe.control import ControlMessage, ControlMessageError, Topic
from hcc.spoe.payloads import decode_entries
from hcc.spoe.status import SpopError


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
    """A worker denied a connection or a request; of many in a second the first are told.

    Args:
        source: the caller's service, or empty if that is not certain.
    """

    index: int
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Met:
    """A worker allowed a caller that HAProxy does not remember.

    Args:
        der: the certificate, as the worker says; whose it is, is for the hearer to find out.
        peer: where the call comes from, as HAProxy's `show sess` has it: `10.0.0.1:4711`.
    """

    index: int
    der: bytes
    peer: str


@dataclass(frozen=True, slots=True)
class ZygoteExited:
    """No worker can be started until `respawn_zygote`; those that live go on."""

    pid: int
    status: int | None


PoolEvent = WorkerReady | WorkerExited | PolicyApplied | Denied | Met | ZygoteExited


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


def worker_event(index: int, news: ControlMessage) -> WorkerReady | PolicyApplied | Denied | Met:
    """The event that a worker's message tells.

    Raises:
        ControlMessageError: no worker of this version sends such a message.
    """
    fields = news.fields()
    if news.topic is Topic.READY and isinstance(pid := fields.get("pid"), int):
        return WorkerReady(index, pid)
    if news.topic is Topic.POLICY_APPLIED and isinstance(version := fields.get("version"), int):
        return PolicyApplied(index, version)
    texts = [fields.get(name) for name in ("source", "reason")]
    if news.topic is Topic.DENIED and all(isinstance(text, str) for text in texts):
        return Denied(index, *map(str, texts))
    if news.topic is Topic.MET:
        return _met(index, fields)
    raise ControlMessageError(f"expected news of a worker, found {news.topic.name} with {sorted(fields)}")


def _met(index: int, fields: dict[str, Any]) -> Met:
    try:
        der = binascii.a2b_base64(fields["der"], strict_mode=True)
        return Met(index, der, _peer_text(bytes.fromhex(fields["peer"])))
    except (KeyError, TypeError, ValueError, SpopError) as exc:
        raise ControlMessageError(f"expected a certificate and where it calls from, found {sorted(fields)}") from exc


def _peer_text(peer: bytes) -> str:
    (_, source), (_, port) = decode_entries(peer)
    if not isinstance(source.data, bytes) or not isinstance(port.data, int):
        raise TypeError("expected an address and a port")
    address = ip_address(source.data)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return f"{f'::ffff:{mapped}' if mapped else address}:{port.data}"
