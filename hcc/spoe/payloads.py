"""What frames carry: key-value lists, messages and actions.

Source: HAProxy doc/SPOE.txt, sections 3.2.1, 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hcc.spoe.status import invalid
from hcc.spoe.values import Value, decode_string, decode_value, encode_string, encode_value

Entries = tuple[tuple[bytes, Value], ...]
MAX_ARGS = 255
_SET_VAR = b"\x01\x03"
_UNSET_VAR = b"\x02\x02"
_ACTION_HEADER_BYTES = 3


class Scope(IntEnum):
    """How long a variable lives."""

    PROCESS = 0
    SESSION = 1
    TRANSACTION = 2
    REQUEST = 3
    RESPONSE = 4


@dataclass(frozen=True, slots=True)
class Message:
    """One SPOE message of a NOTIFY; argument names may be empty, and may repeat."""

    name: bytes
    args: Entries = ()


@dataclass(frozen=True, slots=True)
class SetVar:
    """Set a variable; a NULL value unsets it."""

    scope: Scope
    name: bytes
    value: Value


@dataclass(frozen=True, slots=True)
class UnsetVar:
    """Unset a variable."""

    scope: Scope
    name: bytes


Action = SetVar | UnsetVar


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


def encode_messages(messages: tuple[Message, ...]) -> bytes:
    """The payload of a NOTIFY.

    Raises:
        ValueError: a message has more than 255 arguments.
    """
    return b"".join(map(_encode_message, messages))


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


def encode_actions(actions: tuple[Action, ...]) -> bytes:
    """The payload of an ACK."""
    return b"".join(map(_encode_action, actions))


def decode_actions(payload: bytes) -> tuple[Action, ...]:
    """The actions of an ACK, in order.

    Raises:
        SpopError: the payload is no list of actions.
    """
    actions: list[Action] = []
    pos = 0
    while pos < len(payload):
        action, pos = _action(payload, pos)
        actions.append(action)
    return tuple(actions)


def _entry(payload: bytes, pos: int) -> tuple[tuple[bytes, Value], int]:
    key, pos = decode_string(payload, pos)
    value, pos = decode_value(payload, pos)
    return (key, value), pos


def _encode_message(message: Message) -> bytes:
    if len(message.args) > MAX_ARGS:
        raise ValueError(f"expected at most {MAX_ARGS} arguments, found {len(message.args)}")
    return encode_string(message.name) + bytes((len(message.args),)) + encode_entries(message.args)


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


def _encode_action(action: Action) -> bytes:
    if isinstance(action, SetVar):
        return _SET_VAR + bytes((action.scope,)) + encode_string(action.name) + encode_value(action.value)
    return _UNSET_VAR + bytes((action.scope,)) + encode_string(action.name)


def _action(payload: bytes, pos: int) -> tuple[Action, int]:
    if len(payload) - pos < _ACTION_HEADER_BYTES or payload[pos + 2] > Scope.RESPONSE:
        raise invalid("expected an action: its type, its number of arguments and a scope from 0 to 4")
    head, scope = payload[pos : pos + 2], Scope(payload[pos + 2])
    name, pos = decode_string(payload, pos + _ACTION_HEADER_BYTES)
    if head == _SET_VAR:
        value, pos = decode_value(payload, pos)
        return SetVar(scope, name, value), pos
    if head == _UNSET_VAR:
        return UnsetVar(scope, name), pos
    raise invalid(f"expected set-var or unset-var, found action {head.hex()}")
