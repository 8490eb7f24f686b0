from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import NoReturn

import pytest

from hcc.consul import names
from hcc.consul.answers import Instance
from hcc.consul.names import Names, look_up
from hcc.mesh.snapshot import Health


@pytest.mark.parametrize(
    ("resolved", "expected"),
    [
        (("::1", "127.0.0.1"), ("127.0.0.1", "::1")),
        (("2001:db8::2", "10.0.0.1", "2001:db8::1"), ("2001:db8::2", "10.0.0.1", "2001:db8::1")),
        (("::1",), ("::1",)),
    ],
)
def test_addresses_keep_their_order_but_those_of_localhost(
    monkeypatch: pytest.MonkeyPatch, resolved: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in resolved]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    assert look_up("localhost") == expected


def answer(*hosts: str) -> tuple[Instance, ...]:
    return tuple(Instance(host, 21000, 1, Health.PASSING, "web", "dc1") for host in hosts)


def test_of_names_that_an_answer_has_no_more_not_all_are_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_GONE", 2)
    is_up = True

    def lookup(name: str) -> tuple[str, ...]:
        if not is_up:
            raise OSError(name)
        return ("10.0.0.1",)

    subject = Names(lookup)
    for host in ("one", "two", "three"):
        subject.ask(answer("stays", host))
    assert subject.resolved(answer("one")), "one that is back while nobody answers has its address"

    for host in ("four", "five"):
        subject.ask(answer("stays", host))
    is_up = False
    subject.ask(answer("stays", "one"))

    assert not subject.resolved(answer("one"))
    assert subject.resolved(answer("stays"))


def test_a_gateway_is_not_looked_up_and_stays_as_it_is_among_instances_that_have_no_address() -> None:
    asked = []

    def lookup(name: str) -> tuple[str, ...]:
        asked.append(name)
        raise OSError(name)

    subject = Names(lookup)
    (gateway,) = gateways = tuple(replace(one, is_gateway=True) for one in answer("gateway.example"))

    subject.ask(gateways)
    assert (subject.resolved(gateways), asked) == (gateways, [])

    for hosts in ("web.example", "gateway.example"):
        both = (gateway, *answer(hosts))
        subject.ask(both)
        assert subject.resolved(both) == gateways
    assert asked == ["web.example", "gateway.example"]


def test_a_name_that_no_thread_could_be_started_for_is_looked_up_when_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    subject = Names(lambda _: ("10.0.0.1",))
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        subject.ask(answer("one"))
        assert subject.resolved(answer("one")) == ()

    subject.ask(answer("one"))

    (found,) = answer("one")
    assert subject.resolved(answer("one")) == (replace(found, address="10.0.0.1"),)
