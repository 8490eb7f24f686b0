from __future__ import annotations

from typing import Any

import pytest

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import fields
from hcc.consul.routes import leg_changes, match, route_changes
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, NO_CHANGES, Changes, HeaderChanges, Match, QueryMatch, QueryRule, Rewrite

API = PathRule(PathMatch.PREFIX, "/api")


def matched(**http: Any) -> Match:
    return match(fields({"Match": {"HTTP": http}, "Destination": None}, ""))


def changed(**destination: Any) -> Changes:
    return route_changes(fields({"Destination": destination}, ""), API)


@pytest.mark.parametrize("definition", [{}, {"Match": None}, {"Match": {"HTTP": None}}, {"Match": {"HTTP": {}}}])
def test_without_conditions_it_is_every_request(definition: dict[str, Any]) -> None:
    assert match(fields(definition, "")) == EVERY_REQUEST
    assert route_changes(fields(definition, ""), None) == NO_CHANGES


def test_every_condition_is_read() -> None:
    found = matched(
        PathExact="/A",
        CaseInsensitive=True,
        Header=[
            {"Name": "X-A", "Present": True},
            {"Name": "x-b", "Exact": "b", "Invert": True},
            {"Name": "x-c", "Prefix": "c"},
            {"Name": "x-d", "Suffix": "d", "Regex": ""},
            {"Name": "x-e", "Contains": "e"},
            {"Name": ":authority", "Regex": "f.*"},
        ],
        QueryParam=[
            {"Name": "g", "Present": True},
            {"Name": "h", "Exact": "i"},
            {"Name": "j", "Regex": "k+"},
        ],
        Methods=["get", "PUT", "GET"],
    )

    assert found == Match(
        PathRule(PathMatch.EXACT, "/A"),
        ignore_case=True,
        headers=(
            HeaderRule("x-a", HeaderMatch.PRESENT),
            HeaderRule("x-b", HeaderMatch.EXACT, "b", invert=True),
            HeaderRule("x-c", HeaderMatch.PREFIX, "c"),
            HeaderRule("x-d", HeaderMatch.SUFFIX, "d"),
            HeaderRule("x-e", HeaderMatch.CONTAINS, "e"),
            HeaderRule("host", HeaderMatch.REGEX, "f.*"),
        ),
        query=(
            QueryRule("g", QueryMatch.PRESENT),
            QueryRule("h", QueryMatch.EXACT, "i"),
            QueryRule("j", QueryMatch.REGEX, "k+"),
        ),
        methods=("GET", "PUT"),
    )
    assert found.has_patterns


def test_regular_expressions_of_paths_always_look_at_the_case() -> None:
    assert matched(PathRegex="/a+", CaseInsensitive=True) == Match(PathRule(PathMatch.REGEX, "/a+"))
    assert not matched(CaseInsensitive=True).ignore_case


@pytest.mark.parametrize(
    ("http", "fault"),
    [
        ({"Moon": "full"}, "the field Moon is not known"),
        ({"PathExact": "/a", "PathPrefix": "/b"}, "more than one condition on the path"),
        ({"PathRegex": "(?<n>a)"}, "is not understood"),
        ({"PathRegex": r"\p{Greek}"}, "is not understood"),
        ({"PathExact": "/\0"}, "a character that a path cannot have"),
        ({"PathExact": "/\ud800"}, "a character that a path cannot have"),
        ({"Header": [{"Name": "x"}]}, "no condition on a header"),
        ({"Header": [{"Name": ":path", "Exact": "/"}]}, "no condition on a header"),
        ({"Header": [{"Name": "x", "Exact": "\0"}]}, "a character that a header cannot have"),
        ({"Header": [{"Name": "x", "Range": "1"}]}, "the field Range is not known"),
        ({"Header": [{"Name": "x", "Regex": "("}]}, "is not understood"),
        ({"QueryParam": [{"Name": "q"}]}, "no condition on a parameter"),
        ({"QueryParam": [{"Present": True}]}, "no condition on a parameter"),
        ({"QueryParam": [{"Name": "q" * 2_049, "Present": True}]}, "more than 2048 bytes"),
        ({"QueryParam": [{"Name": "q", "Exact": "\xe4" * 1_024}]}, "more than 2048 bytes"),
        ({"QueryParam": [{"Name": "q" * 2_049, "Regex": "a"}]}, "more than 2048 bytes"),
        ({"QueryParam": [{"Name": "q", "Regex": "["}]}, "is not understood"),
        ({"QueryParam": [{"Name": "\ud800", "Regex": "a"}]}, "a character that a query cannot have"),
        ({"QueryParam": [{"Name": "q", "Prefix": "a"}]}, "the field Prefix is not known"),
        ({"Methods": ["GET POST"]}, "the method 'GET POST'"),
    ],
)
def test_what_is_not_understood_of_a_match_is_a_fault(http: dict[str, Any], fault: str) -> None:
    assert fault in matched(**http).fault


