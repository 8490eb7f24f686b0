from __future__ import annotations

import socket

import pytest

from hcc.consul.names import look_up


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
