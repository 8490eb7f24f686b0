from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy import words
from hcc.mesh.identity import ServiceIdentity

HOSTILE = " \t\n\r\0\x0b\"'\\#$;{}<>%&|`"


@pytest.mark.parametrize(
    "check", [words.name, words.word, words.header, words.path, words.directory, words.mode, words.host]
)
@given(text=st.text(max_size=12), mark=st.sampled_from(" \t\n\r\0\"'\\#"), at=st.integers(0, 12))
def test_nothing_that_ends_a_word_or_line_passes(check: object, text: str, mark: str, at: int) -> None:
    assert callable(check)
    for hostile in (text[:at] + mark + text[at:], "/" + text[:at] + mark + text[at:]):
        with pytest.raises(words.WordError):
            check(hostile)


@pytest.mark.parametrize(
    "check", [words.name, words.word, words.header, words.path, words.directory, words.mode, words.host]
)
def test_nothing_empty_passes(check: object) -> None:
    assert callable(check)
    with pytest.raises(words.WordError):
        check("")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/v1.2/a-b_c", "/v1.2/a-b_c"),
        ("a b", "'a b'"),
        ("it's", "'it'\\x27's'"),
        ("a\nb\t", "'a'\\x0a'b'\\x09"),
        ("caf\u00e9", "'caf'\\xc3\\xa9"),
        ('$HOME "x" \\x41 #y', "'$HOME \"x\" \\x41 '\\x23'y'"),
        ("'", "\\x27"),
        ("a  b   ", "'a '\\x20'b '\\x20\\x20"),
        ("'  '", "\\x27' '\\x20\\x27"),
    ],
)
def test_any_text_can_be_a_word(text: str, word: str) -> None:
    assert words.quoted(text) == word


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_but_none_that_is_empty_or_has_a_nul(text: str) -> None:
    with pytest.raises(words.WordError):
        words.quoted(text)


@pytest.mark.parametrize("text", ["/run/hcc/leaf.pem", "/a/b-c_d@e+f,g=h", "/"])
def test_usual_paths_pass_unchanged(text: str) -> None:
    assert words.path(text) == text


def test_addresses_are_written_as_haproxy_reads_them() -> None:
    assert words.address("10.0.0.1", 80) == "10.0.0.1:80"
    assert words.address("2001:DB8:0::1", 80) == "[2001:db8::1]:80"


@pytest.mark.parametrize(
    ("host", "port"), [("fe80::1%eth0", 1), ("web", 1), ("1.2.3", 1), ("", 1), ("::", 65536), ("::", -1)]
)
def test_what_is_no_address_is_refused(host: str, port: int) -> None:
    with pytest.raises(words.WordError):
        words.address(host, port)


@pytest.mark.parametrize("text", ["localhost", "app.example.com", "my_app", "10.0.0.1", "a-b.c"])
def test_host_names_pass(text: str) -> None:
    assert words.host(text) == text


@pytest.mark.parametrize("text", ["1.2.3", "999.1.1.1", "a..b", "-a", "a b", "\u00e9"])
def test_odd_host_names_are_refused(text: str) -> None:
    with pytest.raises(words.WordError):
        words.host(text)


def test_a_socket_path_has_a_limit() -> None:
    assert words.socket_path("/" + "a" * 96)
    with pytest.raises(words.WordError, match="at most 97 bytes"):
        words.socket_path("/" + "a" * 97)


@pytest.mark.parametrize("value", [-1, 2**31, True])
def test_numbers_have_a_range(value: int) -> None:
    with pytest.raises(words.WordError):
        words.number(value)


def test_a_uri_is_what_haproxy_computes_of_it() -> None:
    assert words.uri("spiffe://d/ns/default/dc/dc1/svc/web%20$app") == "spiffe://d/ns/default/dc/dc1/svc/web%%20$app"
    for odd in ("a b", "a;b", 'a"b', "a#b", "a\\b", ""):
        with pytest.raises(words.WordError):
            words.uri(odd)


def test_a_uri_to_compare_with_may_have_whatever_a_service_may_be_called() -> None:
    identity = ServiceIdentity("d.consul", "a b,c;d$e&f#g'h\"i\\j(k)l*m", "dc1")
    assert words.pattern(identity.uri()) == identity.uri()
    for odd in ("a b", "a'b", 'a"b', "a#b", "a\\b", ""):
        with pytest.raises(words.WordError):
            words.pattern(odd)
