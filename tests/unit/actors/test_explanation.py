from dataclasses import replace

import pytest

from hcc.actors.explanation import BY_REQUEST, BY_TOKEN, Explanation, Question, explained, parse_question
from hcc.errors import SettingError
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import Request
from hcc.mesh.token_providers import TokenProvider, TokenProviders
from hcc.settings import Enforcement

DOMAIN = "example.consul"
RULES = (
    Permission(allow=False, path=PathRule(PathMatch.PREFIX, "/admin")),
    Permission(allow=True, methods=("GET",), headers=(HeaderRule("x-role", HeaderMatch.EXACT, "boss", invert=True),)),
)
POLICY = Policy(
    "db",
    DOMAIN,
    (
        Intention("web", Action.PERMISSIONS, 9, RULES),
        Intention("evil", Action.DENY, 9),
        Intention("web", Action.ALLOW, 9, source_namespace="team", source_partition="a"),
    ),
    default_allow=True,
    version=7,
    http=True,
)


def asked(source: str, policy: Policy = POLICY, **request: str) -> Explanation:
    fields = {"source": [source]} | {name: [value] for name, value in request.items()}
    return explained(policy, "dc1", parse_question(fields), Enforcement.AUDIT)


def test_a_connection_is_explained_by_the_intention_or_the_default() -> None:
    denied, default = asked("evil"), asked("other")

    assert (denied.verdict, denied.intention, denied.default) == ("deny", "evil -> deny (precedence 9)", "allow")
    assert denied.source == "spiffe://example.consul/ns/default/dc/dc1/svc/evil"
    assert (default.verdict, default.intention) == ("allow", "")
    assert default.reason == "no intention matches; default allow"
    assert (denied.intentions, default.intentions) == ("audit", "audit")
    assert (default.destination, default.version, default.permission) == ("db", 7, None)
    assert asked("other", replace(POLICY, default_allow=None)).default == "unknown"


def test_a_caller_whose_name_is_too_long_is_denied_as_by_workers() -> None:
    told = [asked("n" * 151), asked("n" * 151, path="/")]

    assert {(one.verdict, one.reason) for one in told} == {
        ("deny", "expected a name of the caller of at most 150 bytes")
    }
    assert asked("n" * 140).verdict == "allow"


def test_a_caller_may_be_named_as_the_status_shows_it_unless_a_service_has_that_name() -> None:
    def source(name: str, *known: str) -> str:
        found = explained(POLICY, "dc1", parse_question({"source": [name]}), Enforcement.ENFORCE, known)
        return found.source.removeprefix(f"spiffe://{DOMAIN}/")

    known = ("evil:dc2", "web:dc1", "web:dc1:team:a", "no name")
    assert source("evil.dc2", *known) == "ns/default/dc/dc2/svc/evil"
    assert source("web.dc1.team.a", *known) == "ap/a/ns/team/dc/dc1/svc/web"
    assert source("web", *known) == "ns/default/dc/dc1/svc/web"
    assert source("evil.dc2") == source("evil.dc2", "evil:dc2", "evil.dc2:dc1") == "ns/default/dc/dc1/svc/evil.dc2"


def test_permissions_leave_a_connection_to_its_requests_and_name_themselves() -> None:
    found = asked("web")

    assert found.verdict == BY_REQUEST
    assert found.permissions == (
        "deny path prefix '/admin'",
        "allow header x-role not exact 'boss', method GET",
    )


def test_a_token_that_cannot_be_checked_denies_with_its_provider_by_name_and_one_that_can_decides() -> None:
    guarded = Permission(allow=True, path=PathRule(PathMatch.PREFIX, "/pay"), jwt=(JwtProvider("okta"),))
    policy = replace(POLICY, intentions=(Intention("web", Action.PERMISSIONS, 9, (guarded, *RULES)),))

    found = asked("web", policy, path="/pay/now")

    assert (found.verdict, found.permission) == ("deny", 0)
    assert found.reason.endswith("Permissions[0]: demands a JWT of okta [not known yet], which cannot be checked")
    known = TokenProviders((TokenProvider("okta", "https://okta", "keys in its entry: RSA"),))
    found = asked("web", replace(policy, providers=known), path="/pay/now")
    assert (found.verdict, found.permission) == (BY_TOKEN, 0)
    assert found.reason.endswith("[issuer 'https://okta', keys in its entry: RSA]; the token decides")
    assert found.permissions[0] == "allow path prefix '/pay', demands a JWT of okta"


def test_a_request_is_explained_by_the_permission_that_decided() -> None:
    assert (asked("web", path="/x/../admin").verdict, asked("web", path="/admin").permission) == ("deny", 0)
    assert (asked("web", header="X-Role: boss").permission, asked("web", header="X-Role: clerk").permission) == (
        None,
        1,
    )
    assert asked("web", method="PUT").reason.endswith("no permission matches; default allow")
    denying = replace(POLICY, default_allow=False)
    assert asked("web", denying, header="X-Role: boss\x0b").reason.endswith("no control character in the header x-role")
    assert asked("web", path="/%00").reason == "the request is refused: expected a path without NUL, found %00"


def test_a_source_may_be_what_the_log_says_or_a_whole_uri() -> None:
    assert asked("ap/a/ns/team/svc/web").verdict == "allow"
    assert asked("spiffe://example.consul/ns/default/dc/dc9/svc/evil").verdict == "deny"
    assert asked("spiffe://other.consul/ns/default/dc/dc1/svc/web").reason == "trust domain 'other.consul' is not ours"


def test_words_become_a_request_only_where_they_are_of_one() -> None:
    assert parse_question({"source": ["web"]}) == Question("web")
    assert parse_question({"source": ["web"], "path": ["/x"]}).request == Request("GET", "/x", (("host", ""),))


def test_a_question_that_names_no_host_leaves_it_open_unless_its_target_may_name_one() -> None:
    named = parse_question({"source": ["web"], "path": ["/x"], "header": ["Host:shop"]}).request
    assert named == Request("GET", "/x", (("Host", "shop"),))
    assert asked("web", path="http://evil/").reason == "the request is refused: expected a Host header"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "expected a source"),
        ({"source": ["a", "b"]}, "expected one source, found 2"),
        ({"source": ["a/b"]}, "expected a service's name, ap/PARTITION/ns/NAMESPACE/svc/NAME or a SPIFFE URI"),
        ({"source": ["https://x"]}, "expected a URI that starts with spiffe://"),
        ({"source": ["spiffe://x/gateway/mesh/dc/dc1"]}, "expected spiffe://DOMAIN"),
        ({"source": ["a"], "method": ["GE T"]}, "expected a method such as GET, found 'GE T'"),
        ({"source": ["a"], "header": ["x-role"]}, "expected a header such as x-role:admin, found 'x-role'"),
        ({"source": ["a"], "header": ["x:a\r\nb: c"]}, "expected a header such as"),
        ({"source": ["a"], "header": [":path:/x"]}, "expected a header such as"),
    ],
)
def test_a_bad_question_says_what_was_expected(words: dict[str, list[str]], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        parse_question(words)
    assert said in str(refused.value)
