"""The entries of the map of rules, matched by Python's `re`; tests/integration/test_rules_in_haproxy.py asks PCRE."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.request_rules import MAX_ENTRY_BYTES, headers_digest, is_small, rule_entries
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.mesh.request import Look, LookedAt, Normalization, Request, normalised
from hcc.mesh.rules import ALLOW, DENY, Rule, RuleSet

CALLER = ServiceIdentity("td", "web", "dc1")
NAMES = ("host", "x-role")
HEADERS = tuple(LookedAt(name, Look.PATTERN) for name in NAMES)
HOST = ("host", "h")


def text(rules: RuleSet, request: Request, headers: tuple[LookedAt, ...] = HEADERS) -> bytes:
    """What HAProxy makes of a request."""
    normal = normalised(request, Normalization())
    lines = [rules.name, headers_digest(headers), normal.method, normal.path]
    for header in headers:
        value = normal.headers.get(header.name)
        lines += ["-", ""] if value is None else ["+", value]
    return "".join(f"{line}\n" for line in lines).encode()


def said(entries: dict[str, str], looked_up: bytes) -> str:
    """What the first entry that matches says; empty where none does."""
    matching = (says for entry, says in entries.items() if re.search(entry.encode().replace(rb"\z", rb"\Z"), looked_up))
    return next(matching, "")


CONDITIONS = st.builds(
    HeaderRule,
    st.sampled_from(NAMES),
    st.sampled_from(HeaderMatch),
    st.sampled_from(("a", "a.*", "b")),
    st.booleans(),
).map(lambda rule: HeaderRule(rule.name, rule.kind, "", rule.invert) if rule.kind is HeaderMatch.PRESENT else rule)
PERMISSIONS = st.builds(
    Permission,
    st.booleans(),
    st.none() | st.builds(PathRule, st.sampled_from(PathMatch), st.sampled_from(("/a", "/a|/b", "/.*"))),
    st.lists(CONDITIONS, max_size=3).map(tuple),
    st.sampled_from(((), ("GET",), ("GET", "PUT"), ("LINK",))),
)
REQUESTS = st.builds(
    Request,
    st.sampled_from(("GET", "PUT", "LINK", "UNLINK")),
    st.sampled_from(("/", "/a", "/b", "/a/b", "/a|/b")),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(("a", "b", "ab", ""))),
        max_size=2,
        unique_by=lambda each: each[0],
    ).map(lambda headers: tuple(headers if "host" in dict(headers) else (HOST, *headers))),
)


@given(st.lists(PERMISSIONS, min_size=1, max_size=3).map(tuple), st.booleans(), st.lists(REQUESTS, min_size=1))
def test_the_entry_that_matches_first_says_what_the_permissions_say(
    permissions: tuple[Permission, ...], default: bool, requests: list[Request]
) -> None:
    policy = Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, permissions),), default, http=True)
    rules = verdict_of(policy, CALLER).rules
    if rules is None:
        return
    entries = rule_entries([rules], HEADERS)
    for request in requests:
        expected = ALLOW if decide(policy, CALLER, request).allowed else DENY
        assert said(entries, text(rules, request)) == expected, request


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    ("kind", "value", "fitting", "others"),
    [
        (HeaderMatch.EXACT, "b", ("b",), ("ab", "ba", "B", "")),
        (HeaderMatch.PREFIX, "b", ("b", "ba"), ("ab", "B", "")),
        (HeaderMatch.SUFFIX, "b", ("b", "ab"), ("ba", "B", "")),
        (HeaderMatch.CONTAINS, "b", ("b", "ab", "ba", "aba"), ("a", "B", "")),
        (HeaderMatch.REGEX, "^a?b$", ("b", "ab"), ("aab", "abb", "B", "")),
        (HeaderMatch.REGEX, "(?i)a?b", ("b", "AB"), ("aab", "abb", "")),
        # What would reach into the next header, which is the x-role.
        (HeaderMatch.REGEX, "a[^z]*b", ("ab", "acb"), ("a1", "a", "")),
    ],
)
def test_a_header_fits_by_what_its_kind_says(
    kind: HeaderMatch, value: str, fitting: tuple[str, ...], others: tuple[str, ...], invert: bool
) -> None:
    rules = RuleSet((Rule(DENY, None, (HeaderRule("host", kind, value, invert),), ()),), ALLOW)
    entries = rule_entries([rules], HEADERS)
    for host in (*fitting, *others):
        asked = Request("GET", "/", (("host", host), ("x-role", "b")))
        denied = (host in fitting) is not invert
        assert said(entries, text(rules, asked)) == (DENY if denied else ALLOW), host


def test_a_set_that_haproxy_would_not_take_is_left_out() -> None:
    def on(kind: PathMatch, *paths: str) -> RuleSet:
        return RuleSet(tuple(Rule(DENY, PathRule(kind, path), (), ()) for path in paths), ALLOW)

    long = on(PathMatch.EXACT, f"/{'a' * MAX_ENTRY_BYTES}")
    small = on(PathMatch.EXACT, "/a")
    assert set(rule_entries([long, small], ()).items()) == set(rule_entries([small], ()).items())
    # Each is compiled once more for the entry of the default.
    large = [f"/{number}(abcdefgh){{300}}" for number in range(5)]
    assert all(is_small(on(PathMatch.REGEX, path), ()) for path in large)
    assert not is_small(on(PathMatch.REGEX, *large), ())


def test_a_header_that_must_not_be_there_and_must_be_something_is_never_so() -> None:
    absent = HeaderRule("x-role", HeaderMatch.PRESENT, invert=True)
    for other in (HeaderRule("x-role", HeaderMatch.EXACT, "a", invert=True), HeaderRule("x-role", HeaderMatch.PRESENT)):
        rules = RuleSet((Rule(ALLOW, None, (absent, other), ()),), DENY)
        entries = rule_entries([rules], HEADERS)
        for headers in ((), (("x-role", "a"),), (("x-role", "b"),)):
            assert said(entries, text(rules, Request("GET", "/", (HOST, *headers)))) == DENY


def test_a_text_about_other_headers_matches_nothing() -> None:
    # Two workers of HAProxy may look at different ones, as many.
    rules = RuleSet((Rule(DENY, None, (HeaderRule("x-role", HeaderMatch.PRESENT),), ()),), ALLOW)
    entries = rule_entries([rules], HEADERS)
    request = Request("GET", "/", (HOST, ("x-role", "a")))
    assert said(entries, text(rules, request)) == DENY
    assert said(entries, text(rules, request, (HEADERS[0], LookedAt("x-team", Look.VALUE)))) == ""


@pytest.mark.parametrize(
    ("before", "says"), [(DENY, ALLOW), (DENY, "token-1"), ("token-1", ALLOW), ("token-2", "token-1")]
)
def test_what_lets_more_in_than_a_rule_at_which_pcre_may_give_up_says_that_that_does_not_match(
    before: str, says: str
) -> None:
    doubtful = Rule(before, PathRule(PathMatch.REGEX, "/internal(/[^/]*)*"), (), ())
    after = Rule(says, PathRule(PathMatch.PREFIX, "/"), (), ())
    last = RuleSet((doubtful, after), DENY)
    by_default = RuleSet((doubtful,), says)
    for rules, entry_of_it in ((last, 1), (by_default, 1)):
        entries = list(rule_entries([rules], ()).items())
        entry, told = entries[entry_of_it]
        assert told == says
        # As if PCRE had given up at the entry before.
        assert said(dict(entries[1:]), text(rules, Request("GET", "/internal/x", (HOST,)), ())) in ("", DENY)
        assert said({entry: told}, text(rules, Request("GET", "/public", (HOST,)), ())) == says


def test_a_haproxy_that_asks_for_a_headers_presence_alone_gets_no_rule_on_its_value() -> None:
    # It refuses less, and does not put the value into the text.
    by_value = RuleSet((Rule(DENY, None, (HeaderRule("x-role", HeaderMatch.EXACT, "admin"),), ()),), ALLOW)
    by_presence = RuleSet((Rule(DENY, None, (HeaderRule("x-role", HeaderMatch.PRESENT),), ()),), ALLOW)
    less, more = (LookedAt("x-role", Look.PRESENCE),), (LookedAt("x-role", Look.VALUE),)
    assert headers_digest(less) != headers_digest(more)
    assert rule_entries([by_value], less) == {}
    assert [len(rule_entries([by_value, by_presence], headers)) for headers in (less, more)] == [2, 4]
