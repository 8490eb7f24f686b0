from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.haproxy.model import Desired, DesiredError, Server, TcpBind, UnixBind
from tests.builders import certificates, endpoint, options, proxy, result, upstream, upstream_state


def wanted() -> Desired:
    return result(
        upstream_state(upstream("web"), [endpoint()]), upstream_state(upstream("api", 9192), [endpoint()])
    ).desired


def test_a_wanted_configuration_holds_together() -> None:
    wanted().check()
    Desired(options().process).check()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (replace(wanted(), backends=()), "unknown backend up:web:9191:to"),
        (replace(wanted(), app=None), "unknown backend app"),
        (replace(wanted(), authorisation=None), "no agent to ask"),
        (replace(wanted(), certificates=()), "unknown certificate /run/hcc/leaf.pem"),
        (replace(wanted(), ca_files=()), "unknown CA file /run/hcc/roots.pem"),
        (replace(wanted(), backends=wanted().backends * 2), "backend up:web:9191:to appears twice"),
        (replace(wanted(), upstreams=wanted().upstreams[:1] * 2), "listener up:web:9191 appears twice"),
        (
            replace(wanted(), upstreams=(replace(wanted().upstreams[0], bind=TcpBind("0.0.0.0", 21000)),)),
            "two listeners want 0.0.0.0:21000 and 127.0.0.1:21000",
        ),
        (
            replace(wanted(), backends=tuple(replace(backend, tls=None) for backend in wanted().backends)),
            "no certificate to reach them",
        ),
        (
            replace(
                wanted(),
                backends=tuple(
                    replace(backend, servers=(Server("x", "10.0.0.1", 1, 257),)) for backend in wanted().backends
                ),
            ),
            "weight 257",
        ),
    ],
)
def test_a_broken_reference_is_named(broken: Desired, complaint: str) -> None:
    with pytest.raises(DesiredError, match=complaint):
        broken.check()


def test_a_listener_left_out_takes_its_backend_along() -> None:
    left = wanted().without([TcpBind("127.0.0.1", 9191)])
    left.check()
    assert [listener.name for listener in left.upstreams] == ["up:api:9192"]
    assert [backend.name for backend in left.backends] == ["up:api:9192:to"]
    assert left.public is not None


def test_the_public_listener_left_out_takes_application_and_agents_along() -> None:
    left = wanted().without([TcpBind("127.0.0.1", 21000)])
    left.check()
    assert (left.public, left.app, left.authorisation) == (None, None, None)
    assert len(left.upstreams) == 2


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (TcpBind("127.0.0.1", 1), TcpBind("127.0.0.1", 1), True),
        (TcpBind("127.0.0.1", 1), TcpBind("127.0.0.1", 2), False),
        (TcpBind("127.0.0.1", 1), TcpBind("0.0.0.0", 1), True),
        (TcpBind("::1", 1), TcpBind("::", 1), True),
        (TcpBind("::1", 1), TcpBind("0.0.0.0", 1), False),
        (UnixBind("/a"), UnixBind("/a", "0600"), True),
        (UnixBind("/a/b"), UnixBind("//a/./c/../b"), True),
        (UnixBind("/a"), UnixBind("/a/b"), False),
        (UnixBind("/a"), TcpBind("::", 1), False),
    ],
)
def test_addresses_clash_when_both_cannot_listen(
    one: TcpBind | UnixBind, other: TcpBind | UnixBind, clash: bool
) -> None:
    assert one.clashes(other) is clash
    assert other.clashes(one) is clash


def test_no_key_shows_in_a_wanted_configuration() -> None:
    found = result(proxy_=proxy(), certificates_=certificates(pem="PRIVATE")).desired
    assert "PRIVATE" not in repr(found)
