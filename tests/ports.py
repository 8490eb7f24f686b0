"""Ports for tests and benches that listen on this machine."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

# Below those that the kernel gives to outgoing connections, of which one could take it meanwhile.
_PORTS = range(20_000, 32_000)


def free_ports(count: int) -> tuple[int, ...]:
    """That many ports that nobody has just now, on any address.

    Raises:
        AssertionError: there are not so many.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(_PORTS, len(_PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("", port))
                found.append(port)
            if len(found) == count:
                return tuple(found)
    raise AssertionError(f"expected {count} free ports, found {len(found)}")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
