"""A part that cannot be written stays as it was, or is left out, and all the rest is applied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.haproxy.desired import Result
from hcc.haproxy.model import AppBackend, Desired
from hcc.haproxy.render import render
from hcc.haproxy.sayable import sayable
from hcc.haproxy.words import WordError
from hcc.mesh.snapshot import ExposedPath
from tests.builders import V2_6, certificates, endpoint, proxy, result, upstream, upstream_state

EXPOSED = proxy(exposed=(ExposedPath("/a", 22900, 8181), ExposedPath("/b", 22901, 8181)))


def wanted(*addresses: str) -> Result:
    """A public listener, two upstreams, and two ports with exposed paths."""
    web = upstream_state(upstream("web"), [endpoint(address) for address in addresses or ("10.0.0.1",)])
    return result(web, upstream_state(upstream("api", 9292), [endpoint("10.0.0.9")]), proxy_=EXPOSED)


def odd_backend(found: Desired, name: str = "up:web:9191:to") -> Desired:
    """The same with a value that no configuration can have."""
    backends = (
        replace(one, check=replace(one.check, identities=("spiffe://x y",))) if one.check and one.name == name else one
        for one in found.backends
    )
    return replace(found, backends=tuple(backends))


def odd_app(found: Desired) -> Desired:
    assert found.app is not None
    return replace(found, app=odd(found.app))


def odd_exposed(found: Desired) -> Desired:
    first, second = found.exposed
    return replace(
        found, exposed=(replace(first, paths=tuple(replace(one, app=odd(one.app)) for one in first.paths)), second)
    )


def odd(app: AppBackend) -> AppBackend:
    return replace(app, address="no host")


def test_what_can_be_written_is_the_same() -> None:
    found = wanted()
    assert sayable(found, V2_6, None) == found


def test_an_upstream_that_cannot_be_written_is_left_out_alone_where_it_is_new() -> None:
    whole = wanted()
    found = sayable(Result(odd_backend(whole.desired), ()), V2_6, None)
    assert found.desired == whole.desired.without([whole.desired.upstreams[0].bind])
    (problem,) = found.problems
    assert str(problem).startswith("upstream web: cannot be written for HAProxy, is left out: ")
    assert "spiffe://x y" in str(problem)
    render(found.desired, V2_6)


def test_an_upstream_that_was_there_stays_as_it_was_with_whoever_serves() -> None:
    before, now = wanted("10.0.0.1").desired, wanted("10.0.0.2").desired
    found = sayable(Result(odd_backend(now), ()), V2_6, before)
    backend = found.desired.backend("up:web:9191:to")
    assert (backend.servers, backend.known, backend.check) == ((), False, before.backend("up:web:9191:to").check)
    assert found.desired.upstreams == before.upstreams
    assert found.desired.backend("up:api:9292:to") == now.backend("up:api:9292:to")
    assert "upstream web: cannot be written for HAProxy, stays as it was" in str(found.problems[0])


def test_an_upstream_whose_address_another_one_has_now_does_not_stay() -> None:
    before = wanted().desired
    first = result(upstream_state(upstream("other")), upstream_state(upstream("web", 9393))).desired
    found = sayable(Result(odd_backend(first, "up:web:9393:to"), ()), V2_6, before)
    assert [one.name for one in found.desired.upstreams] == ["up:other:9191"]


def test_a_public_listener_does_not_stay_where_its_address_is_a_new_upstream_s_now() -> None:
    before = result(proxy_=proxy(bind_port=9191)).desired
    now = odd_app(result(upstream_state(upstream("web")), proxy_=proxy(bind_port=9292)).desired)
    found = sayable(Result(now, ()), V2_6, before)
    assert found.desired == now.without([now.binds()[0]])
    assert "public listener: cannot be written for HAProxy, is left out" in str(found.problems[0])
    render(found.desired, V2_6)


def test_of_two_that_stay_neither_takes_the_place_of_the_other() -> None:
    before, now = wanted().desired, odd_backend(odd_app(wanted().desired))
    found = sayable(Result(now, ()), V2_6, before)
    assert found.desired.listeners == before.listeners
    assert [str(one).partition(":")[0] for one in found.problems] == ["public listener", "upstream web"]
    assert all("stays as it was" in str(one) for one in found.problems)
    render(found.desired, V2_6)


def test_a_public_listener_that_cannot_be_written_stays_as_it_was_with_the_ticket_keys_of_now() -> None:
    before, now = wanted().desired, wanted("10.0.0.2").desired
    assert now.ticket_keys is not None
    now = replace(now, ticket_keys=replace(now.ticket_keys, keys=now.ticket_keys.keys[::-1]))
    found = sayable(Result(odd_app(now), ()), V2_6, before).desired
    assert (found.public, found.app, found.authorisation) == (before.public, before.app, before.authorisation)
    assert found.ticket_keys == now.ticket_keys
    assert found.backends == now.backends
    without = sayable(Result(odd_app(now), ()), V2_6, None).desired
    assert (without.public, without.app, without.authorisation, without.ticket_keys) == (None, None, None, None)
    assert without.upstreams == now.upstreams


def test_of_exposed_paths_those_of_one_port_are_left_out() -> None:
    whole = wanted().desired
    found = sayable(Result(odd_exposed(whole), ()), V2_6, None)
    assert found.desired == replace(whole, exposed=whole.exposed[1:])
    assert "exposed paths of port 22900" in str(found.problems[0])


def test_what_all_parts_share_cannot_be_left_out() -> None:
    whole = wanted().desired
    with pytest.raises(WordError):
        sayable(Result(replace(whole, options=replace(whole.options, stats_socket="no/path")), ()), V2_6, None)


def test_without_certificates_there_is_nothing_to_be_kept_of_the_public_listener() -> None:
    whole = result(upstream_state(upstream("web")), certificates_=replace(certificates(), leaf=None))
    assert sayable(whole, V2_6, None) == whole
