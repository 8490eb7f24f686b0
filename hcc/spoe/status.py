"""SPOP status codes, and the error that carries the one to send."""

from __future__ import annotations

from enum import IntEnum

from hcc.errors import PeerError


class Status(IntEnum):
    """Why a connection ends. Source: HAProxy doc/SPOE.txt, section 3.5."""

    NORMAL = 0
    IO = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_FRAME_SIZE = 9
    FRAGMENTED = 10
    INTERLACED = 11
    UNKNOWN_FRAME_ID = 12
    RESOURCES = 13
    UNKNOWN = 99


class SpopError(PeerError):
    """HAProxy sent something that ends the connection; `status` is the code of the disconnect to send."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def invalid(message: str) -> SpopError:
    """The error for bytes that are not SPOP (status 4)."""
    return SpopError(Status.INVALID, message)
