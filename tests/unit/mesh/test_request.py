from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.request import (
    MAX_TARGET_BYTES,
    EscapedSlashes,
    Look,
    LookedAt,
    Normalization,
    Request,
    RequestError,
    Underscores,
    normalised,
)

CONSUL = Normalization()
HOST = ("Host", "h")


def path(target: str, how: Normalization = CONSUL) -> str:
    return normalised(Request("GET", target, (HOST,)), how).path


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a?b=/../c", "/a"),
        ("/a?b?c", "/a"),
        # Dot segments, also escaped, also above the root.
        ("/./a", "/a"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/b/../c", "/a/c"),
        ("/public/../admin", "/admin"),
        ("/../../admin", "/admin"),
        ("/public/%2e%2e/admin", "/admin"),
        ("/public/%2E./admin", "/admin"),
        ("/public/.%2e/admin", "/admin"),
        ("/public/..%2fadmin", "/public/..%2fadmin"),
        ("/public/...", "/public/..."),
        ("/public/..a/.b", "/public/..a/.b"),
        ("/a;x/.b;y/..c;/...;", "/a;x/.b;y/..c;/...;"),
        # Dot segments to servlets alone.
        ("/..;/admin", None),
        ("/x/.;", None),
        ("/x/%2e%2E;a=b/admin", None),
        ("\\..;/admin", None),
        ("/x\\..;/admin", None),
        # A slash more or less is another path, unless merged.
        ("//admin", "//admin"),
        ("/a//../admin", "/a/admin"),
        ("/.//admin", "//admin"),
        ("/admin/", "/admin/"),
        # A backslash is a slash.
        ("/public\\..\\admin", "/admin"),
        ("\\admin", None),
        # What needs no escaping is decoded, once; what needs it stays, with its case.
        ("/%61dmin", "/admin"),
        ("/%41%7E%5F%2D%39", "/A~_-9"),
        ("/%2561dmin", "/%2561dmin"),
        ("/%252e%252e/x", "/%252e%252e/x"),
        ("/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("/a%5Cb", "/a%5Cb"),
        ("/a%20b", "/a%20b"),
        ("/a%3Fb", "/a%3Fb"),
        ("/a%", "/a%"),
        ("/a%2", "/a%2"),
        ("/a%zz", "/a%zz"),
        ("/%c3%a9", "/%c3%a9"),
        # What must be escaped is.
        ('/"<>^`{|}', "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/[a]@b:c;d,e=f!g$h&i'j(k)*+", "/[a]@b:c;d,e=f!g$h&i'j(k)*+"),
        # Case means something.
        ("/Admin", "/Admin"),
        # A proxy's form of the target.
        ("http://host/a/../b?c", "/b"),
        ("https://user@host:1?c", "/"),
        ("http://host", "/"),
    ],
)
def test_a_path_is_normalised_as_envoy_does(target: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(RequestError):
            path(target)
    else:
        assert path(target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a\x00b", "visible"),
        ("/a%00b", "NUL"),
        ("/a b", "visible"),
        ("/a\tb", "visible"),
        ("/a\r\nHost: b", "visible"),
        ("/\x7f", "visible"),
        ("/\u00e9", "visible"),
        ("/a#b", "fragment"),
        ("/a?b#c", "fragment"),
        ("", "starts with /"),
        ("*", "starts with /"),
        ("host:443", "starts with /"),
        ("a/b", "starts with /"),
        ("?a", "starts with /"),
        ("//".join(["/"] * 9000), "at most 16384"),
    ],
)
def test_what_has_no_normal_form_is_refused(target: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        path(target)


def test_slashes_are_merged_where_the_mesh_says_so() -> None:
    how = Normalization(merge_slashes=True)
    assert path("//a///b//", how) == "/a/b/"
    assert path("/a//../b", how) == "/a/b"
    assert path("/a?b//c", how) == "/a"


def test_escaped_slashes_are_kept_unescaped_refused_or_redirected() -> None:
    target = "/public/..%2Fadmin%5c.."
    assert path(target, Normalization(escaped_slashes=EscapedSlashes.KEEP)) == target
    assert path(target, Normalization(escaped_slashes=EscapedSlashes.UNESCAPE)) == "/"
    assert path("/a%2f%2fb", Normalization(True, True, EscapedSlashes.UNESCAPE)) == "/a/b"
    assert path("/a%5c..%5C..", Normalization(escaped_slashes=EscapedSlashes.UNESCAPE)) == "/"
    for escape in ("%2f", "%2F", "%5c", "%5C"):
        with pytest.raises(RequestError, match="escaped slash"):
            path(f"/a{escape}b", Normalization(escaped_slashes=EscapedSlashes.REJECT))
    for refused in (EscapedSlashes.REJECT, EscapedSlashes.REDIRECT):
        how = Normalization(escaped_slashes=refused)
        with pytest.raises(RequestError, match="escaped slash"):
            path(target, how)
        assert path("/a?b=%2f", how) == "/a"


def test_without_normalisation_a_path_is_taken_as_it_came() -> None:
    how = Normalization(path=False)
    assert path("/a/../%61%00\\b?c", how) == "/a/../%61%00\\b"
    assert path("/a/..;/b", how) == "/a/..;/b"


@given(st.text(st.sampled_from("/\\.%2eEfF5cC0aA?;|"), max_size=40))
def test_a_normal_path_is_its_own_normal_form(tail: str) -> None:
    try:
        once = path(f"/{tail}")
    except RequestError:
        return
    assert path(once) == once
    assert once.startswith("/")
    assert not {".", ".."} & set(once.split("/"))
    assert "\\" not in once


def test_headers_are_found_in_any_case_joined_and_trimmed() -> None:
    request = Request("GET", "/", (HOST, ("X-A", " 1 "), ("x-b", ""), ("x-A", "\t2")))
    assert normalised(request, CONSUL).headers == {"host": "h", "x-a": "1,2", "x-b": ""}


def test_headers_with_underscores_are_allowed_dropped_or_refused() -> None:
    request = Request("GET", "/", (HOST, ("x_a", "1"), ("x-a", "2")))
    assert normalised(request, CONSUL).headers == {"host": "h", "x_a": "1", "x-a": "2"}
    assert normalised(request, Normalization(underscores=Underscores.DROP)).headers == {"host": "h", "x-a": "2"}
    with pytest.raises(RequestError, match="underscore"):
        normalised(request, Normalization(underscores=Underscores.REJECT))


def test_a_path_may_be_as_long_as_a_buffer_of_haproxy_and_no_longer() -> None:
    longest = "/" + "a" * (MAX_TARGET_BYTES - 1)
    assert path(longest) == longest
    with pytest.raises(RequestError, match="at most 16384"):
        path(f"{longest}a")


def test_only_blanks_and_tabs_are_taken_from_the_ends_of_a_value() -> None:
    request = Request("GET", "/", (HOST, ("x-a", " \x0badmin\xa0\t")))
    assert normalised(request, CONSUL).headers == {"host": "h", "x-a": "\x0badmin\xa0"}


@pytest.mark.parametrize("target", ["/", "http://evil/"])
def test_a_request_that_does_not_say_its_host_is_refused(target: str) -> None:
    with pytest.raises(RequestError, match="Host"):
        normalised(Request("GET", target, (("x-a", "1"),)), CONSUL)


def test_several_lines_of_a_header_are_refused_only_where_rules_look_at_its_value() -> None:
    request = Request("GET", "/", (HOST, ("x-a", "1"), ("X-A", "")))
    assert normalised(request, CONSUL, (LookedAt("x-a", Look.PRESENCE),)).headers["x-a"] == "1,"
    for look in (Look.VALUE, Look.PATTERN):
        with pytest.raises(RequestError, match="one line of the header x-a"):
            normalised(request, CONSUL, (LookedAt("x-a", look),))


@pytest.mark.parametrize("look", Look)
@pytest.mark.parametrize("character", ["\x00", "\x01", "\x08", "\n", "\x0b", "\x0c", "\r", "\x1f", "\x7f"])
def test_a_control_character_in_a_header_that_rules_look_at_is_refused(character: str, look: Look) -> None:
    request = Request("GET", "/", (HOST, ("X-A", f"admin{character}"), ("x-b", "a\tb")))
    assert normalised(request, CONSUL, (LookedAt("x-b", look),)).headers["x-b"] == "a\tb"
    with pytest.raises(RequestError, match="control character in the header x-a"):
        normalised(request, CONSUL, (LookedAt("x-a", look),))


def test_more_than_ascii_in_a_header_is_refused_only_where_a_regular_expression_looks_at_it() -> None:
    request = Request("GET", "/", (HOST, ("x-a", "caf\u00e9")))
    assert normalised(request, CONSUL, (LookedAt("x-a", Look.VALUE),)).headers["x-a"] == "caf\u00e9"
    with pytest.raises(RequestError, match="ASCII in the header x-a"):
        normalised(request, CONSUL, (LookedAt("x-a", Look.PATTERN),))


@pytest.mark.parametrize("method", ["get", "Get", "GETX", "G", "", "PRI", "M-SEARCH", "GET\n", " GET"])
def test_a_method_that_is_not_registered_is_refused(method: str) -> None:
    with pytest.raises(RequestError, match="method"):
        normalised(Request(method, "/", (HOST,)), CONSUL)
