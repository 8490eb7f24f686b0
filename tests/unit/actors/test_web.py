from __future__ import annotations

import http.client
import threading

import pytest

from hcc.actors.web import MAX_CONNECTIONS, Response, serve_tcp
from hcc.settings import ListenAddress
from tests.ports import free_port


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_lack_of_threads_costs_no_place_for_later_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        assert _status(port) == 200
        with monkeypatch.context() as lacking:
            lacking.setattr(threading.Thread, "start", start)
            for _ in range(MAX_CONNECTIONS):
                with pytest.raises((http.client.HTTPException, OSError)):
                    _status(port)
        assert _status(port) == 200
    finally:
        server.close()
