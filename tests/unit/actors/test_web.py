from __future__ import annotations

import http.client
import re
import threading
import time
from pathlib import Path

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


def _naps(name: str) -> int:
    """How often the thread of that name went to sleep so far."""
    (thread,) = (one for one in threading.enumerate() if one.name == name)
    text = Path(f"/proc/self/task/{thread.native_id}/status").read_text(encoding="ascii")
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)
    assert found
    return int(found[1])


def test_a_server_that_nobody_asks_sleeps_and_still_ends_at_once() -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))
    try:
        assert _status(port) == 200
        time.sleep(0.1)
        before = _naps("web-tcp")
        time.sleep(0.7)
        assert _naps("web-tcp") - before <= 1
        assert _status(port) == 200
    finally:
        began = time.monotonic()
        server.close()
    assert time.monotonic() - began < 1.0
    assert not any(one.name == "web-tcp" for one in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        _status(port)
