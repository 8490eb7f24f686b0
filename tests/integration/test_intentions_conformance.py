"""Our verdicts against those of a real Consul, over generated intentions; and what it makes of permissions."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import pytest

from hcc.consul.answers import IntentionList, MeshEntry, Registration
from hcc.consul.client import ConsulClient
from hcc.consul.environment import consul_settings
from hcc.consul.fetch import Position, fetch
from hcc.consul.keys import IntentionsWatch, MeshWatch, ProxyWatch
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Policy, decide, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import Normalization, Request, Underscores
from tests.consul_agent import DevAgent

pytestmark = pytest.mark.integration
SEED = 20261125
DESTINATIONS = tuple(f"db-{number}" for number in range(14))
# Names that differ in case alone, that are the start of another, that look like parts of a URI.
SOURCES = ("web", "Web", "WEB", "web-1", "we", "api", "api.v1", "api_v1", "a%20b", "db-0", "default", "svc")
CALLERS = (*SOURCES, "stranger", "STRANGER", "apI", "w", "web-11", "consul", "dc1", "%2A", "web*", "**")


@dataclass
class World:
    """An agent full of intentions, and a connection to ask it quickly."""

    agent: DevAgent
    connection: http.client.HTTPConnection
    client: ConsulClient
    trust_domain: str
    default_allow: bool

    def ask(self, method: str, path: str, body: object = None) -> Any:
        self.connection.request(method, path, None if body is None else json.dumps(body))
        with self.connection.getresponse() as response:
            text = response.read()
        assert response.status == 200, f"{method} {path}: {response.status} {text!r}"
        return json.loads(text)

    def caller(self, name: str) -> ServiceIdentity:
        return ServiceIdentity(self.trust_domain, name, "dc1")

    def authorized(self, caller: str, destination: str) -> bool:
        return self.authorized_uri(self.caller(caller).uri(), destination)

    def authorized_uri(self, uri: str, destination: str) -> bool:
        body = {"Target": destination, "ClientCertURI": uri, "ClientCertSerial": "01"}
        return bool(self.ask("POST", "/v1/agent/connect/authorize", body)["Authorized"])

    def checked(self, caller: str, destination: str) -> bool:
        query = urlencode({"source": caller, "destination": destination})
        return bool(self.ask("GET", f"/v1/connect/intentions/check?{query}")["Allowed"])

    def policy(self, destination: str, *, http: bool = False) -> Policy:
        """As hcc gets it: the list by its own client, the default as it learns it."""
        key = IntentionsWatch(destination, self.trust_domain, "dc1")
        value = fetch(self.client, key, Position(), lambda _: None).value
        assert isinstance(value, IntentionList)
        how = fetch(self.client, MeshWatch(), Position(), lambda _: None).value
        assert isinstance(how, MeshEntry)
        return Policy(
            destination,
            self.trust_domain,
            value.intentions,
            value.default_allow,
            http=http,
            normalization=how.normalization,
        )


def generated(destination: str, random_: random.Random) -> dict[str, Any]:
    names = random_.sample(SOURCES, random_.randint(0, 6)) + ["*"] * random_.randint(0, 1)
    random_.shuffle(names)
    sources = [{"Name": name, "Action": random_.choice(("allow", "deny"))} for name in names]
    return {"Kind": "service-intentions", "Name": destination, "Sources": sources}


@pytest.fixture(scope="module", params=["allow", "deny", "deny and a wildcard"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    policy = request.param.split()[0]
    random_ = random.Random(f"{SEED} {request.param}")
    with DevAgent(f'default_intention_policy = "{policy}"') as agent:
        for destination in DESTINATIONS[2:]:
            entry = generated(destination, random_)
            if entry["Sources"]:
                agent.put_config(entry)
        if "wildcard" in request.param:
            sources = [{"Name": name, "Action": "allow"} for name in ("web", "api", "stranger")]
            agent.put_config(
                {"Kind": "service-intentions", "Name": "*", "Sources": [*sources, {"Name": "*", "Action": "deny"}]}
            )
        trust_domain = agent.ask("GET", "/v1/agent/connect/ca/roots")["TrustDomain"]
        client = ConsulClient(consul_settings(http_addr=agent.http_addr), wait_s=1.0)
        connection = http.client.HTTPConnection(agent.http_addr, timeout=15)
        with closing(client), closing(connection):
            yield World(agent, connection, client, trust_domain, policy == "allow")


def test_we_let_in_whom_consul_lets_in(world: World) -> None:
    asked, allowed = 0, 0
    for destination in DESTINATIONS:
        policy = world.policy(destination)
        for caller in CALLERS:
            verdict = verdict_of(policy, world.caller(caller))
            told = f"{caller} -> {destination}: {verdict.reason}"
            assert verdict.allowed is world.authorized(caller, destination), told
            # Where no intention matches, `check` of 1.20.1 does not know default_intention_policy.
            if verdict.intention is not None or world.default_allow:
                assert verdict.allowed is world.checked(caller, destination), told
            asked, allowed = asked + 1, allowed + verdict.allowed
    assert asked >= 300
    assert allowed >= 10
    assert asked - allowed >= 10


def test_the_default_policy_is_learned_and_decides_where_no_intention_does(world: World) -> None:
    policy = world.policy(DESTINATIONS[0])
    verdict = verdict_of(policy, world.caller("nobody"))
    assert verdict.allowed is world.default_allow
    assert policy.default_allow is world.default_allow


def test_a_denied_caller_stays_so_in_a_namespace_that_consul_has_not(world: World) -> None:
    world.agent.put_config(
        {"Kind": "service-intentions", "Name": "vault", "Sources": [{"Name": "*", "Action": "deny"}]}
    )
    made_up = replace(world.caller("evil"), namespace="made-up")
    # By its API that Consul lets it in, as no intention speaks of it; and its servers sign such a certificate.
    assert world.authorized_uri(made_up.uri(), "vault") is world.default_allow
    assert not verdict_of(world.policy("vault"), made_up).allowed
    # What tells us that it has none.
    sidecar = {"Name": "vault", "Port": 1, "Connect": {"SidecarService": {}}}
    world.agent.register(sidecar)
    registered = fetch(world.client, ProxyWatch("vault-sidecar-proxy"), Position(), lambda _: None).value
    assert isinstance(registered, Registration)
    assert not registered.has_namespaces


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_the_default_decides_on_what_no_permission_speaks_of_though_an_intention_names_everyone(
    world: World, action: str
) -> None:
    world.agent.put_config({"Kind": "service-defaults", "Name": "till", "Protocol": "http"})
    some = [{"Action": says, "HTTP": {"PathPrefix": f"/{says}"}} for says in ("allow", "deny")]
    sources = [{"Name": "web", "Permissions": some}, {"Name": "*", "Action": action}]
    world.agent.put_config({"Kind": "service-intentions", "Name": "till", "Sources": sources})

    policy = world.policy("till", http=True)

    # Source: hashicorp/consul agent/xds/rbac.go (1.20.1), makeRBACRules: the rest is the default's.
    assert policy.default_allow is world.default_allow
    paths = ("/allow", "/deny", "/other")
    says = [decide(policy, world.caller("web"), Request("GET", path, (("Host", "h"),))).allowed for path in paths]
    assert says == [True, False, world.default_allow]
    assert verdict_of(policy, world.caller("other")).allowed is (action == "allow")


ALL_KINDS = [
    {"Name": "X-Exact", "Exact": "a", "IgnoreCase": True},
    {"Name": "x-prefix", "Prefix": "a", "Invert": True},
    {"Name": "x-suffix", "Suffix": "a"},
    {"Name": "x-contains", "Contains": "a"},
    {"Name": "x-regex", "Regex": "a+"},
    {"Name": "x-present", "Present": True},
]


def test_permissions_are_read_as_a_real_consul_writes_them_and_decide_by_request(world: World) -> None:
    world.agent.put_config({"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": {"Local": {"JWKS": "e30="}}})
    world.agent.put_config({"Kind": "service-defaults", "Name": "shop", "Protocol": "http"})
    claims = [{"Path": ["realm", "role"], "Value": "admin"}]
    token = {"Providers": [{"Name": "okta", "VerifyClaims": claims}]}
    permissions = [
        {"Action": "deny", "HTTP": {"PathExact": "/closed"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/all", "Header": ALL_KINDS, "Methods": ["get", "PUT"]}},
        {"Action": "allow", "HTTP": {"PathRegex": "/v[0-9]+/.*"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/token"}, "JWT": token},
    ]
    sources = [{"Name": "web", "Permissions": permissions}, {"Name": "api", "Action": "allow"}]
    world.agent.put_config({"Kind": "service-intentions", "Name": "shop", "Sources": sources})
    incoming = {"RequestNormalization": {"MergeSlashes": True, "HeadersWithUnderscoresAction": "REJECT_REQUEST"}}
    world.agent.put_config({"Kind": "mesh", "HTTP": {"Incoming": incoming}})
    policy = world.policy("shop", http=True)
    governing = next(intention for intention in policy.intentions if intention.source == "web")
    assert governing.action is Action.PERMISSIONS
    assert governing.permissions == (
        Permission(allow=False, path=PathRule(PathMatch.EXACT, "/closed")),
        Permission(
            allow=True,
            path=PathRule(PathMatch.PREFIX, "/all"),
            headers=(
                HeaderRule("x-exact", HeaderMatch.EXACT, "a", ignore_case=True),
                HeaderRule("x-prefix", HeaderMatch.PREFIX, "a", invert=True),
                HeaderRule("x-suffix", HeaderMatch.SUFFIX, "a"),
                HeaderRule("x-contains", HeaderMatch.CONTAINS, "a"),
                HeaderRule("x-regex", HeaderMatch.REGEX, "a+"),
                HeaderRule("x-present", HeaderMatch.PRESENT),
            ),
            methods=("GET", "PUT"),
        ),
        Permission(allow=True, path=PathRule(PathMatch.REGEX, "/v[0-9]+/.*")),
        Permission(
            allow=True,
            path=PathRule(PathMatch.PREFIX, "/token"),
            jwt=(JwtProvider("okta", ((("realm", "role"), "admin"),)),),
        ),
    )
    assert policy.normalization == Normalization(merge_slashes=True, underscores=Underscores.REJECT)
    web = world.caller("web")
    assert verdict_of(policy, web).rules is not None
    paths = ("/v1/x", "/closed", "/token", "/")
    answers = {path: decide(policy, web, Request("GET", path, (("Host", "h"),))).allowed for path in paths}
    assert answers == {"/v1/x": True, "/closed": False, "/token": False, "/": world.default_allow}
    # Of requests Consul's own answers know nothing: they deny, as we do where there are none.
    assert not world.authorized("web", "shop")
    assert not verdict_of(world.policy("shop"), web).allowed
    assert world.authorized("api", "shop")
    assert verdict_of(policy, world.caller("api")).allowed
