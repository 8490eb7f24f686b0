"""Servers in slots, for a HAProxy that cannot create servers at run time (before 2.6).

A backend has more `server` lines than endpoints, named `s1`, `s2`, ... One without an endpoint is spare: in
maintenance, at an address that nobody has. An endpoint that comes takes a spare slot, one that goes leaves its
slot spare, and when none is left a reload doubles their number: growing to N endpoints costs at most log2(N)
reloads. Who is in which slot is what the running HAProxy says, never what was remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hcc.haproxy.model import MAX_WEIGHT, ActualServers, Backend, Mode, Server
from hcc.haproxy.servers import in_turn

# Loopback, so that nothing leaves the machine, and no address that an instance would be registered with.
SPARE_ADDRESS, SPARE_PORT = "127.127.127.127", 1
FEWEST = 4


def slotted(backends: Iterable[Backend], running: ActualServers, seed: str) -> tuple[Backend, ...]:
    """Backends whose servers are slots: all that run, more when they do not suffice, in the order of their numbers.

    A server keeps the slot that it has in what is `running`; others take theirs in the order of `in_turn`.
    """
    found = dict(running)
    return tuple(
        _slotted(backend, found.get(backend.name, ()), seed) if backend.tls else backend for backend in backends
    )


def capacity(endpoints: int) -> int:
    """How many slots so many endpoints start with: a power of two, a quarter of them to come, at least one."""
    slots = FEWEST
    while slots < endpoints + max(1, endpoints // 4):
        slots *= 2
    return slots


def is_spare(server: Server) -> bool:
    """Whether a slot has no endpoint, nor the connections of one that left."""
    return (server.address, server.port) == (SPARE_ADDRESS, SPARE_PORT)


def _slotted(backend: Backend, running: tuple[Server, ...], seed: str) -> Backend:
    slots = _numbered(running)
    taken, homeless = _at_home(backend.servers, slots, seed)
    free = _free(backend.mode, slots, taken)
    count = len(slots)
    if count < FEWEST or len(homeless) > len(free):
        leaving = len(slots) - len(taken) - len(free)
        count = capacity(len(backend.servers) + leaving)
        free += [_name(number) for number in range(len(slots) + 1, count + 1)]
    # Should a reload that brings more slots fail, those that serve are served.
    homeless.sort(key=lambda server: not server.enabled)
    taken.update(zip(free, homeless, strict=False))
    weights = {slot.name: min(max(slot.weight, 1), MAX_WEIGHT) for slot in slots}
    names = (_name(number) for number in range(1, count + 1))
    filled = (
        replace(taken[name], name=name) if name in taken else _spare(name, weights.get(name, 1)) for name in names
    )
    return replace(backend, servers=tuple(filled))


def _at_home(wanted: Iterable[Server], slots: tuple[Server, ...], seed: str) -> tuple[dict[str, Server], list[Server]]:
    """The servers that have a slot, by its name, and those that have none."""
    # Of two at one address, which only a hand-made change gives, the first one that serves keeps it.
    homes: dict[tuple[str, int], str] = {}
    for slot in sorted(slots, key=lambda slot: not slot.enabled):
        homes.setdefault((slot.address, slot.port), slot.name)
    taken: dict[str, Server] = {}
    homeless: list[Server] = []
    for server in in_turn(wanted, seed):
        home = homes.get((server.address, server.port))
        if home is None:
            homeless.append(server)
        else:
            taken[home] = server
    return taken, homeless


def _free(mode: Mode, slots: tuple[Server, ...], taken: dict[str, Server]) -> list[str]:
    """The slots that may be taken, the best first.

    One whose endpoint left may still have connections to it. In http a request would be sent on one of them
    later, once it is idle again, to the wrong instance; in tcp nothing but the caller it belongs to uses it.
    """
    spare = [slot.name for slot in slots if slot.name not in taken and is_spare(slot)]
    if mode is Mode.HTTP:
        return spare
    return spare + [slot.name for slot in slots if slot.name not in taken and not is_spare(slot)]


def _numbered(running: tuple[Server, ...]) -> tuple[Server, ...]:
    """The slots in the order of their numbers; none when these servers are no slots of ours."""
    by_name = {server.name: server for server in running}
    names = [_name(number) for number in range(1, len(running) + 1)]
    return tuple(by_name[name] for name in names) if set(names) == set(by_name) else ()


def _name(number: int) -> str:
    return f"s{number}"


def _spare(name: str, weight: int) -> Server:
    return Server(name, SPARE_ADDRESS, SPARE_PORT, weight, enabled=False)
