"""The one SPOE message we understand, the shape HAProxy gives it, and the actions that answer it."""

from __future__ import annotations

from typing import NamedTuple

from hcc.spoe.payloads import Message, Scope, SetVar, encode_actions
from hcc.spoe.status import SpopError
from hcc.spoe.values import FALSE, TRUE, Kind, Value
from hcc.spoe.varint import CONTINUED, ONE_BYTE_BELOW, decode_varint

MESSAGE = b"caller"
ARGUMENT = b"der"
ALLOWED = b"allowed"
SOURCE = b"source"
RULES = b"rules"
# Scope of all variables: `txn.<prefix>.allowed`, so that each http request has its own answer.
SCOPE = Scope.TRANSACTION
# A name this long still fits the answer into the smallest frame HAProxy may ask for (256 bytes).
MAX_SOURCE_BYTES = 150

_NOTIFY_FIN = b"\x03\x00\x00\x00\x01"
_MESSAGE_HEAD = b"\x06caller\x01\x03der\x09"
_MESSAGE_HEAD_BYTES = len(_MESSAGE_HEAD)
_IDS_AT = len(_NOTIFY_FIN)
# Identifiers and lengths longer than this are left to the strict decoder.
_SHORT_VARINT = 9


class Asked(NamedTuple):
    """A NOTIFY with the one message we expect.

    Args:
        ids: stream and frame identifier, as they came.
        der: the caller's certificate; empty if HAProxy had none.
        fault: why the question is no question, or empty.
    """

    ids: bytes
    der: bytes
    fault: str = ""


def matched(data: bytes, start: int, stop: int) -> Asked | None:
    """The question in the frame body `data[start:stop]` if it has exactly the usual shape; None: look closer.

    The usual shape: NOTIFY, FIN, one message `caller` with one binary argument `der`, nothing after it. What
    matches here means the same to the strict decoder: a test holds the two against each other.
    """
    if not data.startswith(_NOTIFY_FIN, start):
        return None
    try:
        first = start + _IDS_AT
        # One byte each, most of the time.
        pos = first + 1 if data[first] < ONE_BYTE_BELOW else _after_varint(data, first)
        pos = pos + 1 if data[pos] < ONE_BYTE_BELOW else _after_varint(data, pos)
        if not data.startswith(_MESSAGE_HEAD, pos):
            return None
        at = pos + _MESSAGE_HEAD_BYTES
        # Two bytes say 240 to 2287, the size of nearly every certificate; the rest takes the way of all integers.
        if data[at] >= ONE_BYTE_BELOW and data[at + 1] < CONTINUED:
            length, at = data[at] + (data[at + 1] << 4), at + 2
        else:
            length, at = decode_varint(data, at)
    except (IndexError, SpopError):
        return None
    if at + length != stop or pos - first > _SHORT_VARINT:
        return None
    return Asked(data[first:pos], data[at:stop])


def question(ids: bytes, messages: tuple[Message, ...]) -> Asked:
    """The question in a NOTIFY of any shape; doubt about who is meant becomes a fault, which denies."""
    callers = [message for message in messages if message.name == MESSAGE]
    if len(callers) != 1:
        return Asked(ids, b"", f"expected one message {MESSAGE.decode()!r}, found {len(callers)}")
    values = [value for name, value in callers[0].args if name == ARGUMENT]
    if len(values) != 1:
        return Asked(ids, b"", f"expected one argument {ARGUMENT.decode()!r}, found {len(values)}")
    value = values[0]
    if value.kind is Kind.NULL:
        return Asked(ids, b"")
    if value.kind is not Kind.BINARY or not isinstance(value.data, bytes):
        return Asked(ids, b"", f"expected a binary {ARGUMENT.decode()!r}, found kind {value.kind.name}")
    return Asked(ids, value.data)


def answer_actions(allowed: bool, source: str, rules: str = "") -> bytes:
    """The payload of the ACK: `allowed`, always; `source` and `rules` unless they are empty."""
    named = ((SOURCE, source), (RULES, rules))
    texts = (SetVar(SCOPE, name, Value(Kind.STRING, text.encode())) for name, text in named if text)
    return encode_actions((SetVar(SCOPE, ALLOWED, TRUE if allowed else FALSE), *texts))


def _after_varint(data: bytes, pos: int) -> int:
    """The offset after an integer of several bytes."""
    pos += 1
    while data[pos] >= CONTINUED:
        pos += 1
    return pos + 1
