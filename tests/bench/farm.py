"""Many endpoints of services in one HAProxy: it ends mTLS as a sidecar of each service would, and answers by itself.

A port for each service, bound on every address: all of 127.0.0.0/8 answers, so that a service has as many endpoints as
are registered in Consul. Each answer names the address that was called in `x-endpoint`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from hcc.haproxy.names import server_name
from tests.bench.mesh import Agent
from tests.bench.programs import started

_ADDRESSES = 250
# Made-up nodes that the endpoints are spread over.
_NODES = 100
_WRITERS = 4

Times = list[tuple[int, float]]
"""Numbers of endpoints, and when the write about each began, as `time.perf_counter` says."""


def address(number: int) -> str:
    """The address of an endpoint, 0 <= number < 15,000,000; 127.0.0.0/16 is left to others."""
    rest, last = divmod(number, _ADDRESSES)
    second, third = divmod(rest, _ADDRESSES)
    return f"127.{second + 1}.{third + 1}.{last + 1}"


@contextmanager
def farm(services: Sequence[Service], agent: Agent, haproxy: str, folder: Path) -> Iterator[None]:
    """The endpoints of services, with leaves that Consul issued; ended afterwards."""
    roots = "".join(root["RootCert"] for root in agent.get("/v1/agent/connect/ca/roots")["Roots"])
    (folder / "farm-roots.pem").write_text(roots)
    for one in services:
        leaf = agent.get(f"/v1/agent/connect/ca/leaf/{one.name}")
        file = folder / f"farm-{one.name}.pem"
        file.touch(mode=0o600)
        file.write_text(leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    binds = "\n".join(
        f"  bind 0.0.0.0:{one.port} ssl crt {folder}/farm-{one.name}.pem ca-file {folder}/farm-roots.pem "
        "verify required alpn http/1.1"
        for one in services
    )
    config = folder / "farm.cfg"
    config.write_text(f"""global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend farm
{binds}
  http-request return status 200 hdr x-endpoint %[dst]
""")
    with started("farm", [haproxy, "-db", "-f", str(config)], folder, services[0].port):
        yield


class Service:
    """A service of the farm: its endpoints' port, the port of the upstream, and its endpoints by number.

    Each new endpoint has a number, and so an address, that none had before.
    """

    def __init__(self, name: str, port: int, upstream: int) -> None:
        self.name = name
        self.port = port
        self.upstream = upstream
        self._next = 0
        self._there: deque[int] = deque()

    @property
    def backend(self) -> str:
        """Its name in HAProxy, as `hcc.haproxy.names` makes it."""
        return f"up:{self.name}:{self.upstream}:to"

    def server(self, number: int) -> str:
        """The name of an endpoint in HAProxy."""
        return f"{self.backend}/{server_name(address(number), self.port)}"

    def grow(self, agent: Agent, count: int, weight: int = 1) -> Times:
        """So many endpoints more."""
        numbers = range(self._next, self._next + count)
        self._next += count
        self._there.extend(numbers)
        return _written(lambda number: self._register(agent, number, weight), numbers)

    def shrink(self, agent: Agent, count: int) -> Times:
        """The oldest ones go."""
        return _written(lambda number: self._deregister(agent, number), [self._there.popleft() for _ in range(count)])

    def _register(self, agent: Agent, number: int, weight: int) -> None:
        proxy = {
            "ID": self._id(number),
            "Service": f"{self.name}-sidecar-proxy",
            "Kind": "connect-proxy",
            "Address": address(number),
            "Port": self.port,
            "Weights": {"Passing": weight, "Warning": 1},
            "Proxy": {"DestinationServiceName": self.name},
        }
        node = {"Node": _node(number), "Address": "127.0.0.1", "SkipNodeUpdate": True}
        agent.put("/v1/catalog/register", {**node, "Service": proxy})

    def _deregister(self, agent: Agent, number: int) -> None:
        agent.put("/v1/catalog/deregister", {"Node": _node(number), "ServiceID": self._id(number)})

    def _id(self, number: int) -> str:
        return f"{self.name}-{number}"


def _node(number: int) -> str:
    return f"made-up-{number % _NODES}"


def _written(write: Callable[[int], None], numbers: Sequence[int]) -> Times:
    """Write about all of them, a few at a time."""

    def one(number: int) -> tuple[int, float]:
        began = time.perf_counter()
        write(number)
        return number, began

    with ThreadPoolExecutor(_WRITERS) as pool:
        return list(pool.map(one, numbers))
