from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.map_text import (
    MapTextError,
    Session,
    map_change,
    map_file,
    parse_map,
    parse_map_file,
    parse_sessions,
    payloads,
)

words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
maps = st.dictionaries(words, words, max_size=20)


@given(maps)
def test_a_file_reads_back(entries: dict[str, str]) -> None:
    assert parse_map_file(map_file(entries)) == entries


@given(maps, maps)
def test_a_change_makes_one_map_the_other(found: dict[str, str], wanted: dict[str, str]) -> None:
    change = map_change(found, wanted)
    made = {key: value for key, value in found.items() if key not in change.removed}
    assert not made.keys() & dict(change.added).keys()
    assert made.keys() >= dict(change.changed).keys()
    assert made | dict(change.added) | dict(change.changed) == wanted
    assert bool(change) == (found != wanted)


@given(maps, st.integers(60, 200))
def test_payloads_hold_every_entry_once_and_none_is_too_long(entries: dict[str, str], most: int) -> None:
    found = list(payloads(entries.items(), most))
    assert all(len(payload) <= most for payload in found)
    assert parse_map_file("\n".join(found)) == entries


def test_the_answer_to_show_map_is_read() -> None:
    assert parse_map("0x55bc59823180 web:dc1 allow\n0x55bc59a025b0 db:dc1 deny\n\n") == {
        "web:dc1": "allow",
        "db:dc1": "deny",
    }
    assert parse_map("\n") == {}
    # HAProxy looks up the first of two (2.2.9 to 3.2.26).
    assert parse_map("0x1 web:dc1 allow\n0x2 web:dc1 deny\n") == {"web:dc1": "allow"}


@pytest.mark.parametrize("text", ["Unknown map identifier. Please use #<id> or <file>.\n", "0x55bc59823180 web\n"])
def test_another_answer_is_an_error(text: str) -> None:
    with pytest.raises(MapTextError):
        parse_map(text)


def test_sessions_are_read_whatever_the_version_says_beside() -> None:
    text = (
        "0x56b: proto=tcpv4 src=10.0.0.1:4711 fe=public be=app srv=web:dc1 ts=00 epoch=0 age=1s calls=3 rate=0\n"
        "0x56c: proto=tcpv6 src=::1:4712 fe=public be=app srv=app ts=00 age=1s\n"
        "0x56d: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 age=0s\n"
    )
    assert parse_sessions(text) == (
        Session("0x56b", "10.0.0.1:4711", "app", "web:dc1"),
        Session("0x56c", "::1:4712", "app", "app"),
    )
