"""SPOP typed data, and bare strings (names and keys). Source: HAProxy doc/SPOE.txt, section 3.1.

Strings stay bytes: what HAProxy sends of a request need not be text in any encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hcc.spoe.status import invalid
from hcc.spoe.varint import decode_varint, encode_varint


class Kind(IntEnum):
    """The type in the low nibble of the first byte; 10 to 15 are reserved."""

    NULL = 0
    BOOL = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


@dataclass(frozen=True, slots=True)
class Value:
    """One typed value. `data`: None, bool, int, or bytes (strings, binaries, addresses in network order)."""

    kind: Kind
    data: bool | int | bytes | None = None


NULL = Value(Kind.NULL)
TRUE = Value(Kind.BOOL, True)
FALSE = Value(Kind.BOOL, False)
_RANGES = {
    Kind.INT32: (-(2**31), 2**31),
    Kind.UINT32: (0, 2**32),
    Kind.INT64: (-(2**63), 2**63),
    Kind.UINT64: (0, 2**64),
}
INTEGERS = frozenset(_RANGES)
_SIGNED = frozenset((Kind.INT32, Kind.INT64))
_ADDRESS_BYTES = {Kind.IPV4: 4, Kind.IPV6: 16}
_BOOLEAN_TRUE = 0x11
# By first byte; only a true boolean has a flag.
_KINDS = {**{int(kind): kind for kind in Kind}, _BOOLEAN_TRUE: Kind.BOOL}
_SIMPLE = (NULL, FALSE)


def encode_value(value: Value) -> bytes:
    """The bytes of one typed value.

    Raises:
        ValueError: the data does not fit its kind (a bug of ours).
    """
    kind, data = value.kind, value.data
    if kind is Kind.NULL and data is None:
        return b"\x00"
    if kind is Kind.BOOL and isinstance(data, bool):
        return bytes((_BOOLEAN_TRUE if data else kind,))
    if kind in INTEGERS and isinstance(data, int) and not isinstance(data, bool) and _fits(kind, data):
        # Negatives travel as 64-bit two's complement.
        return bytes((kind,)) + encode_varint(data % 2**64)
    if kind in (Kind.STRING, Kind.BINARY) and isinstance(data, bytes):
        return bytes((kind,)) + encode_string(data)
    if kind in _ADDRESS_BYTES and isinstance(data, bytes) and len(data) == _ADDRESS_BYTES[kind]:
        return bytes((kind,)) + data
    raise ValueError(f"expected data of kind {kind.name}, found {data!r}")


def decode_value(data: bytes, pos: int) -> tuple[Value, int]:
    """One typed value and the offset just after it.

    Raises:
        SpopError: a reserved type, a meaningless flag, a number out of its range, or the end of the frame.
    """
    if pos >= len(data):
        raise invalid("expected a typed value, found the end of the frame")
    first = data[pos]
    kind = _KINDS.get(first)
    if kind is None:
        raise invalid(f"expected a type from 0 to 9 with its flags, found byte 0x{first:02x}")
    if first == _BOOLEAN_TRUE:
        return TRUE, pos + 1
    if first < len(_SIMPLE):
        return _SIMPLE[first], pos + 1
    if first < Kind.IPV4:
        return _integer(kind, data, pos + 1)
    if first < Kind.STRING:
        content, pos = _take(data, pos + 1, _ADDRESS_BYTES[kind])
    else:
        content, pos = decode_string(data, pos + 1)
    return Value(kind, content), pos


def encode_string(text: bytes) -> bytes:
    """The bytes of a bare string: its length and its content, no type."""
    return encode_varint(len(text)) + text


def decode_string(data: bytes, pos: int) -> tuple[bytes, int]:
    """A bare string and the offset just after it.

    Raises:
        SpopError: the string does not end within the data.
    """
    length, pos = decode_varint(data, pos)
    return _take(data, pos, length)


def _take(data: bytes, pos: int, length: int) -> tuple[bytes, int]:
    if length > len(data) - pos:
        raise invalid(f"expected {length} more bytes in the frame, found {len(data) - pos}")
    return data[pos : pos + length], pos + length


def _integer(kind: Kind, data: bytes, pos: int) -> tuple[Value, int]:
    number, pos = decode_varint(data, pos)
    if kind in _SIGNED and number >= 2**63:
        number -= 2**64
    if not _fits(kind, number):
        raise invalid(f"expected a number that fits {kind.name}, found {number}")
    return Value(kind, number), pos


def _fits(kind: Kind, number: int) -> bool:
    lowest, above = _RANGES[kind]
    return lowest <= number < above
