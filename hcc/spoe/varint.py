"""SPOP variable-length integers; each value has exactly one encoding.

Source: HAProxy doc/SPOE.txt, section 3.1.
"""

from __future__ import annotations

from hcc.spoe.status import invalid

MAX_VALUE = 2**64 - 1
# 2**64 - 1 takes ten bytes; nothing valid is longer.
MAX_BYTES = 10
ONE_BYTE_BELOW = 240
CONTINUED = 128


def encode_varint(value: int) -> bytes:
    """The bytes of one integer, 0 <= value < 2**64.

    Raises:
        ValueError: the value is out of range (a bug of ours).
    """
    if not 0 <= value <= MAX_VALUE:
        raise ValueError(f"expected 0 <= value < 2**64, found {value}")
    if value < ONE_BYTE_BELOW:
        return bytes((value,))
    encoded = bytearray((value & 0x0F | 0xF0,))
    value = (value - ONE_BYTE_BELOW) >> 4
    while value >= CONTINUED:
        encoded.append(value & 0x7F | 0x80)
        value = (value - CONTINUED) >> 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(data: bytes, pos: int) -> tuple[int, int]:
    """One integer, 0 <= value < 2**64, and the offset just after it.

    Args:
        data: one frame, or a part of it; the integer may not run over its end.
        pos: offset of the integer's first byte.

    Raises:
        SpopError: the data ends inside the integer, or it is over 64 bits.
    """
    stop = min(len(data), pos + MAX_BYTES)
    if pos >= stop:
        raise invalid("expected an integer, found the end of the frame")
    value = data[pos]
    pos += 1
    if value < ONE_BYTE_BELOW:
        return value, pos
    shift = 4
    while pos < stop:
        byte = data[pos]
        pos += 1
        value += byte << shift
        shift += 7
        if byte < CONTINUED:
            return _checked(value), pos
    raise invalid("expected the end of an integer within its frame and 10 bytes")


def _checked(value: int) -> int:
    if value > MAX_VALUE:
        raise invalid("expected an integer of at most 64 bits")
    return value
