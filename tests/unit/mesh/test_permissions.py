from __future__ import annotations

import pytest

from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission, speaks_of
from hcc.mesh.request import Normalization, NormalRequest, Request, normalised


def fulfils(rule: HeaderRule, *values: str) -> bool:
    request = Request("GET", "/", (("Host", "h"), *(("X-Role", value) for value in values)))
    return speaks_of(Permission(allow=True, headers=(rule,)), normalised(request, Normalization()))


def on_path(kind: PathMatch, value: str, target: str) -> bool:
    permission = Permission(allow=True, path=PathRule(kind, value))
    return speaks_of(permission, normalised(Request("GET", target, (("Host", "h"),)), Normalization()))


@pytest.mark.parametrize(
    ("kind", "value", "inside", "outside"),
    [
        (
            PathMatch.EXACT,
            "/admin",
            ("/admin", "/admin?x", "/./admin", "/x/../admin"),
            ("/admin/", "/Admin", "/admin2"),
        ),
        (PathMatch.PREFIX, "/admin", ("/admin", "/admin/", "/administrator"), ("/Admin", "/x/admin", "/")),
        (PathMatch.PREFIX, "/", ("/", "/x"), ()),
        (PathMatch.REGEX, "/v[12]/.*", ("/v1/", "/v2/x"), ("/v3/", "/v1", "/x/v1/", "/V1/")),
        (PathMatch.REGEX, "/a|/b", ("/a", "/b"), ("/ab", "/a/b")),
        (PathMatch.REGEX, "(?i)/a", ("/a", "/A"), ("/b",)),
        (PathMatch.REGEX, "^/a$", ("/a",), ("/a/", "/ab")),
    ],
)
def test_a_path_is_compared_whole_and_with_its_case(
    kind: PathMatch, value: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    assert all(on_path(kind, value, target) for target in inside)
    assert not any(on_path(kind, value, target) for target in outside)


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (HeaderMatch.EXACT, ("ab",), ("abc", "xab", "AB", "", "a,b")),
        (HeaderMatch.PREFIX, ("ab", "abc"), ("xab", "AB", "")),
        (HeaderMatch.SUFFIX, ("ab", "xab"), ("abc", "AB", "")),
        (HeaderMatch.CONTAINS, ("ab", "xab", "abc"), ("AB", "a,b", "")),
        (HeaderMatch.REGEX, ("ab",), ("abc", "xab", "AB", "")),
        (HeaderMatch.PRESENT, ("ab", "", "x"), ()),
    ],
)
def test_a_header_is_compared_by_its_kind_and_inverted(
    kind: HeaderMatch, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    rule = HeaderRule("x-role", kind, "" if kind is HeaderMatch.PRESENT else "ab")
    inverted = HeaderRule("x-role", kind, rule.value, invert=True)
    for value in inside:
        assert fulfils(rule, value)
        assert not fulfils(inverted, value)
    for value in outside:
        assert not fulfils(rule, value)
        assert fulfils(inverted, value)


@pytest.mark.parametrize("kind", HeaderMatch)
@pytest.mark.parametrize("invert", [False, True])
def test_a_missing_header_fulfils_only_an_inverted_present(kind: HeaderMatch, invert: bool) -> None:
    rule = HeaderRule("x-role", kind, "x", invert)
    assert fulfils(rule) is (kind is HeaderMatch.PRESENT and invert)


@pytest.mark.parametrize("kind", [HeaderMatch.EXACT, HeaderMatch.PREFIX, HeaderMatch.SUFFIX, HeaderMatch.CONTAINS])
def test_case_is_ignored_where_asked_for_in_ascii_only(kind: HeaderMatch) -> None:
    rule = HeaderRule("x-role", kind, "aDmin", ignore_case=True)
    assert fulfils(rule, "AdMIN")
    # Python's lower() would make a k of the Kelvin sign, Envoy does not.
    assert not fulfils(HeaderRule("x-role", kind, "k", ignore_case=True), "\u212a")


def test_a_header_in_several_lines_is_compared_joined() -> None:
    rule = HeaderRule("x-role", HeaderMatch.EXACT, "admin")
    assert not fulfils(rule, "admin", "guest")
    assert not fulfils(rule, "guest", "admin")
    assert fulfils(HeaderRule("x-role", HeaderMatch.EXACT, "guest,admin"), "guest", "admin")
    assert fulfils(HeaderRule("x-role", HeaderMatch.CONTAINS, "admin"), "guest", "admin")


def test_methods_are_compared_whole_and_with_their_case() -> None:
    permission = Permission(allow=True, methods=("GET", "PUT"))
    for method, expected in (
        ("GET", True),
        ("PUT", True),
        ("get", False),
        ("GETX", False),
        ("", False),
        ("POST", False),
    ):
        assert speaks_of(permission, NormalRequest(method, "/", {})) is expected
