"""One SPOP connection, seen from the agent: bytes in, events and bytes out. It never sees a socket.

    GREETING --hello--> OPEN --notify, unknown frame--> OPEN
        |                |
        +--health check--+--disconnect, fault, stop--> CLOSING --eof--> CLOSED

The rules:

- Frames are taken in order; every NOTIFY becomes one event and is acknowledged once, by `acknowledge`.
- CLOSING ignores what still comes. An AGENT-DISCONNECT that is due goes out behind the last answer.
- A fault ends the connection with its status code: the stream cannot be trusted any more.

Source: HAProxy doc/SPOE.txt, sections 3.2.3 to 3.2.9; reference/haproxy.md section 1.6.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import NamedTuple

from hcc.spoe.caller import Asked, matched, question
from hcc.spoe.frames import (
    FIN,
    LENGTH_BYTES,
    MAX_MAX_FRAME_SIZE,
    Frame,
    FrameType,
    decode_frame,
    encode_disconnect,
    frame_end,
)
from hcc.spoe.hello import agreed, encode_agent_hello
from hcc.spoe.payloads import decode_entries, decode_messages
from hcc.spoe.status import SpopError, Status, invalid
from hcc.spoe.values import Kind
from hcc.spoe.varint import encode_varint

# How every acknowledgement starts: length, type, flags.
_ACK_HEAD = Struct(">IBI")
_ACK_HEAD_BYTES = _ACK_HEAD.size - LENGTH_BYTES
_ACK = int(FrameType.ACK)


class State(Enum):
    """Where the connection is; the picture is at the top."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Input(Enum):
    """What can happen to a connection."""

    HELLO = "hello"
    HEALTH_CHECK = "health check"
    NOTIFY = "notify"
    DISCONNECT = "disconnect"
    UNKNOWN = "unknown frame"
    FAULT = "fault"
    STOP = "stop"
    EOF = "end of stream"


# What is not listed is a fault of the peer.
TRANSITIONS: dict[State, dict[Input, State]] = {
    State.GREETING: {
        Input.HELLO: State.OPEN,
        Input.HEALTH_CHECK: State.CLOSING,
        Input.DISCONNECT: State.CLOSING,
        Input.UNKNOWN: State.GREETING,
        Input.FAULT: State.CLOSING,
        Input.STOP: State.CLOSING,
        Input.EOF: State.CLOSED,
    },
    State.OPEN: {
        Input.NOTIFY: State.OPEN,
        Input.DISCONNECT: State.CLOSING,
        Input.UNKNOWN: State.OPEN,
        Input.FAULT: State.CLOSING,
        Input.STOP: State.CLOSING,
        Input.EOF: State.CLOSED,
    },
    State.CLOSING: {Input.STOP: State.CLOSING, Input.EOF: State.CLOSED},
    State.CLOSED: {Input.STOP: State.CLOSED, Input.EOF: State.CLOSED},
}
# The loop below runs once per question, and looking up a member of an Enum is slow in Python 3.11.
_OPEN = State.OPEN
_LISTENING = (State.OPEN, State.GREETING)
_OVER = (State.CLOSING, State.CLOSED)


class Parted(NamedTuple):
    """The connection is over; `status` is HAProxy's if `by_peer`, else the one we send."""

    status: int
    message: str
    by_peer: bool


Event = Asked | Parted


