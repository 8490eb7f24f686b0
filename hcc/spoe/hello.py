"""The handshake: what HAProxy offers, and what we take.

Source: HAProxy doc/SPOE.txt, sections 3.2.4, 3.2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcc.spoe.frames import MAX_MAX_FRAME_SIZE, MIN_MAX_FRAME_SIZE, FrameType, encode_list_frame
from hcc.spoe.payloads import Entries
from hcc.spoe.status import SpopError, Status, invalid
from hcc.spoe.values import INTEGERS, Kind, Value

VERSION = b"2.0"
_MAJOR = b"2"
# Neither `async` (ACKs could cross a reload, HAProxy issue 2868) nor `fragmentation` is ever taken.
_CAPABILITY = b"pipelining"


@dataclass(frozen=True, slots=True)
class Hello:
    """What both sides agreed on.

    Args:
        max_frame_size: bytes of a frame without its length prefix, both ways.
        capabilities: those of HAProxy's that we take.
        health_check: HAProxy only wants to see the answer.
    """

    max_frame_size: int
    capabilities: bytes
    health_check: bool


def agreed(entries: Entries, own_max_frame_size: int = MAX_MAX_FRAME_SIZE) -> Hello:
    """The outcome of a HAPROXY-HELLO with these entries; keys that we do not use are skipped.

    Raises:
        SpopError: with the status code for what is missing, wrong or unsupported.
    """
    offered = dict(entries)
    if len(offered) != len(entries):
        raise invalid("expected each key of a hello once, found one twice")
    _check_version(_text(offered, b"supported-versions", Status.NO_VERSION))
    size = _frame_size(offered)
    names = _names(_text(offered, b"capabilities", Status.NO_CAPABILITIES))
    check = offered.get(b"healthcheck", Value(Kind.BOOL, False))
    if check.kind is not Kind.BOOL:
        raise invalid("expected a boolean for healthcheck")
    return Hello(min(size, own_max_frame_size), _CAPABILITY if _CAPABILITY in names else b"", bool(check.data))


def encode_agent_hello(hello: Hello) -> bytes:
    """The bytes of the AGENT-HELLO that tells HAProxy the outcome."""
    return encode_list_frame(
        FrameType.AGENT_HELLO,
        (
            (b"version", Value(Kind.STRING, VERSION)),
            (b"max-frame-size", Value(Kind.UINT32, hello.max_frame_size)),
            (b"capabilities", Value(Kind.STRING, hello.capabilities)),
        ),
    )


def _text(offered: dict[bytes, Value], key: bytes, missing: Status) -> bytes:
    value = offered.get(key)
    if value is None:
        raise SpopError(missing, f"expected {key.decode()} in the hello")
    if not isinstance(value.data, bytes) or value.kind is not Kind.STRING:
        raise invalid(f"expected a string for {key.decode()}")
    return value.data


def _check_version(versions: bytes) -> None:
    # "2.x" says that 2.0 is spoken too.
    for name in _names(versions):
        major, dot, minor = name.partition(b".")
        if major == _MAJOR and dot and minor.isdigit():
            return
    raise SpopError(Status.BAD_VERSION, "expected SPOP 2.0 among the supported versions")


def _frame_size(offered: dict[bytes, Value]) -> int:
    value = offered.get(b"max-frame-size")
    if value is None:
        raise SpopError(Status.NO_FRAME_SIZE, "expected max-frame-size in the hello")
    if value.kind not in INTEGERS or not isinstance(value.data, int):
        raise invalid("expected a number for max-frame-size")
    if value.data < MIN_MAX_FRAME_SIZE:
        raise SpopError(Status.BAD_FRAME_SIZE, f"expected max-frame-size from {MIN_MAX_FRAME_SIZE}, found {value.data}")
    return value.data


def _names(text: bytes) -> list[bytes]:
    return [name.strip(b" ") for name in text.split(b",")]
