from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import fields
from hcc.consul.permissions import permission
from hcc.haproxy import words
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission


def read(**body: Any) -> Permission:
    return permission(fields({"Action": "allow", **body}, "Permissions[0]"))


def header(**body: Any) -> HeaderRule:
    found = read(HTTP={"Header": [{"Name": "X-Role", **body}]})
    assert not found.fault
    return found.headers[0]


def test_every_field_of_a_permission_is_read() -> None:
    found = read(
        HTTP={
            "PathPrefix": "/api",
            "Header": [
                {"Name": "X-A", "Exact": "1", "Invert": True, "IgnoreCase": True},
                {"Name": "b", "Present": True},
            ],
            "Methods": ["GET", "put"],
        },
        JWT={"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["a", "b"], "Value": "c"}]}, {"Name": "own"}]},
    )
    assert found == Permission(
        allow=True,
        path=PathRule(PathMatch.PREFIX, "/api"),
        headers=(HeaderRule("x-a", HeaderMatch.EXACT, "1", True, True), HeaderRule("b", HeaderMatch.PRESENT)),
        methods=("GET", "PUT"),
        jwt=(JwtProvider("okta", ((("a", "b"), "c"),)), JwtProvider("own")),
    )


@pytest.mark.parametrize(
    "name", ["x role", "x'role", 'x"role', "x#role", "x$role", "x%role", "X-Role:", "", ":path", "x,y", "\u00fc"]
)
def test_a_header_that_cannot_be_looked_at_makes_a_permission_that_denies(name: str) -> None:
    found = read(HTTP={"Header": [{"Name": name, "Exact": "admin"}]})
    assert "no condition on a header that can be looked at" in found.fault


@pytest.mark.parametrize("condition", [{"Exact": "URI=x"}, {"Present": True, "Invert": True}])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_condition_on_what_a_caller_claims_makes_a_permission_that_denies(
    action: str, condition: dict[str, Any]
) -> None:
    conditions = [{"Name": "x-role", "Exact": "admin"}, {"Name": "X-Forwarded-Client-Cert", **condition}]
    found = read(Action=action, HTTP={"Header": conditions})
    assert "the header x-forwarded-client-cert tells the caller" in found.fault


@given(st.text(max_size=20))
def test_a_header_that_is_looked_at_can_be_named_to_haproxy(name: str) -> None:
    found = read(HTTP={"Header": [{"Name": name, "Exact": "admin"}]})
    assert found.fault or words.header(found.headers[0].name) == found.headers[0].name


@pytest.mark.parametrize("http", [None, {}, {"Header": None, "Methods": [], "PathExact": ""}])
def test_a_permission_without_http_speaks_of_everything(http: dict[str, Any] | None) -> None:
    found = read(HTTP=http)
    assert found.unconditional
    assert not found.fault


@pytest.mark.parametrize(
    ("field", "kind"),
    [("PathExact", PathMatch.EXACT), ("PathPrefix", PathMatch.PREFIX), ("PathRegex", PathMatch.REGEX)],
)
def test_each_condition_on_the_path_is_read(field: str, kind: PathMatch) -> None:
    assert read(HTTP={field: "/a"}).path == PathRule(kind, "/a")


@pytest.mark.parametrize("kind", [kind for kind in HeaderMatch if kind is not HeaderMatch.PRESENT])
def test_each_condition_on_a_header_is_read(kind: HeaderMatch) -> None:
    found = header(**{kind.value.capitalize(): "v"}, IgnoreCase=True)
    assert found == HeaderRule("x-role", kind, "v", ignore_case=kind is not HeaderMatch.REGEX)


def test_a_value_counts_more_than_present_and_exact_most() -> None:
    assert header(Present=True, Suffix="s").kind is HeaderMatch.SUFFIX
    assert header(Exact="e", Regex="r", Prefix="p") == HeaderRule("x-role", HeaderMatch.EXACT, "e")


def test_the_authority_is_the_host() -> None:
    found = read(HTTP={"Header": [{"Name": ":authority", "Exact": "a"}]})
    assert (found.headers[0].name, found.fault) == ("host", "")


@pytest.mark.parametrize("action", ["deny", "", None, "ALLOW", "later"])
def test_an_action_that_is_not_allow_denies(action: str | None) -> None:
    assert not read(Action=action).allow


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"GRPC": {"Service": "x"}}, "GRPC"),
        ({"HTTP": {"Query": [{"Name": "x"}]}}, "Query"),
        ({"HTTP": {"Header": [{"Name": "x", "Exact": "1", "Range": 3}]}}, "Range"),
        ({"HTTP": {"PathExact": "/a", "PathPrefix": "/b"}}, "more than one"),
        ({"HTTP": {"PathRegex": "(?=a)"}}, "not understood"),
        ({"HTTP": {"Header": [{"Name": "x", "Regex": "("}]}}, "not understood"),
        ({"HTTP": {"Header": [{"Name": "x"}]}}, "no condition"),
        ({"HTTP": {"Header": [{"Name": "", "Exact": "1"}]}}, "no condition"),
        ({"HTTP": {"Header": [{"Name": ":path", "Exact": "/"}]}}, ":path"),
    ],
)
def test_what_is_not_understood_is_a_fault_that_says_so(body: dict[str, Any], fault: str) -> None:
    assert fault in read(**body).fault


def test_unknown_fields_that_say_nothing_are_no_fault() -> None:
    assert not read(GRPC=None, HTTP={"Query": [], "Header": [{"Name": "x", "Present": True, "New": ""}]}).fault


@pytest.mark.parametrize("body", [{"HTTP": []}, {"HTTP": {"Methods": [1]}}, {"HTTP": {"PathExact": 1}}, {"JWT": 1}])
def test_a_field_of_another_type_is_an_error(body: dict[str, Any]) -> None:
    with pytest.raises(ConsulAnswerError):
        read(**body)