@pytest.mark.parametrize("definition", [{"When": "night"}, {"Match": {"GRPC": {"Service": "x"}}}])
def test_conditions_beside_those_on_http_are_a_fault(definition: dict[str, Any]) -> None:
    assert "is not known" in match(fields(definition, "")).fault


def test_everything_that_is_served_of_a_destination_is_read() -> None:
    found = changed(
        Service="web",
        ServiceSubset="v2",
        Namespace="default",
        Partition="default",
        PrefixRewrite="/v2",
        RequestTimeout="1.5s",
        IdleTimeout=0,
        NumRetries=0,
        RequestHeaders={"Add": {"X-A": "1"}, "Set": {"X-C": "3", "X-B": "it's 2"}, "Remove": ["X-D"]},
        ResponseHeaders={"Set": {"x-e": "5"}},
    )

    assert found == Changes(
        rewrite=Rewrite("/v2", "/api"),
        timeout_ms=1_500,
        request=HeaderChanges(("x-d",), (("x-b", "it's 2"), ("x-c", "3")), (("x-a", "1"),)),
        response=HeaderChanges(set=(("x-e", "5"),)),
    )
    assert found.any


@pytest.mark.parametrize(
    ("path", "prefix"),
    [(None, "/"), (PathRule(PathMatch.EXACT, "/a"), ""), (PathRule(PathMatch.REGEX, "/a+"), ""), (API, "/api")],
)
def test_a_rewrite_is_of_the_prefix_or_of_the_whole_path(path: PathRule | None, prefix: str) -> None:
    found = route_changes(fields({"Destination": {"PrefixRewrite": "/b"}}, ""), path)
    assert found.rewrite == Rewrite("/b", prefix)


@pytest.mark.parametrize(
    ("told", "ms"), [("-1s", -1), (-5_000_000_000, -1), ("-1ns", -1), (-1, -1), ("0s", 0), (2_000_000_000, 2_000)]
)
def test_a_request_timeout_below_nothing_is_none(told: object, ms: int) -> None:
    assert changed(RequestTimeout=told).timeout_ms == ms


@pytest.mark.parametrize(
    ("destination", "phrase"),
    [
        ({"NumRetries": 3}, "NumRetries of a route"),
        ({"RetryOn": ["reset"]}, "RetryOn of a route"),
        ({"RetryOnConnectFailure": True}, "RetryOnConnectFailure of a route"),
        ({"RetryOnStatusCodes": [503]}, "RetryOnStatusCodes of a route"),
        ({"IdleTimeout": "5s"}, "IdleTimeout of a route"),
        ({"PrefixRewrite": "/a?b"}, "the PrefixRewrite '/a?b'"),
        ({"PrefixRewrite": "/a b"}, "the PrefixRewrite '/a b'"),
        ({"RequestHeaders": {"Set": {"x-a": "%START_TIME%"}}}, "what RequestHeaders says of the header 'x-a'"),
        ({"RequestHeaders": {"Set": {"Host": "b"}}}, "what RequestHeaders says of the header 'host'"),
        ({"RequestHeaders": {"Add": {"Upgrade": "x"}}}, "what RequestHeaders says of the header 'upgrade'"),
        ({"RequestHeaders": {"Rename": {"a": "b"}}}, "Rename of RequestHeaders"),
        ({"ResponseHeaders": {"Remove": ["a b"]}}, "what ResponseHeaders says of the header 'a b'"),
        ({"ResponseHeaders": {"Set": {"x-a": ""}}}, "what ResponseHeaders says of the header 'x-a'"),
        ({"ResponseHeaders": {"Set": {"x-a": "b\nc"}}}, "what ResponseHeaders says of the header 'x-a'"),
    ],
)
def test_what_is_not_served_of_a_destination_is_named_and_left_out(destination: dict[str, Any], phrase: str) -> None:
    found = changed(**destination)
    assert found.unserved == (phrase,)
    assert not found.any


def test_a_leg_has_changes_of_headers() -> None:
    found = leg_changes(fields({"Weight": 90, "Service": "web", "ResponseHeaders": {"Set": {"X-A": "b"}}}, ""))
    assert found == Changes(response=HeaderChanges(set=(("x-a", "b"),)))
    assert leg_changes(fields({"Weight": 1, "Mirror": True}, "")).unserved == ("Mirror of a split",)
    assert leg_changes(fields({}, "")) == NO_CHANGES


@pytest.mark.parametrize(
    "destination", [{"RequestHeaders": []}, {"RequestHeaders": {"Set": {"a": 1}}}, {"RequestTimeout": "soon"}]
)
def test_another_type_than_consuls_is_an_error(destination: dict[str, Any]) -> None:
    with pytest.raises(ConsulAnswerError):
        changed(**destination)
