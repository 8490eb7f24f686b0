from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.spoe.control import ControlMessage, ControlMessageError, ControlReader, Topic, encode_control, message
from hcc.spoe.events import Denied, PolicyApplied, WorkerReady, worker_event

MESSAGES = st.lists(st.builds(ControlMessage, st.sampled_from(Topic), st.binary(max_size=50)), max_size=5)


@given(MESSAGES, st.integers(1, 20))
def test_messages_come_back_however_the_stream_is_cut(messages: list[ControlMessage], size: int) -> None:
    stream = b"".join(map(encode_control, messages))
    reader = ControlReader(100)
    received = [
        found for start in range(0, len(stream), size) for found in reader.receive_data(stream[start : start + size])
    ]
    assert received == messages


@pytest.mark.parametrize("data", ["00000000", "00000065", "ffffffff", "0000000109", "0000000100"])
def test_empty_oversize_and_unknown_messages_are_refused(data: str) -> None:
    with pytest.raises(ControlMessageError):
        ControlReader(100).receive_data(bytes.fromhex(data))


def test_news_of_a_worker_become_events() -> None:
    assert worker_event(1, message(Topic.READY, pid=7)) == WorkerReady(1, 7)
    assert worker_event(1, message(Topic.POLICY_APPLIED, version=3)) == PolicyApplied(1, 3)
    assert worker_event(1, message(Topic.DENIED, source="a", reason="b")) == Denied(1, "a", "b")


@pytest.mark.parametrize(
    "news",
    [
        ControlMessage(Topic.READY),
        ControlMessage(Topic.READY, b"[1]"),
        ControlMessage(Topic.READY, b"[" * 16_000),
        message(Topic.READY, pid="1"),
        message(Topic.POLICY_APPLIED),
        message(Topic.DENIED, source="a"),
        message(Topic.DENIED, source="a", reason=1),
        message(Topic.STOP),
        ControlMessage(Topic.POLICY, b"{}"),
    ],
)
def test_news_that_no_worker_sends_are_refused(news: ControlMessage) -> None:
    with pytest.raises(ControlMessageError):
        worker_event(0, news)
