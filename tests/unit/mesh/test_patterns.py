from __future__ import annotations

import pytest

from hcc.mesh.patterns import compiled, unnamed


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/api/v[0-9]+/.*",
        r"/users/(\d{1,3}|me)(?:/[^/]+)?",
        r"(?P<version>v\d+)",
        "(?i)/a|/b",
        "(?is)x",
        r"\.\/\-\_\@\x41\t",
        r"\bfoo\B",
        r"^a*?b+?c??d{2}?e{2,}f{2,3}$",
        "]}",
        r"[\]\[\-a-z]",
        r"/list\[[^]]+\]",
        "[^](?P<a>]{2}",
    ],
)
def test_what_all_engines_read_alike_is_taken(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?<n>a)",
        "(?#a)",
        r"(a)\1",
        "(?P=a)",
        "a*+",
        "a++",
        "a{2}{3}",
        "(?>a)",
        "a(?i)b",
        "(?i:a)",
        "(?U)a",
        r"\pL",
        r"\Qa\E",
        r"\z",
        r"\A",
        r"\C",
        r"\x{41}",
        r"\u0041",
        "[[:alpha:]]",
        "[a&&b]",
        "[]a]",
        "[^]",
        "[^](a|b)",
        "[^]a&&b]",
        "[",
        "(",
        ")",
        "*",
        "a{,3}",
        "a{x}",
        "a{99999}",
        "[z-a]",
        "\\",
    ],
)
def test_what_an_engine_may_read_otherwise_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not understood"):
        compiled(pattern)


@pytest.mark.parametrize("pattern", ["\u00e9?x", "caf[e\u00e9]", "(?i)\u212a", "/\u00e9"])
def test_what_has_more_than_ascii_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="more than ASCII"):
        compiled(pattern)


@pytest.mark.parametrize("depth", [101, 251, 600, 20_000])
def test_groups_that_are_too_deep_in_each_other_for_any_engine_are_refused(depth: int) -> None:
    deep = "(" * 100 + "a" + ")" * 100
    assert compiled(deep).pattern == deep
    with pytest.raises(ValueError, match="more than 100 groups in each other"):
        compiled("(" * depth + "a" + ")" * depth)


def test_groups_beside_each_other_are_not_deep() -> None:
    beside = "(?:a|b)" * 300
    assert compiled(beside).pattern == beside


def test_names_are_taken_from_groups_and_not_from_classes() -> None:
    assert unnamed("(?P<a>x)[(?P<b>][^](?P<c>](?P<d>y)") == "(x)[(?P<b>][^](?P<c>](y)"


def test_ends_are_spelled_otherwise_where_they_are_ends_and_not_in_classes_or_escaped() -> None:
    assert unnamed(r"(?i)^(?P<a>[^$]\$|\^[$^])$", "S", "E") == r"S([^$]\$|\^[$^])E"


def test_classes_are_those_of_ascii() -> None:
    assert not compiled(r"\d").fullmatch("\u0663")
    assert not compiled(r"\w").fullmatch("\u00e9")
