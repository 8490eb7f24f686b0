"""Coverage-guided fuzzing of one SPOP connection: `python -m tests.fuzz.spop [libFuzzer's flags] [CORPUS]`.

Whatever comes in: nothing is raised, what goes out is whole frames, every question is acknowledged once with its own
identifiers and at least one action, bytes mean the same however they are cut, and the quick way means what the strict
decoder means.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["hcc.spoe", "hcc.mesh"]):
    from hcc.spoe.caller import Asked, answer_actions, matched, question
    from hcc.spoe.connection import Connection, Event
    from hcc.spoe.frames import LENGTH_BYTES, FrameType, decode_frame
    from hcc.spoe.payloads import decode_messages
    from hcc.spoe.varint import encode_varint
from tests.spop_frames import decode_actions, frames_of, hello


def one_input(data: bytes) -> None:
    """Run one input: its first byte says how it is delivered."""
    if not data:
        return
    head, stream = data[0], data[1:]
    if head & 1:
        stream = hello() + stream
    whole = _run(stream, len(stream) or 1)
    assert whole == _run(stream, 1 + (head >> 1)), "the same bytes mean something else in pieces"


def _run(stream: bytes, size: int) -> tuple[list[Event], bytes]:
    connection = Connection()
    happened: list[Event] = []
    sent = b""
    for start in range(0, len(stream), size):
        connection.receive_data(stream[start : start + size])
        events = connection.events()
        happened += events
        asked = [event.ids for event in events if isinstance(event, Asked)]
        for ids in asked:
            connection.acknowledge(ids, answer_actions(False, ""))
        piece = connection.data_to_send()
        frames = frames_of(piece)
        acks = [frame for frame in frames if frame.kind == FrameType.ACK]
        assert [encode_varint(ack.stream_id) + encode_varint(ack.frame_id) for ack in acks] == asked
        assert all(decode_actions(ack.payload) for ack in acks)
        sent += piece
    _check_quick_way(stream, happened)
    return happened, sent


def _check_quick_way(stream: bytes, happened: list[Event]) -> None:
    strict: list[Asked] = []
    while len(stream) >= LENGTH_BYTES and len(strict) < sum(isinstance(event, Asked) for event in happened):
        end = LENGTH_BYTES + int.from_bytes(stream[:LENGTH_BYTES], "big")
        body, stream = stream[LENGTH_BYTES:end], stream[end:]
        frame = decode_frame(body)
        if frame.kind == FrameType.NOTIFY:
            ids = encode_varint(frame.stream_id) + encode_varint(frame.frame_id)
            strict.append(question(ids, decode_messages(frame.payload)))
            assert matched(body, 0, len(body)) in (None, strict[-1])
    assert strict == [event for event in happened if isinstance(event, Asked)]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
