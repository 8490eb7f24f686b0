from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.spoe.payloads import (
    Entries,
    Message,
    SetVar,
    decode_entries,
    decode_messages,
    encode_actions,
    encode_entries,
)
from hcc.spoe.status import SpopError
from hcc.spoe.values import NULL, TRUE
from tests.spop_frames import decode_actions, encode_messages
from tests.unit.spoe.test_values import VALUES

NAMES = st.binary(max_size=20)
ENTRIES = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple)
MESSAGES = st.lists(st.builds(Message, NAMES, ENTRIES), max_size=5).map(tuple)
ACTIONS = st.lists(st.builds(SetVar, NAMES, VALUES), max_size=6).map(tuple)


@given(ENTRIES)
def test_lists_of_keys_and_values_come_back(entries: Entries) -> None:
    assert decode_entries(encode_entries(entries)) == entries


@given(MESSAGES)
def test_any_number_of_messages_with_arguments_of_all_kinds_come_back(messages: tuple[Message, ...]) -> None:
    assert decode_messages(encode_messages(messages)) == messages


@given(ACTIONS)
def test_actions_come_back(actions: tuple[SetVar, ...]) -> None:
    assert decode_actions(encode_actions(actions)) == actions


def test_a_message_has_up_to_255_arguments() -> None:
    most = Message(b"m", ((b"", NULL),) * 255)
    assert decode_messages(encode_messages((most,))) == (most,)


@given(MESSAGES.filter(bool))
def test_messages_cut_inside_one_are_invalid(messages: tuple[Message, ...]) -> None:
    encoded = encode_messages(messages)
    whole = {len(encode_messages(messages[:count])) for count in range(len(messages))}
    for cut in set(range(len(encoded))) - whole:
        with pytest.raises(SpopError):
            decode_messages(encoded[:cut])


def test_the_known_answer_has_its_known_bytes() -> None:
    assert encode_actions((SetVar(b"allowed", TRUE),)).hex() == "01030207" + b"allowed".hex() + "11"
