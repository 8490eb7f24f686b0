from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.capabilities import Version, capabilities
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.render_spoe import spoe_file
from hcc.spoe.caller import MAX_SOURCE_BYTES, Asked, answer_actions, matched, question
from hcc.spoe.frames import FIN, LENGTH_BYTES, Frame, decode_frame
from hcc.spoe.payloads import Message, decode_entries, decode_messages
from hcc.spoe.values import NULL, Kind, Value
from hcc.spoe.varint import MAX_VALUE, encode_varint
from tests.spop_frames import BRANCHES, CAPTURED, MODES, SESSIONS, called, caller, captured, notify, text

DER = Value(Kind.BINARY, b"certificate")


def strictly(frame: Frame) -> Asked:
    ids = encode_varint(frame.stream_id) + encode_varint(frame.frame_id)
    return question(ids, decode_messages(frame.payload))


@given(st.integers(0, MAX_VALUE), st.integers(0, MAX_VALUE), st.binary(max_size=3000))
def test_the_usual_shape_means_the_same_to_the_strict_decoder(stream: int, frame_id: int, der: bytes) -> None:
    body = caller(der, stream, frame_id)[LENGTH_BYTES:]
    found = matched(body, 0, len(body))
    short = len(encode_varint(stream) + encode_varint(frame_id)) <= 9
    assert found == (strictly(decode_frame(body)) if short else None)


@given(st.integers(0, MAX_VALUE), st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=3000))
def test_the_usual_shape_with_the_origin_means_the_same_to_the_strict_decoder(
    stream: int, host: IPv4Address | IPv6Address, port: int, der: bytes
) -> None:
    body = called(der, str(host), port, stream)[LENGTH_BYTES:]
    found = matched(body, 0, len(body))
    asked = strictly(decode_frame(body))
    assert asked.peer
    assert found == (asked if len(encode_varint(stream)) <= 8 else None)


def test_an_origin_of_another_shape_is_none() -> None:
    odd = ((b"src", text(b"x")), (b"src_port", Value(Kind.INT64, 1)))
    high = ((b"src", Value(Kind.IPV4, b"abcd")), (b"src_port", Value(Kind.INT64, 65_536)))
    word = ((b"src", Value(Kind.IPV4, b"abcd")), (b"src_port", text(b"1")))
    for peer in (odd, odd[1:], (odd[1], odd[0]), word, high):
        message = Message(b"caller", ((b"der", DER), *peer))
        body = notify(message)[LENGTH_BYTES:]
        assert strictly(decode_frame(body)) == Asked(b"\x00\x01", b"certificate")
        assert matched(body, 0, len(body)) is None


def test_a_question_about_tokens_is_none_about_a_caller() -> None:
    args = ((b"demand", Value(Kind.STRING, b"token-1")), (b"headers.authorization", Value(Kind.INT64, 1)))
    assert question(b"", (Message(b"token", args),)) == Asked(b"", b"", token=args)
    assert question(b"", (Message(b"token", args), Message(b"token", args))).fault


def test_word_of_a_refused_request_is_no_question() -> None:
    words = ((b"caller", text(b"a|b|web")), (b"method", text(b"GET")), (b"path", NULL))
    found = question(b"", (Message(b"refused", words),))
    assert found == Asked(b"", b"", refused=(b"a|b|web", b"GET", b""))


@given(st.data())
def test_a_damaged_frame_with_the_origin_that_still_matches_means_the_same(data: st.DataObject) -> None:
    body = bytearray(called(b"some certificate", "10.0.0.1", 4711, 300, 2)[LENGTH_BYTES:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    found = matched(bytes(body), 0, len(body))
    if found is not None:
        assert found == strictly(decode_frame(bytes(body)))


@given(st.data())
def test_a_damaged_frame_that_still_matches_means_the_same_to_the_strict_decoder(data: st.DataObject) -> None:
    body = bytearray(caller(b"some certificate", 300, 2)[LENGTH_BYTES:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(len(body) - 2, len(body))) :]
    found = matched(bytes(body), 0, len(body))
    if found is not None:
        frame = decode_frame(bytes(body))
        assert (frame.kind, frame.flags) == (3, FIN)
        assert found == strictly(frame)


def test_a_frame_is_matched_inside_a_longer_buffer_only_to_its_own_end() -> None:
    one = caller(b"first")
    buffer = one + caller(b"second")
    assert matched(buffer, LENGTH_BYTES, len(one)) == Asked(b"\x00\x01", b"first")
    assert matched(buffer, LENGTH_BYTES, len(one) - 1) is None
    assert matched(buffer, LENGTH_BYTES, len(buffer)) is None


def test_every_question_of_a_real_haproxy_takes_the_quick_way() -> None:
    for name in SESSIONS:
        questions = captured(name)[1:]
        assert len(questions) == 3
        for frame in questions:
            asked = matched(frame, LENGTH_BYTES, len(frame))
            assert asked is not None, name
            assert asked == strictly(decode_frame(frame[LENGTH_BYTES:]))
            assert [key for key, _ in decode_entries(asked.peer)] == [b"src", b"src_port"], name


def test_what_was_recorded_is_what_haproxy_is_told_to_ask() -> None:
    for branch, mode in itertools.product(BRANCHES, MODES):
        major, minor = branch.split(".")
        able = capabilities(Version(int(major), int(minor)))
        lines = list(spoe_file(Authorisation("agents", (), Mode(mode), "/i.map", "/v.map", "/r.map"), able))
        told = lines[lines.index("spoe-message caller") + 1]
        recorded = (CAPTURED / f"haproxy-{branch}-{mode}-session.hex").read_text().splitlines()[1]
        assert f", {told.strip()}" == recorded[recorded.index(", args ") :]


def test_a_missing_certificate_is_an_empty_one() -> None:
    assert question(b"", (Message(b"caller", ((b"der", NULL),)),)) == Asked(b"", b"")


def test_other_messages_and_arguments_are_skipped() -> None:
    messages = (Message(b"other", ((b"der", text(b"x")),)), Message(b"caller", ((b"", NULL), (b"der", DER))))
    assert question(b"", messages) == Asked(b"", b"certificate")


def test_doubt_about_who_is_meant_is_a_fault() -> None:
    doubtful = (
        (),
        (Message(b"other"),),
        (Message(b"Caller", ((b"der", DER),)),),
        (Message(b"caller"),),
        (Message(b"caller", ((b"der", DER), (b"der", DER))),),
        (Message(b"caller", ((b"der", DER),)), Message(b"caller", ((b"der", DER),))),
        (Message(b"caller", ((b"der", text(b"certificate")),)),),
    )
    for messages in doubtful:
        asked = question(b"", messages)
        assert asked.fault
        assert asked.der == b""


def test_a_frame_that_is_not_a_whole_notify_is_never_matched() -> None:
    for body in (b"", b"\x03", b"\x03\x00\x00\x00\x01\xff\x80", notify(flags=0)[LENGTH_BYTES:]):
        assert matched(body, 0, len(body)) is None


def test_the_longest_answer_fits_the_smallest_frame() -> None:
    ids, head = 20, 5
    assert head + ids + len(answer_actions(True, "s" * MAX_SOURCE_BYTES)) <= 256


def test_a_frame_with_a_wrong_end_is_never_matched() -> None:
    frame = caller(b"certificate", 300, 2)
    for cut in range(len(frame)):
        assert matched(frame[:cut], LENGTH_BYTES, cut) is None
