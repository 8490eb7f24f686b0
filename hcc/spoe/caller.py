"""The one SPOE message we understand, the shape HAProxy gives it, and the actions that answer it."""

from __future__ import annotations

from typing import NamedTuple

from hcc.spoe.payloads import Entries, Message, SetVar, encode_actions, encode_entries
from hcc.spoe.status import SpopError
from hcc.spoe.values import FALSE, NULL, TRUE, Kind, Value
from hcc.spoe.varint import CONTINUED, ONE_BYTE_BELOW, decode_varint, encode_varint

MESSAGE = b"caller"
ARGUMENT = b"der"
# Word of a request that rules refuse; it asks nothing.
REFUSED = b"refused"
# A question about a request's tokens. A worker knows nothing of them, and so refuses.
TOKEN = b"token"
REFUSED_ARGUMENTS = (b"caller", b"method", b"path")
# Where the caller's connection comes from: sent by a HAProxy that remembers callers, and is to be told whom.
PEER = (b"src", b"src_port")
ALLOWED = b"allowed"
CALLER = b"caller"
RULES = b"rules"
MAX_SOURCE_BYTES = 150
LONG_NAME = f"expected a name of the caller of at most {MAX_SOURCE_BYTES} bytes"

_NOTIFY_FIN = b"\x03\x00\x00\x00\x01"
_MESSAGE_HEAD = b"\x06caller\x01\x03der\x09"
_MESSAGE_HEAD_WITH_PEER = b"\x06caller\x03\x03der\x09"
_MESSAGE_HEAD_BYTES = len(_MESSAGE_HEAD)
# Where the port begins, by how the address begins: HAProxy sends addresses as such and ports as INT64.
_PORT_AT = {b"\x03src\x06": 9, b"\x03src\x07": 21}
_PORT_HEAD = b"\x08src_port\x04"
_MAX_PORT = 65535
_IDS_AT = len(_NOTIFY_FIN)
# Identifiers and lengths longer than this are left to the strict decoder.
_SHORT_VARINT = 9


class Asked(NamedTuple):
    """A NOTIFY with the one message we expect.

    Args:
        ids: stream and frame identifier, as they came.
        der: the caller's certificate; empty if HAProxy had none.
        fault: why the question is no question, or empty.
        peer: the arguments that say where it calls from, encoded; `hcc.spoe.events` reads them. Empty without.
        refused: no question, but word of a request that rules refuse: caller, method and path.
        token: the arguments of a question about a request's tokens.
    """

    ids: bytes
    der: bytes
    fault: str = ""
    peer: bytes = b""
    refused: tuple[bytes, ...] = ()
    token: Entries = ()


def matched(data: bytes, start: int, stop: int) -> Asked | None:
    """The question in the frame body `data[start:stop]` if it has exactly the usual shape; None: look closer.

    The usual shape: NOTIFY, FIN, one message `caller` with one binary argument `der`, and after it nothing or
    `src` and `src_port`. What matches here means the same to the strict decoder: a test holds the two against
    each other.
    """
    if not data.startswith(_NOTIFY_FIN, start):
        return None
    try:
        first = start + _IDS_AT
        # One byte each, most of the time.
        pos = first + 1 if data[first] < ONE_BYTE_BELOW else _after_varint(data, first)
        pos = pos + 1 if data[pos] < ONE_BYTE_BELOW else _after_varint(data, pos)
        with_peer = data.startswith(_MESSAGE_HEAD_WITH_PEER, pos)
        if not with_peer and not data.startswith(_MESSAGE_HEAD, pos):
            return None
        at = pos + _MESSAGE_HEAD_BYTES
        # Two bytes say 240 to 2287, the size of nearly every certificate; the rest takes the way of all integers.
        if data[at] >= ONE_BYTE_BELOW and data[at + 1] < CONTINUED:
            length, at = data[at] + (data[at + 1] << 4), at + 2
        else:
            length, at = decode_varint(data, at)
    except (IndexError, SpopError):
        return None
    end = at + length
    if pos - first > _SHORT_VARINT:
        return None
    if with_peer:
        peer = data[end:stop]
        return Asked(data[first:pos], data[at:end], "", peer) if _is_peer(peer) else None
    return Asked(data[first:pos], data[at:stop]) if end == stop else None


def question(ids: bytes, messages: tuple[Message, ...]) -> Asked:
    """The question in a NOTIFY of any shape; doubt about who is meant becomes a fault, which denies."""
    if len(messages) == 1 and messages[0].name in (REFUSED, TOKEN):
        word = messages[0]
        return Asked(ids, b"", token=word.args) if word.name == TOKEN else Asked(ids, b"", refused=_texts(word))
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
    peer = encode_entries(tuple(entry for entry in callers[0].args if entry[0] in PEER))
    return Asked(ids, value.data, "", peer if _is_peer(peer) else b"")


def answer_actions(allowed: bool, caller: str, rules: str = "") -> bytes:
    """The payload of the ACK: `allowed`, always and first; `caller` and `rules` unless they are empty."""
    named = ((CALLER, caller), (RULES, rules))
    texts = (SetVar(name, Value(Kind.STRING, text.encode())) for name, text in named if text)
    return BRIEF_ACTIONS[allowed] + encode_actions(tuple(texts))


# By verdict: the answer without the caller, for a frame that has no room for more.
BRIEF_ACTIONS = tuple(encode_actions((SetVar(ALLOWED, verdict),)) for verdict in (FALSE, TRUE))


def _texts(message: Message) -> tuple[bytes, ...]:
    """The arguments of word about a refused request; what is no text is empty."""
    found = dict(message.args)
    values = (found.get(name, NULL).data for name in REFUSED_ARGUMENTS)
    return tuple(value if isinstance(value, bytes) else b"" for value in values)


def _is_peer(peer: bytes) -> bool:
    at = _PORT_AT.get(peer[:5], 0)
    if not at or not peer.startswith(_PORT_HEAD, at):
        return False
    start = at + len(_PORT_HEAD)
    try:
        port, end = decode_varint(peer, start)
    except SpopError:
        return False
    return end == len(peer) and port <= _MAX_PORT and encode_varint(port) == peer[start:]


def _after_varint(data: bytes, pos: int) -> int:
    """The offset after an integer of several bytes."""
    pos += 1
    while data[pos] >= CONTINUED:
        pos += 1
    return pos + 1
