"""Bytes as HAProxy sends them to an agent, for SPOE tests, and a reader of the agent's."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from hcc.spoe.frames import FIN, LENGTH_BYTES, Frame, FrameType, decode_frame, encode_frame, encode_list_frame
from hcc.spoe.payloads import SET_VAR, Entries, Message, SetVar, decode_entries, encode_entries
from hcc.spoe.values import TRUE, Kind, Value, decode_string, decode_value, encode_string

CAPTURED = Path(__file__).parent / "protocol" / "captured"
# What tests/protocol/capture.py recorded.
BRANCHES = ("2.2", "2.6", "2.8", "3.0", "3.2", "3.4")
MODES = ("tcp", "http")
# Of the question: what our configuration has HAProxy tell since 2.1.
ARGUMENTS = "der=ssl_c_der src=src src_port=src_port"
SESSIONS = tuple(f"haproxy-{branch}-{mode}-session" for branch in BRANCHES for mode in MODES)
CHECKS = tuple(f"haproxy-{branch}-{mode}-check" for branch in BRANCHES for mode in MODES)


def text(content: bytes) -> Value:
    return Value(Kind.STRING, content)


def encode_messages(messages: tuple[Message, ...]) -> bytes:
    """The payload of a NOTIFY; a message has at most 255 arguments."""
    return b"".join(
        encode_string(message.name) + bytes((len(message.args),)) + encode_entries(message.args) for message in messages
    )


def decode_actions(payload: bytes) -> tuple[SetVar, ...]:
    """The actions of an ACK, in order; they set variables of scope txn."""
    actions, pos = [], 0
    while pos < len(payload):
        assert payload.startswith(SET_VAR, pos)
        name, pos = decode_string(payload, pos + len(SET_VAR))
        value, pos = decode_value(payload, pos)
        actions.append(SetVar(name, value))
    return tuple(actions)


def hello_entries(**changed: Value | None) -> Entries:
    """A hello as of HAProxy 2.8; a key set to None is left out (underscores for dashes)."""
    entries: dict[str, Value | None] = {
        "supported_versions": text(b"2.0"),
        "max_frame_size": Value(Kind.UINT32, 16380),
        "capabilities": text(b"pipelining,async"),
        "engine_id": text(b"00000000-0000-0000-0000-000000000000"),
        **changed,
    }
    return tuple((key.replace("_", "-").encode(), value) for key, value in entries.items() if value is not None)


def hello(**changed: Value | None) -> bytes:
    return encode_list_frame(FrameType.HAPROXY_HELLO, hello_entries(**changed))


def health_check() -> bytes:
    return hello(capabilities=text(b""), engine_id=None, healthcheck=TRUE)


def farewell(status: int = 0) -> bytes:
    entries = ((b"status-code", Value(Kind.UINT32, status)), (b"message", text(b"normal")))
    return encode_list_frame(FrameType.HAPROXY_DISCONNECT, entries)


def notify(*messages: Message, stream_id: int = 0, frame_id: int = 1, flags: int = FIN) -> bytes:
    return encode_frame(Frame(FrameType.NOTIFY, flags, stream_id, frame_id, encode_messages(messages)))


def called(der: bytes, host: str, port: int, stream_id: int = 0, frame_id: int = 1) -> bytes:
    """The question that HAProxy asks with our configuration."""
    address = ip_address(host)
    kind = Kind.IPV4 if address.version == 4 else Kind.IPV6
    origin = ((b"src", Value(kind, address.packed)), (b"src_port", Value(Kind.INT64, port)))
    message = Message(b"caller", ((b"der", Value(Kind.BINARY, der)), *origin))
    return notify(message, stream_id=stream_id, frame_id=frame_id)


def caller(der: bytes, stream_id: int = 0, frame_id: int = 1) -> bytes:
    """The question of a HAProxy that cannot remember callers, before 2.1."""
    message = Message(b"caller", ((b"der", Value(Kind.BINARY, der)),))
    return notify(message, stream_id=stream_id, frame_id=frame_id)


def frames_of(data: bytes) -> list[Frame]:
    """All frames in what one side sent; it must end with one."""
    frames = []
    while data:
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")
        assert end <= len(data), "it ends inside a frame"
        frames.append(decode_frame(data[LENGTH_BYTES:end]))
        data = data[end:]
    return frames


def hello_of(data: bytes) -> dict[bytes, Value]:
    """What is in the hello that HAProxy begins a connection with."""
    return dict(decode_entries(frames_of(data)[0].payload))


def status_of(frame: Frame) -> int:
    """The status code of an AGENT-DISCONNECT."""
    assert frame.kind == FrameType.AGENT_DISCONNECT
    status = dict(decode_entries(frame.payload))[b"status-code"].data
    assert isinstance(status, int)
    return status


def variables(frame: Frame) -> dict[str, object]:
    """What an ACK sets, in scope txn."""
    assert frame.kind == FrameType.ACK
    return {action.name.decode(): action.value.data for action in decode_actions(frame.payload)}


def captured(name: str) -> list[bytes]:
    """The frames of one recording, in order."""
    lines = (CAPTURED / f"{name}.hex").read_text().splitlines()
    return [bytes.fromhex(line) for line in lines if not line.startswith("#")]
