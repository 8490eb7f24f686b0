"""What the main process and its workers say to each other, as bytes: a length, a kind, and a body.

length:u32 BE (of what follows)   kind:u8   body
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any, NamedTuple

from hcc.errors import HccError
from hcc.mesh.caller import told_source

# To a worker: 100,000 intentions are about 20 MB. From one: it reads what strangers send, so it is trusted less.
MAX_ORDER_BYTES = 64 * 1024 * 1024
MAX_NEWS_BYTES = 16 * 1024
_LENGTH_BYTES = 4
MAX_WORD_CHARACTERS = 500


class ControlMessageError(HccError):
    """The other end of a control socket sent what no hcc of this version sends."""


class Topic(IntEnum):
    """What a message is about. POLICY, STOP and PING go to the worker; the others come from it."""

    POLICY = 1
    STOP = 2
    READY = 3
    POLICY_APPLIED = 4
    DENIED = 5
    MET = 6
    PING = 7
    PONG = 8


class ControlMessage(NamedTuple):
    """One message; `body` is an encoded policy for POLICY, else JSON."""

    topic: Topic
    body: bytes = b""

    def fields(self) -> dict[str, Any]:
        """The JSON object in the body."""
        try:
            fields = json.loads(self.body)
        except (ValueError, RecursionError) as exc:
            raise ControlMessageError(f"expected JSON in a message about {self.topic.name}") from exc
        if not isinstance(fields, dict):
            raise ControlMessageError(f"expected a JSON object in a message about {self.topic.name}")
        return fields


def message(topic: Topic, **fields: str | int) -> ControlMessage:
    """A message whose body is these fields in JSON."""
    return ControlMessage(topic, json.dumps(fields, separators=(",", ":")).encode("ascii"))


def refused_request(words: tuple[bytes, ...]) -> ControlMessage:
    """A denial by rules: of a caller (as HAProxy remembers it), a method and a path, cut to what a log line takes."""
    caller, method, path = (word.decode("ascii", "backslashreplace")[:MAX_WORD_CHARACTERS] for word in words)
    return message(Topic.DENIED, source=told_source(caller), reason=f"no permission allows {method} {path}")


def encode_control(sent: ControlMessage) -> bytes:
    """The bytes of one message."""
    return (len(sent.body) + 1).to_bytes(_LENGTH_BYTES, "big") + bytes((sent.topic,)) + sent.body


class ControlReader:
    """Messages out of a stream of bytes.

    Args:
        max_message_bytes: most that a message may announce.
    """

    __slots__ = ("_max_message_bytes", "_rest")

    def __init__(self, max_message_bytes: int) -> None:
        self._rest = bytearray()
        self._max_message_bytes = max_message_bytes

    @property
    def waits(self) -> bool:
        """Whether a message has begun that is not complete."""
        return bool(self._rest)

    def receive_data(self, data: bytes) -> list[ControlMessage]:
        """The messages that these bytes complete.

        Raises:
            ControlMessageError: a message is empty, too long or about nothing we know.
        """
        self._rest += data
        received: list[ControlMessage] = []
        pos = 0
        while (end := self._end(pos)) > 0:
            received.append(_decoded(bytes(self._rest[pos + _LENGTH_BYTES : end])))
            pos = end
        del self._rest[:pos]
        return received

    def _end(self, pos: int) -> int:
        start = pos + _LENGTH_BYTES
        if len(self._rest) < start:
            return 0
        length = int.from_bytes(self._rest[pos:start], "big")
        if not 1 <= length <= self._max_message_bytes:
            limit = self._max_message_bytes
            raise ControlMessageError(f"expected a control message of 1 to {limit} bytes, found {length}")
        return start + length if start + length <= len(self._rest) else 0


def _decoded(content: bytes) -> ControlMessage:
    try:
        return ControlMessage(Topic(content[0]), content[1:])
    except ValueError as exc:
        raise ControlMessageError(f"expected a known control message, found kind {content[0]}") from exc
