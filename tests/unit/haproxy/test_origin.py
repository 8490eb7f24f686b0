from __future__ import annotations

import pytest

from hcc.haproxy.origin import origin
from hcc.mesh.snapshot import Protocol
from tests.builders import endpoint, proxy, rendered, snapshot, upstream, upstream_state
from tests.haproxy_examples import examples

STATE = upstream_state(upstream("web", read_timeout_ms=7000, max_connections=3), [endpoint()], protocol="http")
PROXY = proxy(protocol=Protocol.HTTP, appname_header="X-App", max_inbound_connections=5, upstreams=(STATE.upstream,))
TEXT = rendered(STATE, proxy_=PROXY).config
SNAPSHOT = snapshot(STATE, proxy_=PROXY)


def of(section: str, words: str) -> str:
    """The origin of the first line after the head of a section that begins like this."""
    lines = TEXT.splitlines()
    start = lines.index(section)
    place = next(place for place in range(start, len(lines)) if lines[place].strip().startswith(words))
    return origin(TEXT, place + 1, SNAPSHOT)


@pytest.mark.parametrize(
    ("section", "words", "said"),
    [
        ("frontend public", "bind", "Address and Port, Proxy.Config bind_address and bind_port"),
        ("frontend public", "mode", "proxy-defaults of server"),
        ("frontend public", "tcp-request connection", "Proxy.Config max_inbound_connections"),
        ("backend app", "http-request set-header X-App", "Proxy.Config appname_header"),
        ("backend app", "server app", "Proxy.LocalServiceAddress"),
        ("backend app", "timeout connect", "Proxy.Config local_connect_timeout_ms"),
    ],
)
def test_what_concerns_the_service_comes_from_its_registration(section: str, words: str, said: str) -> None:
    found = of(section, words)
    assert found.startswith("the registration of server-sidecar-proxy, ")
    assert said in found


@pytest.mark.parametrize(
    ("section", "words", "said"),
    [
        ("frontend up:web:9191", "bind", "LocalBindPort"),
        ("frontend up:web:9191", "http-request return", "Config limits.max_connections"),
        ("backend up:web:9191:to", "timeout server", "Config read_timeout"),
        ("backend up:web:9191:to", "timeout connect", "the service-resolver of web"),
        ("backend up:web:9191:to", "server", "an instance of web in the catalogue"),
    ],
)
def test_what_concerns_an_upstream_comes_from_there_and_its_key_is_named(section: str, words: str, said: str) -> None:
    found = of(section, words)
    assert found.startswith("upstream web in the registration of server-sidecar-proxy, ")
    assert said in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("acl", "a route of the service-router of web"),
        ("http-request set-var(txn.hcc_way)", "the service-router or service-splitter of web"),
        ("use_backend", "the service-router or service-splitter of web"),
        ("http-request set-path", "PrefixRewrite in the service-router of web"),
        ("http-request set-timeout", "RequestTimeout in the service-router of web"),
        ("http-request set-header", "RequestHeaders or ResponseHeaders in the service-router or service-splitter"),
        ("http-response del-header", "RequestHeaders or ResponseHeaders in the service-router or service-splitter"),
    ],
)
def test_what_concerns_routes_comes_from_the_router(words: str, said: str) -> None:
    found = examples()["routes"]
    lines = rendered(*found.upstreams, proxy_=found.proxy).config.splitlines()
    line = next(at for at, text in enumerate(lines, start=1) if text.strip().startswith(words))
    assert said in origin("\n".join(lines), line, found)


def test_a_line_without_a_key_of_its_own_still_names_its_owner() -> None:
    assert of("backend up:web:9191:to", "balance") == "upstream web in the registration of server-sidecar-proxy"


def test_what_is_ours_alone_comes_from_nowhere_in_consul() -> None:
    assert of("global", "nbthread") == ""
    assert of("backend certificates", "server k1") == ""
    assert origin(TEXT, 0, SNAPSHOT) == origin(TEXT, 9999, SNAPSHOT) == ""
