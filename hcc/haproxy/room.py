"""How HAProxy's file descriptors and connections are shared out, so that nobody takes those of others. Pure.

A connection of a client takes one, and one to a server. Over HTTP/2 it has many requests, and each has a connection of
its own to the server: these are counted besides, so that HAProxy has descriptors for its sockets and listeners also
when everything is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

FDS_PER_CONNECTION = 2
# What HAProxy needs besides. A listener takes one.
SPARE_FDS = 200
FEWEST_CONNECTIONS = 100
# Of one upstream over http2 or grpc, unless its registration says another number; Envoy's default (`max_requests` of
# its circuit breakers).
UPSTREAM_REQUESTS = 1_024
# Of so many connections one is kept for the application's own calls, and one for exposed paths.
KEPT_OF = 10


@dataclass(frozen=True, slots=True)
class Room:
    """What fits into HAProxy's descriptors.

    Args:
        connections: of clients, at once.
        requests: over HTTP/2, of all together.
        asked: how many of these there should have been; at least as many.
    """

    connections: int
    requests: int
    asked: int

    def share(self, asked: int) -> int:
        """How many of the requests are for one who should have so many; at least one."""
        return max(1, asked * self.requests // self.asked)


def room(descriptors: int, listeners: int, connections: int, requests: int) -> Room:
    """The room for so many connections and requests over HTTP/2, or for less of both where descriptors are few.

    HAProxy refuses to start with less descriptors than it may need. Requests get a third of them at most.

    Args:
        descriptors: how many HAProxy may have; 0 for any number.
        listeners: how many there are, the public one left out.
        connections: how many clients should have at once.
        requests: how many there should be at once over HTTP/2.
    """
    left = descriptors - SPARE_FDS - listeners
    if not descriptors or FDS_PER_CONNECTION * connections + requests <= left:
        return Room(connections, requests, requests)
    fitting = min(requests, max(0, left) // 3)
    most = max(FEWEST_CONNECTIONS, (left - fitting) // FDS_PER_CONNECTION)
    return Room(min(connections, most), fitting, requests)


@dataclass(frozen=True, slots=True)
class Entry:
    """How many connections others may have to this service; 0 for as many as HAProxy takes.

    Args:
        public: on the public listener.
        exposed: on each of the others.
    """

    public: int
    exposed: int


def entry(connections: int, upstreams: int, exposed: int) -> Entry:
    """What is left of HAProxy's connections when upstreams, and the listeners of exposed paths, have their tenth each.

    Who calls from outside, with a certificate or not, must not end the application's own calls.

    Args:
        connections: how many HAProxy takes at once, on all listeners together.
        upstreams: how many listeners of upstreams there are.
        exposed: how many of exposed paths.
    """
    kept = connections // KEPT_OF
    taken = kept * (bool(upstreams) + bool(exposed))
    return Entry(connections - taken if taken else 0, max(1, kept // exposed) if exposed else 0)
