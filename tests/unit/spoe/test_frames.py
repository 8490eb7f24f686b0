from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.spoe.frames import (
    LENGTH_BYTES,
    Frame,
    FrameType,
    decode_frame,
    encode_disconnect,
    encode_frame,
    frame_end,
)
from hcc.spoe.payloads import decode_entries
from hcc.spoe.status import SpopError, Status
from hcc.spoe.varint import MAX_VALUE

FRAMES = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, MAX_VALUE),
    st.integers(0, MAX_VALUE),
    st.binary(max_size=200),
)


@given(FRAMES)
def test_every_frame_comes_back(frame: Frame) -> None:
    data = encode_frame(frame)
    assert frame_end(data, 0, 65_532) == len(data)
    assert decode_frame(data[LENGTH_BYTES:]) == frame


@given(FRAMES, st.binary(max_size=10))
def test_a_frame_ends_where_its_length_says_and_not_before_it_is_whole(frame: Frame, after: bytes) -> None:
    data = encode_frame(frame)
    assert frame_end(data + after, 0, 65_532) == len(data)
    for cut in range(len(data)):
        assert frame_end(data[:cut], 0, 65_532) == 0


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (0, Status.INVALID),
        (6, Status.INVALID),
        (257, Status.TOO_BIG),
        (2**31, Status.TOO_BIG),
        (2**32 - 1, Status.TOO_BIG),
    ],
)
def test_a_hostile_length_is_refused_from_its_four_bytes_alone(length: int, status: Status) -> None:
    with pytest.raises(SpopError) as caught:
        frame_end(length.to_bytes(4, "big"), 0, 256)
    assert caught.value.status is status


@pytest.mark.parametrize("body", ["", "03000000010001"[:12], "0300000001ff80808080", "0300000001f000f0"])
def test_a_head_that_is_not_complete_is_invalid(body: str) -> None:
    with pytest.raises(SpopError) as caught:
        decode_frame(bytes.fromhex(body))
    assert caught.value.status is Status.INVALID


def test_a_disconnect_tells_its_status_and_at_most_255_bytes_of_message() -> None:
    frame = decode_frame(encode_disconnect(Status.TOO_BIG, "x\u00e9" * 300)[LENGTH_BYTES:])
    entries = dict(decode_entries(frame.payload))
    assert frame.kind == FrameType.AGENT_DISCONNECT
    assert entries[b"status-code"].data == 3
    assert len(bytes(entries[b"message"].data)) == 255  # type: ignore[arg-type]  # a string's data is bytes
