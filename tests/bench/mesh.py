"""Consul with the services of a bench, and sidecars run by hcc: what is measured."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.memory import Member, family
from tests.bench.programs import POLL_S, START_S, Program, started
from tests.ports import free_ports

HCC = Path(sys.executable).parent / "hcc"
READY_S = 300.0
READY_POLL_S = 0.01


@dataclass(frozen=True)
class Pair:
    """Ports of a service `server-PROTOCOL-LABEL`, called by `client-PROTOCOL-LABEL`, and of both sidecars."""

    protocol: str
    label: str
    app: int
    upstream: int
    server_public: int
    client_public: int
    server_stats: int
    client_stats: int

    @property
    def server(self) -> str:
        return f"server-{self.protocol}{self.label}"

    @property
    def client(self) -> str:
        return f"client-{self.protocol}{self.label}"


def pair(protocol: str, label: str = "") -> Pair:
    """A pair on free ports; the label tells several of one protocol apart."""
    return Pair(protocol, f"-{label}" if label else "", *free_ports(6))


class Agent:
    """A development agent that knows the pairs."""

    def __init__(self, consul: str, pairs: Iterable[Pair], folder: Path) -> None:
        ports = free_ports(4)
        self.port = ports[0]
        names = ("http", "server", "serf_lan", "serf_wan")
        unused = {"grpc": -1, "grpc_tls": -1, "dns": -1}
        config = {"ports": {**dict(zip(names, ports, strict=True)), **unused}, **_registrations(pairs)}
        file = folder / "consul.json"
        file.write_text(json.dumps(config))
        self.program = started("consul", [consul, "agent", "-dev", "-config-file", str(file)], folder, ports[0])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Return when it signs certificates."""
        end = time.monotonic() + START_S
        while not self._has_roots():
            self.program.check()
            assert time.monotonic() < end, f"consul has no certificate authority after {START_S:g} s"
            time.sleep(POLL_S)

    def get(self, path: str) -> Any:
        """The parsed answer."""
        status, body = ask(self.port, path)
        assert status == 200, f"GET {path}: {status} {body!r}"
        return json.loads(body)

    def put(self, path: str, body: object) -> None:
        """Write something; the answer is not looked at."""
        status, answer = ask(self.port, path, "PUT", json.dumps(body))
        assert status == 200, f"PUT {path}: {status} {answer!r}"

    def _has_roots(self) -> bool:
        with suppress(OSError, AssertionError):
            return bool(self.get("/v1/agent/connect/ca/roots")["Roots"])
        return False


@contextmanager
def agent(consul: str, pairs: Iterable[Pair], folder: Path) -> Iterator[Agent]:
    """An agent that is ready; ended afterwards."""
    found = Agent(consul, pairs, folder)
    with found.program:
        found.wait_ready()
        yield found


@dataclass(frozen=True)
class Sidecar:
    """A sidecar that was ready after `seconds`; all its processes run below `directory` or descend from it."""

    program: Program
    directory: Path
    seconds: float
    stats_port: int

    def members(self) -> tuple[Member, ...]:
        """Its processes, as they are now."""
        return family(self.program.pid, str(self.directory))


@contextmanager
def sidecar(service: str, stats_port: int, agent: Agent, haproxy: str, folder: Path, *more: str) -> Iterator[Sidecar]:
    """The sidecar of a service; ended afterwards."""
    directory = folder / "state"
    flags = [
        "--sidecar-for", service, "--http-addr", agent.address, "--haproxy", haproxy,
        "--state-dir", str(directory), "--stats-addr", f"127.0.0.1:{stats_port}", "--drain-timeout", "1s", *more,
    ]  # fmt: skip
    begin = time.monotonic()
    with Program(f"hcc-{service}", [str(HCC), "run", *flags], folder) as program:
        seconds = _wait_ready(program, stats_port, begin)
        own = directory / f"{service}-sidecar-proxy"
        assert own.exists(), f"{own} is too long for a socket below it: shorten the service's name"
        yield Sidecar(program, own, seconds, stats_port)


def wait_open(port: int) -> None:
    """Return when http requests get through; the server's sidecar must be healthy in Consul's opinion first."""
    end = time.monotonic() + READY_S
    answer: object = "nothing"
    while time.monotonic() < end:
        with suppress(OSError, http.client.HTTPException):
            answer = ask(port, "/")
            if answer[0] == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"port {port} lets nothing through within {READY_S:g} s; last answer: {answer!r}")


def ask(port: int, path: str, method: str = "GET", body: str | None = None) -> tuple[int, bytes]:
    """Status and body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _wait_ready(program: Program, stats_port: int, begin: float) -> float:
    answer: object = "nothing"
    while time.monotonic() - begin < READY_S:
        with suppress(OSError, http.client.HTTPException):
            status, body = ask(stats_port, "/ready")
            if status == 200:
                return time.monotonic() - begin
            answer = body
        program.check()
        # Each question takes hcc a millisecond, which would be part of what is measured.
        time.sleep(READY_POLL_S)
    log = program.log.read_text()[-3000:]
    raise AssertionError(f"{program.name} not ready after {READY_S:g} s; /ready says {answer!r}; its log:\n{log}")


def _registrations(pairs: Iterable[Pair]) -> dict[str, Any]:
    services: list[dict[str, Any]] = []
    defaults = []
    for one in pairs:
        upstream = {"destination_name": one.server, "local_bind_port": one.upstream}
        services += [
            _service(one.server, one.app, {"port": one.server_public, "checks": [_check(one.server_public)]}),
            _service(one.client, 1, {"port": one.client_public, "proxy": {"upstreams": [upstream]}}),
        ]
        defaults.append({"kind": "service-defaults", "name": one.server, "protocol": one.protocol})
    return {"services": services, "config_entries": {"bootstrap": defaults}}


def _check(port: int) -> dict[str, Any]:
    """A check as Consul gives every sidecar, but every second: its own every 10 s would hold up the bench."""
    return {"name": "listening", "tcp": f"127.0.0.1:{port}", "interval": "1s"}


def _service(name: str, port: int, sidecar: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "port": port, "connect": {"sidecar_service": sidecar}}
