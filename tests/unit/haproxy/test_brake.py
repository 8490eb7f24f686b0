from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.haproxy.brake import braked, is_guessed
from hcc.haproxy.capabilities import Version, capabilities
from hcc.haproxy.desired import Certificates
from hcc.haproxy.model import ActualServers, Desired, Server
from hcc.haproxy.render import render
from tests.builders import endpoint, result, upstream, upstream_state

WEB, API = upstream("web", 9191), upstream("api", 9292)
NAME = "up:web:9191:to"


def wanted(*, known: bool, certificates: Certificates | None = None) -> Desired:
    """An upstream without an endpoint, and one with."""
    web = upstream_state(WEB, [])
    web = replace(web, targets=tuple(replace(target, known=known) for target in web.targets))
    return result(web, upstream_state(API, [endpoint()]), certificates_=certificates).desired


def running(*servers: Server) -> ActualServers:
    return ((NAME, servers),)


def test_an_empty_list_is_believed_and_one_that_is_not_there_is_not() -> None:
    one = Server("10.0.0.1:80", "10.0.0.1", 80)
    assert braked(wanted(known=True), running(one)).backend(NAME).servers == ()
    assert braked(wanted(known=False), running(one)).backend(NAME).servers == (one,)
    assert not is_guessed(wanted(known=True))


def test_what_is_known_is_left_alone() -> None:
    made = braked(wanted(known=False), (("up:api:9292:to", (Server("10.9.9.9:1", "10.9.9.9", 1),)),))
    assert [server.address for server in made.backend("up:api:9292:to").servers] == ["10.0.0.1"]


def test_where_nothing_runs_there_is_nothing_to_stay() -> None:
    assert braked(wanted(known=False), ()).backend(NAME).servers == ()
    assert (
        braked(wanted(known=False, certificates=Certificates()), running(Server("a", "10.0.0.1", 80)))
        .backends[0]
        .servers
        == ()
    )


@pytest.mark.parametrize("version", [Version(2, 2), Version(2, 8)])
def test_what_stays_can_be_rendered_whatever_somebody_did_to_it(version: Version) -> None:
    able = capabilities(version)
    found = running(
        Server("s1", "10.0.0.1", 80, 0),
        Server("s2", "127.127.127.127", 1, 1, False),
        Server("s3", "10.0.0.3", 80, 256, False),
        Server("s4", "127.127.127.127", 1, 1, False),
    )
    made = render(braked(wanted(known=False), found), able, found)
    addresses = {server.address for server in made.desired.backend(NAME).servers if server.enabled}
    assert addresses == {"10.0.0.1"}
    assert "10.0.0.3:80" in made.config
