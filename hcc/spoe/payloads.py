"""What frames carry: key-value lists, the messages of HAProxy and the actions of ours that answer them.

Source: HAProxy doc/SPOE.txt, sections 3.2.1, 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcc.spoe.status import invalid
from hcc.spoe.values import Value, decode_string, decode_value, encode_string, encode_value

Entries = tuple[tuple[bytes, Value], ...]
# The action, its number of arguments, and the scope: transaction, so that each http request has its own answer.
SET_VAR = b"\x01\x03\x02"


@dataclass(frozen=True, slots=True)
class Message:
    """One SPOE message of a NOTIFY; argument names may be empty, and may repeat."""

    name: bytes
    args: Entries = ()


@dataclass(frozen=True, slots=True)
class SetVar:
    """Set a variable of scope transaction: `txn.<prefix>.<name>`."""

    name: bytes
    value: Value


def encode_entries(entries: Entries) -> bytes:
    """The bytes of a key-value list."""
    return b"".join(encode_string(key) + encode_value(value) for key, value in entries)


def decode_entries(payload: bytes) -> Entries:
    """The keys and values of a list that fills the payload, in order.

    Raises:
        SpopError: the payload is no such list.
    """
    entries: list[tuple[bytes, Value]] = []
    pos = 0
    while pos < len(payload):
        entry, pos = _entry(payload, pos)
        entries.append(entry)
    return tuple(entries)


def decode_messages(payload: bytes) -> tuple[Message, ...]:
    """The messages of a NOTIFY, in order, known names or not.

    Raises:
        SpopError: the payload is no list of messages.
    """
    messages: list[Message] = []
    pos = 0
    while pos < len(payload):
        message, pos = _message(payload, pos)
        messages.append(message)
    return tuple(messages)


def encode_actions(actions: tuple[SetVar, ...]) -> bytes:
    """The payload of an ACK."""
    return b"".join(SET_VAR + encode_string(action.name) + encode_value(action.value) for action in actions)


def _entry(payload: bytes, pos: int) -> tuple[tuple[bytes, Value], int]:
    key, pos = decode_string(payload, pos)
    value, pos = decode_value(payload, pos)
    return (key, value), pos


def _message(payload: bytes, pos: int) -> tuple[Message, int]:
    name, pos = decode_string(payload, pos)
    if pos >= len(payload):
        raise invalid("expected the number of arguments, found the end of the frame")
    count = payload[pos]
    pos += 1
    args: list[tuple[bytes, Value]] = []
    for _ in range(count):
        arg, pos = _entry(payload, pos)
        args.append(arg)
    return Message(name, tuple(args)), pos