class Connection:
    """The four verbs (`receive_data`, `receive_eof`, `events`, `data_to_send`) and the answers.

    Args:
        own_max_frame_size: most bytes of a frame that we accept, whatever HAProxy offers.
    """

    __slots__ = ("_events", "_farewell", "_limit", "_out", "_rest", "_unanswered", "state")

    def __init__(self, own_max_frame_size: int = MAX_MAX_FRAME_SIZE) -> None:
        self.state = State.GREETING
        self._limit = own_max_frame_size
        self._rest = b""
        self._out: list[bytes] = []
        self._farewell = b""
        self._events: list[Event] = []
        self._unanswered = 0

    @property
    def finished(self) -> bool:
        """Nothing more will ever be said: once `data_to_send` is sent, the transport can be closed."""
        return self.state in _OVER and not self._unanswered

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes of the stream; what they mean shows in `events` and `data_to_send`."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pos = 0
        try:
            while self.state in _LISTENING:
                end = frame_end(data, pos, self._limit)
                if not end:
                    self._rest = data[pos:]
                    return
                asked = matched(data, pos + LENGTH_BYTES, end) if self.state is _OPEN else None
                if asked is None:
                    self._receive_frame(decode_frame(data[pos + LENGTH_BYTES : end]))
                else:
                    self._unanswered += 1
                    self._events.append(asked)
                pos = end
        except SpopError as exc:
            self._part(Input.FAULT, exc.status, exc.message)

    def receive_eof(self) -> None:
        """Take the end of the stream; acknowledgements not sent yet may still be sent."""
        self.state = TRANSITIONS[self.state][Input.EOF]
        self._rest = self._farewell = b""

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> bytes:
        """The bytes to send, to be sent as one: HAProxy 3.2 and later stumble over a frame in two pieces."""
        if self._farewell and not self._unanswered:
            self._out.append(self._farewell)
            self._farewell = b""
        out, self._out = self._out, []
        return b"".join(out)

    def acknowledge(self, ids: bytes, actions: bytes, brief: bytes = b"") -> None:
        """Answer one question.

        Args:
            ids: of the question.
            actions: payload, at least one action: HAProxy 3.1.0 stalls without.
            brief: said instead where `actions` are too long for the frames that were agreed on.

        Raises:
            ValueError: no question is open, or the answer is empty or longer than agreed (a bug of ours).
        """
        length = _ACK_HEAD_BYTES + len(ids) + len(actions)
        if length > self._limit and brief:
            length, actions = length - len(actions) + len(brief), brief
        if not self._unanswered or not actions or length > self._limit:
            raise ValueError(f"{self._unanswered} questions are open; no answer of {length} bytes can be sent")
        self._unanswered -= 1
        self._out.append(_ACK_HEAD.pack(length, _ACK, FIN) + ids + actions)

    def stop(self) -> None:
        """Part from HAProxy: everything asked so far is answered, then AGENT-DISCONNECT 0."""
        if self.state in _LISTENING:
            self._part(Input.STOP, Status.NORMAL, "the agent stops")

    def _receive_frame(self, frame: Frame) -> None:
        if not frame.flags & FIN or frame.kind == FrameType.UNSET:
            raise SpopError(Status.FRAGMENTED, "expected whole payloads, found a fragment")
        if frame.flags != FIN:
            raise invalid(f"expected the flag FIN alone, found 0x{frame.flags:08x}")
        self._receive_whole(frame)

    def _receive_whole(self, frame: Frame) -> None:
        if frame.kind == FrameType.NOTIFY:
            self._move(Input.NOTIFY)
            ids = encode_varint(frame.stream_id) + encode_varint(frame.frame_id)
            asked = question(ids, decode_messages(frame.payload))
            self._unanswered += 1
            self._events.append(asked)
        elif frame.kind in (FrameType.HAPROXY_HELLO, FrameType.HAPROXY_DISCONNECT):
            if frame.stream_id or frame.frame_id:
                raise invalid("expected identifiers 0 in a hello and in a disconnect")
            (self._greet if frame.kind == FrameType.HAPROXY_HELLO else self._leave)(frame)
        elif frame.kind in (FrameType.AGENT_HELLO, FrameType.AGENT_DISCONNECT, FrameType.ACK):
            raise invalid(f"expected frames of HAProxy, found an agent's of type {frame.kind}")
        else:
            self._move(Input.UNKNOWN)

    def _greet(self, frame: Frame) -> None:
        hello = agreed(decode_entries(frame.payload), self._limit)
        self._move(Input.HEALTH_CHECK if hello.health_check else Input.HELLO)
        self._limit = hello.max_frame_size
        self._out.append(encode_agent_hello(hello))

    def _leave(self, frame: Frame) -> None:
        entries = dict(decode_entries(frame.payload))
        status, message = entries.get(b"status-code"), entries.get(b"message")
        if status is None or not isinstance(status.data, int):
            raise invalid("expected a number for status-code in a disconnect")
        if message is None or message.kind is not Kind.STRING or not isinstance(message.data, bytes):
            raise invalid("expected a string for message in a disconnect")
        self._move(Input.DISCONNECT)
        self._farewell = encode_disconnect(Status.NORMAL, "bye")
        self._events.append(Parted(status.data, message.data.decode("ascii", "backslashreplace"), True))

    def _part(self, cause: Input, status: Status, message: str) -> None:
        self.state = TRANSITIONS[self.state][cause]
        self._farewell = encode_disconnect(status, message)
        self._events.append(Parted(status, message, False))

    def _move(self, cause: Input) -> None:
        following = TRANSITIONS[self.state].get(cause)
        if following is None:
            raise invalid(f"expected no {cause.value} in state {self.state.value}")
        self.state = following
