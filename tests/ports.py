"""Ports for tests and benches that listen on this machine."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack, suppress
from itertools import cycle, islice

# Below those that the kernel gives to outgoing connections, of which one could take it meanwhile. Another process of
# pytest has others, as it may be about to listen on them.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PORTS = range(20_000 + _WORKER, 32_000, _WORKERS)
# None comes again before all others did: whoever asked may not listen yet.
_turns = cycle(random.sample(_PORTS, len(_PORTS)))


def free_ports(count: int) -> tuple[int, ...]:
    """That many ports that nobody has just now, on any address.

    Raises:
        AssertionError: there are not so many.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in islice(_turns, len(_PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("", port))
                found.append(port)
            if len(found) == count:
                return tuple(found)
    raise AssertionError(f"expected {count} free ports, found {len(found)}")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
