"""Strangers at every socket: nonsense, halves, idlers, in numbers."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from tests.e2e.faults.scene import WEB_PORT, Scene
from tests.e2e.faults.table import fault

GROUP = "edges"
UNHARMED = "no request lost"
CROWD = 1_000
REQUEST = b"GET /who HTTP/1.1\r\nHost: x\r\n"
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
# What a client of each of `_connectors` says first.
FIRST_BYTES = (HALF_HELLO, REQUEST, REQUEST)
UNIX_SOCKETS = ("control.sock", "spoe-1.sock", "spoe-2.sock", "stats.sock", "master.sock")


def _connectors(scene: Scene) -> tuple[Callable[[], socket.socket], ...]:
    """Public listener, upstream, stats address."""
    caller, web = scene.caller, scene.web
    return (
        lambda: caller.namespace.connect(web.namespace.address, web.public_port),
        lambda: caller.namespace.connect("127.0.0.1", WEB_PORT),
        lambda: web.namespace.connect("127.0.0.1", web.sidecar.stats_port),
    )


@contextlib.contextmanager
def _crowd(connect: Callable[[], socket.socket], size: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        found: list[socket.socket] = []
        for _ in range(size):
            with contextlib.suppress(OSError):
                found.append(stack.enter_context(connect()))
        yield found


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


@fault(GROUP, "garbage to public listener, upstream and stats address", UNHARMED)
def _garbage(scene: Scene) -> None:
    noise = random.Random(7)
    scene.inject()
    for connect in _connectors(scene):
        for _ in range(30):
            with contextlib.suppress(OSError), connect() as sock:
                _send(sock, noise.randbytes(4096))
    scene.mended("health", scene.healthy)


@fault(GROUP, "random bytes into every unix socket", UNHARMED)
def _unix_garbage(scene: Scene) -> None:
    noise = random.Random(8)
    directory = scene.web.sidecar.state_dir
    scene.inject()
    for name in UNIX_SOCKETS:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
                sock.settimeout(1.0)
                sock.connect(str(directory / name))
                _send(sock, noise.randbytes(4096))
    scene.mended("health", scene.healthy)
    assert all((directory / name).is_socket() for name in UNIX_SOCKETS)


@fault(GROUP, "1,000 clients with half a TLS hello at the public listener", UNHARMED)
def _half_hello(scene: Scene) -> None:
    scene.inject()
    with _crowd(_connectors(scene)[0], CROWD) as crowd:
        for sock in crowd:
            _send(sock, HALF_HELLO)
        scene.wait(1.0)
    scene.mended("health", scene.healthy)


@fault(GROUP, "1,000 idle clients each at public listener, upstream and stats address", UNHARMED, slow=True)
def _idle(scene: Scene) -> None:
    scene.inject()
    with ExitStack() as stack:
        for connect in _connectors(scene):
            stack.enter_context(_crowd(connect, CROWD))
        scene.wait(1.0)
    scene.mended("health", scene.healthy)


def _slow(scene: Scene, *places: int) -> None:
    scene.inject()
    with ExitStack() as stack:
        crowds = [
            (stack.enter_context(_crowd(_connectors(scene)[place], CROWD)), FIRST_BYTES[place]) for place in places
        ]
        for number in range(10):
            for crowd, said in crowds:
                for sock in crowd:
                    _send(sock, said[number : number + 1])
            scene.wait(0.1)
    scene.mended("health", scene.healthy)


fault(GROUP, "1,000 slow clients at the upstream, a byte at a time", UNHARMED)(lambda scene: _slow(scene, 1))
fault(GROUP, "1,000 slow clients each at public listener and stats address, a byte at a time", UNHARMED, slow=True)(
    lambda scene: _slow(scene, 0, 2)
)
