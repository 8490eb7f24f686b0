"""What a real datagram socket in systemd's place receives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hcc.app.service_manager import ServiceManager


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "file" else f"\0hcc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(5)
        yield listener


def environment(listener: socket.socket, **more: str) -> dict[str, str]:
    name = listener.getsockname()
    text = f"@{name[1:].decode()}" if isinstance(name, bytes) else name
    return {"NOTIFY_SOCKET": text, "PATH": "/bin"} | more


def heard(listener: socket.socket) -> dict[str, str]:
    pairs = (line.partition("=") for line in listener.recv(4096).decode().split("\n"))
    return {name: value for name, _, value in pairs}


def test_the_start_is_over_when_nothing_is_missing_any_more(systemd: socket.socket) -> None:
    manager = ServiceManager(environment(systemd))
    manager.readiness(("leaf: no usable certificate yet", "more"))
    assert heard(systemd) == {"STATUS": "not ready: leaf: no usable certificate yet"}
    manager.alive()
    assert heard(systemd) == {"WATCHDOG": "1", "EXTEND_TIMEOUT_USEC": "30000000"}
    manager.readiness(())
    assert heard(systemd) == {"READY": "1", "STATUS": "ready"}
    manager.readiness(("haproxy: not running",))
    assert heard(systemd) == {"STATUS": "not ready: haproxy: not running"}
    manager.alive()
    assert heard(systemd) == {"WATCHDOG": "1"}
    manager.stopping("draining", 62.5)
    assert heard(systemd) == {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "62500000"}


def test_a_reload_is_framed_and_bears_the_time(systemd: socket.socket) -> None:
    manager = ServiceManager(environment(systemd))
    manager.reloading()
    manager.reloaded()
    manager.readiness(())
    assert heard(systemd)["READY"] == "1", "a reload was told before the start was over"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    told = heard(systemd)
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloaded()
    assert heard(systemd) == {"READY": "1"}


def test_no_line_of_a_status_can_be_taken_for_an_assignment(systemd: socket.socket) -> None:
    ServiceManager(environment(systemd)).readiness(("a\nREADY=1",))
    assert heard(systemd) == {"STATUS": "not ready: a READY=1"}


@pytest.mark.parametrize(
    ("more", "expected_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_ours_when_systemd_says_so(
    systemd: socket.socket, more: dict[str, str], expected_s: float
) -> None:
    environ = environment(systemd, **more)
    assert ServiceManager(environ).watchdog_s == expected_s
    assert environ == {"PATH": "/bin"}, "our children would speak for us"


def test_without_systemd_or_with_a_dead_one_nothing_happens(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "x" * 200}):
        manager = ServiceManager(environ)
        manager.readiness(())
        manager.alive()
        manager.stopping("draining", 1.0)
    assert not ServiceManager({}).listens
