"""Snapshots that show each construct of the configuration once: goldens and `haproxy -c` both use them."""

from __future__ import annotations

from hcc.mesh.chain import Chain, Route, Split
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule
from hcc.mesh.routes import Changes, HeaderChanges, Match, QueryMatch, QueryRule, Rewrite
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import ExposedPath, Health, Protocol, Snapshot
from hcc.mesh.token_providers import (
    USUAL_PLACES,
    PlaceKind,
    TokenChecks,
    TokenKey,
    TokenPlace,
    TokenProvider,
    TokenProviders,
)
from tests.builders import (
    TRUST_DOMAIN,
    endpoint,
    proxy,
    resolver,
    routed_chain,
    routed_state,
    snapshot,
    upstream,
    upstream_state,
)


def tokens_policy(intention: Intention) -> Policy:
    """One of an intention that demands a token, of a provider that tells all places there are."""
    places = (
        TokenPlace(PlaceKind.HEADER, "x-token", forward=False),
        TokenPlace(PlaceKind.COOKIE, "jwt"),
        *USUAL_PLACES,
    )
    checks = TokenChecks((), 30, places, (TokenKey("", ("RS256",), Secret("{}")),))
    providers = TokenProviders((TokenProvider("okta", "https://okta", "keys in its entry: RSA", checks=checks),))
    return Policy("web", TRUST_DOMAIN, (intention,), False, 1, http=True, providers=providers)


def _routes() -> Chain:
    """A chain that shows each kind of condition and change."""
    headers = (
        HeaderRule("x-role", HeaderMatch.EXACT, "it's  }"),
        HeaderRule("x-role", HeaderMatch.PREFIX, "-i", invert=True),
        HeaderRule("x-debug", HeaderMatch.PRESENT),
        HeaderRule("host", HeaderMatch.REGEX, r"(?i)shop\.[a-z]+"),
    )
    query = (QueryRule("v", QueryMatch.EXACT, "2"), QueryRule("w", QueryMatch.REGEX, "[a-z]+"))
    changes = Changes(
        rewrite=Rewrite("/new/%41", "/old/"),
        timeout_ms=1_500,
        request=HeaderChanges(("x-gone",), (("x-set", 'a "b"  $c'),), (("x-add", "caf\u00e9"),)),
        response=HeaderChanges(("server",), (("x-by", "v2"),)),
    )
    return routed_chain(
        Route(
            "v2",
            match=Match(PathRule(PathMatch.PREFIX, "/old/"), True, headers, query, ("GET", "PUT")),
            changes=changes,
        ),
        Route("v2", match=Match(PathRule(PathMatch.REGEX, "/[0-9]{1,3}")), changes=Changes(timeout_ms=-1)),
        Route("splitter", match=Match(PathRule(PathMatch.PREFIX, "/"))),
        splits=(Split("v1", 99.99), Split("v2", 0.01, changes=Changes(response=HeaderChanges(set=(("x-leg", "v2"),))))),
        legs=(resolver("v1"), resolver("v2", connect_timeout_ms=1_000)),
    )


def examples() -> dict[str, Snapshot]:
    """By name; addresses are made up, paths are the caller's."""
    dead = endpoint("10.0.0.3", health=Health.CRITICAL)
    return {
        "tcp": snapshot(
            upstream_state(upstream("web"), [endpoint("10.0.0.2", weight=3), dead, endpoint("2001:db8::1")]),
            upstream_state(upstream("db", 5432, query=True, max_connections=3), [endpoint("10.0.0.4")]),
            proxy_=proxy(upstreams=(), max_inbound_connections=100),
        ),
        "http": snapshot(
            upstream_state(upstream("web", max_connections=7), [endpoint()], protocol="http"),
            proxy_=proxy(protocol=Protocol.HTTP, forward_for=True, appname_header="X-App"),
        ),
        "http2": snapshot(
            upstream_state(upstream("web"), [endpoint()], protocol="http2"),
            upstream_state(upstream("rpc", 9192, address="::1"), [endpoint()], protocol="grpc"),
            proxy_=proxy(protocol=Protocol.GRPC, bind_address="::", local_address="localhost", local_port=80),
        ),
        "routes": snapshot(
            routed_state(
                _routes(), {"v1.web": [endpoint()], "v2.web": [endpoint("10.0.0.2")]}, upstream(max_connections=9)
            ),
            proxy_=proxy(local_port=0),
        ),
        "tokens": snapshot(
            proxy_=proxy(protocol=Protocol.HTTP),
            policy_=tokens_policy(Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))),
        ),
        "names": snapshot(
            upstream_state(upstream("My_Svc.with-dots", datacenter="dc1"), [endpoint()]),
            upstream_state(upstream("My_Svc.with-dots", 9192, datacenter="dc2"), [endpoint()]),
            upstream_state(upstream("a:b c\n#\\\"'$x", 9193), [endpoint()]),
            upstream_state(upstream("sock", socket="/tmp/hcc-up.sock", socket_mode="0600"), [endpoint()]),
            proxy_=proxy(local_socket="/run/app.sock", local_port=0),
        ),
        "exposed": snapshot(
            proxy_=proxy(
                local_address="localhost",
                appname_header="X-App",
                exposed=(
                    ExposedPath("/health", 22900, 8181),
                    ExposedPath("/it's }", 22900, 8182, h2=True),
                    ExposedPath("/metrics", 22901, 8181),
                ),
            ),
        ),
        "upstreams only": snapshot(upstream_state(upstream("web")), proxy_=proxy(local_port=0)),
        "nothing yet": snapshot(proxy_=proxy(local_port=0)),
    }
