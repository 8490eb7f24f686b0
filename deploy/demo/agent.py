"""The Consul agent of the demo: development mode, everything in memory, both services registered by files."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from demo.caller import fetch
from demo.children import Children
from demo.ports import Ports

_READY_S = 30.0
_SIDECARS = 2


@dataclass(frozen=True, slots=True)
class AgentPorts:
    """Where the agent listens; `sidecars` is the first of the two public ports it gives to the sidecars."""

    http: int
    server: int
    serf_lan: int
    serf_wan: int
    sidecars: int


USUAL = AgentPorts(http=8500, server=8300, serf_lan=8301, serf_wan=8302, sidecars=21000)


def take_agent_ports(ports: Ports) -> AgentPorts:
    """Consul's usual ports, or others where these are taken."""
    everywhere = "0.0.0.0"  # noqa: S104 (that is where public listeners are)
    return AgentPorts(
        http=ports.take(USUAL.http, "Consul's HTTP API"),
        server=ports.take(USUAL.server, "Consul's server RPC"),
        serf_lan=ports.take(USUAL.serf_lan, "Consul's LAN gossip"),
        serf_wan=ports.take(USUAL.serf_wan, "Consul's WAN gossip"),
        sidecars=ports.take(USUAL.sidecars, "the sidecars' public listeners", everywhere, _SIDECARS),
    )


def registrations(app_port: int, upstream_port: int) -> dict[str, str]:
    """The two files of the original README, by service name."""
    upstream = {"destination_name": "server", "local_bind_port": upstream_port}
    server = {"name": "server", "port": app_port, "connect": {"sidecar_service": {}}}
    client = {
        "name": "client",
        "port": 8080,
        "connect": {"sidecar_service": {"proxy": {"upstreams": [upstream]}}},
    }
    return {"server": _registration(server), "client": _registration(client)}


def _registration(service: dict[str, object]) -> str:
    return json.dumps({"service": service}, indent=2)


class Agent:
    """The agent, started by `start`."""

    def __init__(self, consul: Path, children: Children, ports: AgentPorts, folder: Path) -> None:
        self._consul = consul
        self._children = children
        self._ports = ports
        self._folder = folder

    @property
    def address(self) -> str:
        """Where its HTTP API is."""
        return f"127.0.0.1:{self._ports.http}"

    def command(self) -> tuple[str, ...]:
        """What starts it, as a user would type it in the demo's folder."""
        files = ("-config-file", "server.json", "-config-file", "client.json")
        # Not used here, and so not in anybody's way: gRPC and DNS.
        ports = ("-grpc-port", "-grpc-tls-port", "-dns-port")
        unused = (word for flag in ports if f"{flag}=" in self._flags for word in (flag, "-1"))
        return ("consul", "agent", "-dev", *files, *unused, *self._unusual_ports())

    def start(self) -> float:
        """Seconds until it leads itself, knows both sidecars and can sign certificates."""
        words = [str(self._folder / word) if word.endswith(".json") else word.strip("'") for word in self.command()]
        self._children.start("consul", [self._consul, *words[1:]])
        return self._children.wait("Consul starts", self._missing, _READY_S, self._children.log("consul"))

    def public_port(self, service: str) -> int:
        """The port that Consul gave to the service's sidecar."""
        return int(json.loads(fetch(self._ports.http, f"/v1/agent/service/{service}-sidecar-proxy").body)["Port"])

    def intention_command(self, action: str) -> tuple[str, ...]:
        """What a user would type to let (`allow`) or not let (`deny`) client call server."""
        where = () if self._ports.http == USUAL.http else (f"-http-addr={self.address}",)
        return ("consul", "intention", "create", *where, "-replace", f"-{action}", "client", "server")

    def hcc_flags(self) -> tuple[str, ...]:
        """The flags by which hcc's commands ask this agent; none where it is on the usual port."""
        return () if self._ports.http == USUAL.http else ("--http-addr", self.address)

    def unhealthy(self) -> str:
        """What is wrong with server's sidecar, in Consul's opinion; empty when nothing is."""
        body = fetch(self._ports.http, "/v1/health/connect/server?passing").body
        return "" if '"server-sidecar-proxy"' in body else "not healthy yet"

    @cached_property
    def _flags(self) -> str:
        # A port for gRPC with TLS, for one, came with Consul 1.14.
        return self._children.output_of((self._consul, "agent", "-help"))

    def _unusual_ports(self) -> tuple[str, ...]:
        ports, usual = self._ports, USUAL
        flags = (
            ("-http-port", ports.http, usual.http),
            ("-server-port", ports.server, usual.server),
            ("-serf-lan-port", ports.serf_lan, usual.serf_lan),
            ("-serf-wan-port", ports.serf_wan, usual.serf_wan),
        )
        words = [word for flag, port, default in flags if port != default for word in (flag, str(port))]
        if ports.sidecars != usual.sidecars:
            last = ports.sidecars + _SIDECARS - 1
            words += ["-hcl", f"'ports {{ sidecar_min_port = {ports.sidecars}, sidecar_max_port = {last} }}'"]
        return tuple(words)

    def _missing(self) -> str:
        if fetch(self._ports.http, "/v1/status/leader").body.strip('"\n').count(":") != 1:
            return "no leader yet"
        services = fetch(self._ports.http, "/v1/agent/services").body
        if services.count('"connect-proxy"') != _SIDECARS:
            return "services not registered yet"
        roots = fetch(self._ports.http, "/v1/agent/connect/ca/roots").body
        return "" if '"Active":true' in "".join(roots.split()) else "no certificate authority yet"
