"""SPOP frames: where one ends in a stream of bytes, and what its head says.

Source: HAProxy doc/SPOE.txt, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from hcc.spoe.payloads import Entries, encode_entries
from hcc.spoe.status import SpopError, Status, invalid
from hcc.spoe.values import Kind, Value
from hcc.spoe.varint import decode_varint, encode_varint

# Least that a type, flags and two identifiers take.
MIN_FRAME_BYTES = 7
# Least and most that `max-frame-size` may be; a frame's own four bytes of length do not count.
MIN_MAX_FRAME_SIZE = 256
MAX_MAX_FRAME_SIZE = 65_532
LENGTH_BYTES = 4
# The one flag of a whole frame: its payload ends here.
FIN = 1
_LENGTH = Struct(">I")
_HEAD_BYTES = 5
# HAProxy up to 3.0 keeps no more of a disconnect's message.
_MAX_MESSAGE_BYTES = 255


class FrameType(IntEnum):
    """Who says what. UNSET continues a fragmented payload."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame; `kind` is a plain number, as unknown types must be skipped, not refused."""

    kind: int
    flags: int
    stream_id: int
    frame_id: int
    payload: bytes


def frame_end(data: bytes, pos: int, max_frame_size: int) -> int:
    """The offset just after the frame whose length prefix starts at `pos`; 0 while some of it is missing.

    Raises:
        SpopError: the announced length is over `max_frame_size` (status 3) or too short for a frame (4).
    """
    start = pos + LENGTH_BYTES
    if start > len(data):
        return 0
    length: int = _LENGTH.unpack_from(data, pos)[0]
    if length > max_frame_size:
        raise SpopError(Status.TOO_BIG, f"expected a frame of at most {max_frame_size} bytes, found {length}")
    if length < MIN_FRAME_BYTES:
        raise invalid(f"expected a frame of at least {MIN_FRAME_BYTES} bytes, found {length}")
    return start + length if start + length <= len(data) else 0


def decode_frame(body: bytes) -> Frame:
    """The head and the payload of one frame.

    Args:
        body: the frame without its length prefix.

    Raises:
        SpopError: the head is not complete.
    """
    if len(body) < MIN_FRAME_BYTES:
        raise invalid(f"expected a frame of at least {MIN_FRAME_BYTES} bytes, found {len(body)}")
    stream_id, pos = decode_varint(body, _HEAD_BYTES)
    frame_id, pos = decode_varint(body, pos)
    return Frame(body[0], int.from_bytes(body[1:_HEAD_BYTES], "big"), stream_id, frame_id, body[pos:])


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one frame, its length prefix included."""
    head = bytes((frame.kind,)) + frame.flags.to_bytes(4, "big")
    body = head + encode_varint(frame.stream_id) + encode_varint(frame.frame_id) + frame.payload
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def encode_list_frame(kind: FrameType, entries: Entries) -> bytes:
    """The bytes of a HELLO or a DISCONNECT: a key-value list, identifiers 0."""
    return encode_frame(Frame(kind, FIN, 0, 0, encode_entries(entries)))


def encode_disconnect(status: Status, message: str) -> bytes:
    """The bytes of an AGENT-DISCONNECT; the message is cut to 255 bytes."""
    text = message.encode("ascii", "backslashreplace")[:_MAX_MESSAGE_BYTES]
    return encode_list_frame(
        FrameType.AGENT_DISCONNECT,
        ((b"status-code", Value(Kind.UINT32, status)), (b"message", Value(Kind.STRING, text))),
    )
