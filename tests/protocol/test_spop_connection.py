"""Bytes in, events and bytes out, on one SPOP connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.intentions import Policy
from hcc.spoe.cache import DecisionCache
from hcc.spoe.caller import Asked, answer_actions
from hcc.spoe.connection import TRANSITIONS, Connection, Input, Parted, State
from hcc.spoe.frames import FIN, Frame, FrameType, decode_frame, encode_frame, encode_list_frame
from hcc.spoe.payloads import Message, decode_entries
from hcc.spoe.status import Status
from hcc.spoe.values import NULL, TRUE, Kind, Value
from tests.spoe_certificates import TRUST_DOMAIN
from tests.spop_frames import (
    CHECKS,
    SESSIONS,
    caller,
    captured,
    farewell,
    frames_of,
    health_check,
    hello,
    hello_entries,
    notify,
    status_of,
    text,
    variables,
)
from tests.unit.spoe.test_payloads import MESSAGES

# The flag that says: forget the fragments sent so far.
ABORT = 2


def delivered(stream: bytes, size: int) -> tuple[Connection, bytes, list[object]]:
    """A connection that got the stream in pieces of this size and answers at once, what it sent, what happened."""
    return delivered_in([stream[start : start + size] for start in range(0, len(stream), size)])


def delivered_in(pieces: list[bytes]) -> tuple[Connection, bytes, list[object]]:
    """The same, with the pieces given."""
    connection = Connection()
    sent = b""
    happened: list[object] = []
    for piece in pieces:
        connection.receive_data(piece)
        answers = answered(connection, happened)
        # Whole frames only, to be sent in one go: 3.2 stumbles over a frame in two pieces.
        assert b"".join(map(encode_frame, frames_of(answers))) == answers
        sent += answers
    return connection, sent, happened


def answered(connection: Connection, happened: list[object] | None = None) -> bytes:
    """Answer every question with its own certificate as the source; what was sent."""
    for event in connection.events():
        if happened is not None:
            happened.append(event)
        if isinstance(event, Asked):
            connection.acknowledge(event.ids, answer_actions(True, event.der[:5].hex()))
    return connection.data_to_send()


def greeted() -> Connection:
    connection = Connection()
    connection.receive_data(hello())
    assert not connection.events()
    assert frames_of(connection.data_to_send())[0].kind == FrameType.AGENT_HELLO
    return connection


def disconnected(connection: Connection) -> int:
    """The status code of the disconnect that ends what the connection sends; nothing comes behind it."""
    status = status_of(frames_of(connection.data_to_send())[-1])
    assert connection.state is State.CLOSING
    assert connection.finished
    connection.receive_data(hello() + caller(b"ignored"))
    assert not connection.data_to_send()
    return status


# ---- what real HAProxies sent


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 1_000_000])
@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_session_means_the_same_frame_by_frame_joined_and_cut_anywhere(name: str, size: int) -> None:
    recorded = captured(name)
    connection, sent, happened = delivered(b"".join(recorded), size) if size else delivered_in(recorded)
    greeting, *acks = frames_of(sent)
    questions = [decode_frame(frame[4:]) for frame in recorded[1:]]
    assert connection.state is State.OPEN
    assert [type(event) for event in happened] == [Asked, Asked, Asked]
    assert dict(decode_entries(greeting.payload)) == {
        b"version": text(b"2.0"),
        b"max-frame-size": Value(Kind.UINT32, 16380),
        b"capabilities": text(b"pipelining"),
    }
    assert [(ack.stream_id, ack.frame_id) for ack in acks] == [(asked.stream_id, asked.frame_id) for asked in questions]
    assert all(variables(ack)["allowed"] is True for ack in acks)


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_question_is_decided_and_answered_with_an_action_by_any_policy(name: str) -> None:
    policies = (None, Policy("server", TRUST_DOMAIN, (), True), Policy("server", TRUST_DOMAIN, (), False))
    for policy in policies:
        cache = DecisionCache()
        if policy is not None:
            cache.set_policy(policy)
        connection = Connection()
        for frame in captured(name):
            connection.receive_data(frame)
            for event in connection.events():
                if isinstance(event, Asked):
                    connection.acknowledge(event.ids, cache.decide(event.der).actions)
        _, *acks = frames_of(connection.data_to_send())
        allowed = policy is not None and bool(policy.default_allow)
        assert [variables(ack)["allowed"] for ack in acks] == [allowed] * 3
        assert [answer.decision.understood for answer in cache.answers.values()] == [True] * 3


@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize("name", CHECKS)
def test_a_recorded_health_check_is_answered_and_closed(name: str, size: int) -> None:
    connection, sent, _ = delivered(b"".join(captured(name)), size)
    assert [frame.kind for frame in frames_of(sent)] == [FrameType.AGENT_HELLO]
    assert connection.finished


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_question_cut_anywhere_is_a_fault(name: str) -> None:
    greeting, question, *_ = captured(name)
    # From behind its identifiers on: before, it would be a question without any message.
    for cut in range(12, len(question)):
        connection = Connection()
        connection.receive_data(greeting + (cut - 4).to_bytes(4, "big") + question[4:cut])
        answered(connection)
        assert connection.state is State.CLOSING, f"a question cut to {cut} bytes was taken"


# ---- questions and answers


def test_each_question_is_answered_once_with_its_own_identifiers() -> None:
    connection = greeted()
    connection.receive_data(caller(b"one", 300, 7) + caller(b"two", 0, 1) + caller(b"three", 2**64 - 1, 2**64 - 1))
    acks = frames_of(answered(connection))
    assert [(ack.stream_id, ack.frame_id) for ack in acks] == [(300, 7), (0, 1), (2**64 - 1, 2**64 - 1)]
    assert variables(acks[0]) == {"allowed": True, "caller": b"one".hex().encode()}


def test_answers_may_come_in_any_order() -> None:
    connection = greeted()
    connection.receive_data(caller(b"one", 1) + caller(b"two", 2))
    for event in reversed(connection.events()):
        assert isinstance(event, Asked)
        connection.acknowledge(event.ids, answer_actions(False, ""))
    assert [ack.stream_id for ack in frames_of(connection.data_to_send())] == [2, 1]


@given(MESSAGES, st.integers(0, 2**64 - 1))
def test_a_notify_with_any_messages_is_one_question(messages: tuple[Message, ...], stream_id: int) -> None:
    connection = greeted()
    connection.receive_data(notify(*messages, stream_id=stream_id))
    (ack,) = frames_of(answered(connection))
    assert ack.stream_id == stream_id
    assert variables(ack)["allowed"] is True


def test_a_notify_without_our_message_is_acknowledged_as_a_fault() -> None:
    connection = greeted()
    connection.receive_data(notify(Message(b"other", ((b"", NULL),))))
    (event,) = connection.events()
    assert isinstance(event, Asked)
    assert event.fault


def test_an_answer_needs_a_question_an_action_and_a_frame_it_fits() -> None:
    connection = greeted()
    with pytest.raises(ValueError, match="0 questions are open"):
        connection.acknowledge(b"\x00\x01", answer_actions(True, ""))
    connection.receive_data(caller(b"one"))
    for actions in (b"", bytes(16_380)):
        with pytest.raises(ValueError, match="1 questions are open"):
            connection.acknowledge(b"\x00\x01", actions)


# ---- faults


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (notify(flags=0), Status.FRAGMENTED),
        (notify(flags=ABORT), Status.FRAGMENTED),
        (encode_frame(Frame(FrameType.UNSET, FIN, 1, 1, b"")), Status.FRAGMENTED),
        (encode_frame(Frame(FrameType.UNSET, FIN | ABORT, 1, 1, b"")), Status.FRAGMENTED),
        (notify(flags=FIN | ABORT), Status.INVALID),
        (notify(flags=FIN | 1 << 31), Status.INVALID),
        ((16_381).to_bytes(4, "big"), Status.TOO_BIG),
        (b"\xff\xff\xff\xff", Status.TOO_BIG),
        (b"GET / HTTP/1.1\r\n\r\n", Status.TOO_BIG),
        (b"\x00\x00\x00\x06", Status.INVALID),
        (b"\x00\x00\x00\x00", Status.INVALID),
        (b"\x00\x00\x00\x08\x03\x00\x00\x00\x01\x00\xff\xff", Status.INVALID),
        (encode_frame(Frame(FrameType.NOTIFY, FIN, 1, 1, b"\x06call")), Status.INVALID),
        (encode_frame(Frame(FrameType.NOTIFY, FIN, 1, 1, b"\x06caller")), Status.INVALID),
        (encode_frame(Frame(FrameType.NOTIFY, FIN, 1, 1, b"\x06caller\x02\x00\x00")), Status.INVALID),
        (encode_frame(Frame(FrameType.NOTIFY, FIN, 1, 1, b"\x06caller\x01\x03der\x0f")), Status.INVALID),
        (hello(), Status.INVALID),
        (encode_frame(Frame(FrameType.HAPROXY_DISCONNECT, FIN, 1, 0, b"")), Status.INVALID),
        (encode_list_frame(FrameType.HAPROXY_DISCONNECT, ()), Status.INVALID),
        (encode_list_frame(FrameType.HAPROXY_DISCONNECT, ((b"status-code", NULL), (b"message", NULL))), Status.INVALID),
        (
            encode_list_frame(
                FrameType.HAPROXY_DISCONNECT, ((b"status-code", Value(Kind.UINT32, 0)), (b"message", NULL))
            ),
            Status.INVALID,
        ),
        (encode_list_frame(FrameType.AGENT_HELLO, ()), Status.INVALID),
        (encode_list_frame(FrameType.AGENT_DISCONNECT, ()), Status.INVALID),
        (encode_frame(Frame(FrameType.ACK, FIN, 1, 1, b"")), Status.INVALID),
    ],
)
def test_each_fault_ends_the_connection_with_its_status_code(frame: bytes, status: Status) -> None:
    for size in (1, len(frame)):
        connection = greeted()
        for start in range(0, len(frame), size):
            connection.receive_data(frame[start : start + size])
        assert disconnected(connection) == status


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (caller(b"one"), Status.INVALID),
        (hello(supported_versions=None), Status.NO_VERSION),
        (hello(supported_versions=text(b"1.0")), Status.BAD_VERSION),
        (hello(max_frame_size=None), Status.NO_FRAME_SIZE),
        (hello(max_frame_size=Value(Kind.UINT32, 255)), Status.BAD_FRAME_SIZE),
        (hello(capabilities=None), Status.NO_CAPABILITIES),
        (encode_frame(Frame(FrameType.HAPROXY_HELLO, 0, 0, 0, b"")), Status.FRAGMENTED),
        (encode_frame(Frame(FrameType.HAPROXY_HELLO, FIN, 1, 0, b"")), Status.INVALID),
        (encode_frame(Frame(FrameType.HAPROXY_HELLO, FIN, 0, 0, b"\xff")), Status.INVALID),
        (b"\x16\x03\x01\x02\x00\x01", Status.TOO_BIG),
    ],
)
def test_each_failed_greeting_has_its_status_code(stream: bytes, status: Status) -> None:
    connection = Connection()
    connection.receive_data(stream)
    assert disconnected(connection) == status


def test_the_agreed_frame_size_holds_from_the_frame_behind_the_hello_on() -> None:
    small = hello(max_frame_size=Value(Kind.UINT32, 256))
    connection = Connection()
    connection.receive_data(small + caller(bytes(300)))
    assert disconnected(connection) == Status.TOO_BIG


def test_questions_before_a_fault_are_answered_before_the_disconnect() -> None:
    connection = greeted()
    connection.receive_data(caller(b"one", 1) + caller(b"two", 2) + b"\xff\xff\xff\xff")
    assert not connection.finished
    frames = frames_of(answered(connection))
    assert [frame.kind for frame in frames] == [FrameType.ACK, FrameType.ACK, FrameType.AGENT_DISCONNECT]
    assert status_of(frames[-1]) == Status.TOO_BIG


def test_an_unknown_frame_is_skipped_wherever_it_comes() -> None:
    unknown = encode_frame(Frame(77, FIN, 5, 5, b"\xff\xff"))
    connection, sent, _ = delivered(unknown + hello() + unknown + caller(b"one"), 10_000)
    assert [frame.kind for frame in frames_of(sent)] == [FrameType.AGENT_HELLO, FrameType.ACK]
    assert connection.state is State.OPEN


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_ends_in_a_disconnect_or_in_waiting_never_in_an_answer(garbage: bytes, size: int) -> None:
    _, sent, happened = delivered(garbage, size)
    assert not any(isinstance(event, Asked) for event in happened)
    assert all(frame.kind == FrameType.AGENT_DISCONNECT for frame in frames_of(sent))


@given(st.data())
def test_a_damaged_session_never_raises_and_answers_what_was_asked(data: st.DataObject) -> None:
    stream = bytearray(hello() + caller(b"one", 1) + caller(b"two", 2) + farewell())
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    whole = delivered(bytes(stream), len(stream))
    bytewise = delivered(bytes(stream), 1)
    assert whole[1:] == bytewise[1:]
    acks = [frame for frame in frames_of(whole[1]) if frame.kind == FrameType.ACK]
    assert len(acks) == sum(isinstance(event, Asked) for event in whole[2])


# ---- ends


def test_a_farewell_of_haproxy_is_returned() -> None:
    connection = greeted()
    connection.receive_data(farewell(2))
    assert connection.events() == [Parted(2, "normal", by_peer=True)]
    assert disconnected(connection) == Status.NORMAL


def test_stopping_answers_what_was_asked_and_then_parts() -> None:
    connection = greeted()
    connection.receive_data(caller(b"one"))
    connection.stop()
    connection.stop()
    assert connection.data_to_send() == b""
    frames = frames_of(answered(connection))
    assert [frame.kind for frame in frames] == [FrameType.ACK, FrameType.AGENT_DISCONNECT]
    assert status_of(frames[-1]) == Status.NORMAL
    assert connection.finished


def test_stopping_before_the_greeting_parts_too() -> None:
    connection = Connection()
    connection.stop()
    assert disconnected(connection) == Status.NORMAL


def test_the_end_of_the_stream_ends_everything_but_answers_due() -> None:
    connection = greeted()
    connection.receive_data(caller(b"one") + caller(b"two")[:9])
    connection.receive_eof()
    due = not connection.finished
    assert due
    assert [frame.kind for frame in frames_of(answered(connection))] == [FrameType.ACK]
    assert connection.finished
    connection.stop()
    connection.receive_eof()
    assert not connection.data_to_send()


def test_a_health_check_that_asks_is_not_answered() -> None:
    connection, sent, happened = delivered(health_check() + caller(b"one"), 10_000)
    assert [frame.kind for frame in frames_of(sent)] == [FrameType.AGENT_HELLO]
    assert not happened
    assert connection.finished


def test_the_table_says_what_stop_and_end_do_in_every_state() -> None:
    for state in State:
        assert Input.STOP in TRANSITIONS[state]
        assert TRANSITIONS[state][Input.EOF] is State.CLOSED


def test_hello_entries_of_the_tests_are_those_of_a_real_hello() -> None:
    recorded = decode_entries(decode_frame(captured(SESSIONS[0])[0][4:]).payload)
    assert {key for key, _ in recorded} == {key for key, _ in hello_entries()}
    assert TRUE in dict(decode_entries(decode_frame(captured(CHECKS[0])[0][4:]).payload)).values()
