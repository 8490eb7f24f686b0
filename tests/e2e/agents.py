"""Consul agents as real processes in namespaces, and what tests ask of them over HTTP."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests import binaries
from tests.consul_agent import accepts
from tests.e2e.namespaces import Namespace
from tests.e2e.processes import Process
from tests.e2e.waiting import wait_until
from tests.intention_api import delete_intention, put_intention

HTTP_PORT = 8500
DATACENTER = "dc1"


class ConsulError(AssertionError):
    """The agent refused what a test asked."""


@dataclass(frozen=True)
class Answer:
    """Status, parsed JSON (or text) and headers of one answer."""

    status: int
    body: Any
    headers: dict[str, str]


class ConsulAgent:
    """One agent in one namespace; its HTTP API listens on the namespace's loopback only.

    Args:
        line: such as `1.8`; empty for the Consul of the environment.
    """

    def __init__(
        self, namespace: Namespace, directory: Path, config: dict[str, Any], token: str = "", line: str = ""
    ) -> None:
        self.namespace = namespace
        self.token = token
        directory.mkdir()
        file = directory / "agent.json"
        file.write_text(json.dumps(_common(directory, line) | config))
        command = namespace.command(binaries.consul(line), "agent", "-config-file", str(file))
        env = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
        self.process = Process(f"consul {config['node_name']}", command, directory / "log", env)

    def start(self) -> None:
        self.process.start()

    def wait_ready(self, deadline_s: float = 20.0) -> None:
        """Return when the agent has a leader and hands out certificates."""
        title = self.process.title
        wait_until(f"{title} to know a leader", lambda: self.ask("GET", "/v1/status/leader").body, deadline_s)
        wait_until(f"{title} to have a CA", lambda: self.get("/v1/agent/connect/ca/roots")["Roots"], deadline_s)

    def stop(self) -> None:
        self.process.stop(15)

    def connection(self) -> HTTPConnection:
        """A way to its HTTP API, not opened yet."""
        return self.namespace.http(HTTP_PORT, timeout_s=15)

    def ask(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Answer:
        """The answer, whatever its status."""
        connection = self.connection()
        try:
            sent = None if body is None else json.dumps(body)
            used = self.token if token is None else token
            connection.request(method, path, sent, {"X-Consul-Token": used} if used else {})
            response = connection.getresponse()
            return Answer(response.status, _parsed(response.read()), dict(response.headers))
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The parsed answer; ConsulError when it is not a 200."""
        return self._good("GET", path)

    def put(self, path: str, body: object = None) -> Any:
        """The parsed answer; ConsulError when it is not a 200."""
        return self._good("PUT", path, body)

    def delete(self, path: str) -> Any:
        """The parsed answer; ConsulError when it is neither a 200 nor a 404."""
        answer = self.ask("DELETE", path)
        if answer.status not in {200, 404}:
            raise ConsulError(f"DELETE {path}: {answer.status} {answer.body}")
        return answer.body

    def _exchange(self, method: str, path: str, body: object) -> tuple[int, Any]:
        answer = self.ask(method, path, body)
        return answer.status, answer.body

    def _good(self, method: str, path: str, body: object = None) -> Any:
        answer = self.ask(method, path, body)
        if answer.status != 200:
            raise ConsulError(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    # What tests change.

    def register(self, definition: dict[str, Any]) -> None:
        """Register (or replace) a service with its sidecar and checks."""
        self.put("/v1/agent/service/register?replace-existing-checks=true", definition)

    def deregister(self, service_id: str) -> None:
        """Take a service and the sidecar that Consul registered with it away, if they are there."""
        for one in (f"{service_id}-sidecar-proxy", service_id):
            answer = self.ask("PUT", f"/v1/agent/service/deregister/{quote(one)}")
            if answer.status not in {200, 404}:
                raise ConsulError(f"deregister {one}: {answer.status} {answer.body}")

    def set_health(self, check_id: str, status: str) -> None:
        """Set a TTL check: passing, warning or critical."""
        self.put(f"/v1/agent/check/update/{quote(check_id)}", {"Status": status})

    def set_protocol(self, service: str, protocol: str) -> None:
        """Say by service-defaults what a service speaks."""
        entry = {"Kind": "service-defaults", "Name": service, "Protocol": protocol}
        self.put("/v1/config", entry)

    def set_intention(self, source: str, destination: str, action: str) -> None:
        """Allow or deny by one L4 intention."""
        put_intention(self._exchange, source, destination, {"SourceType": "consul", "Action": action})

    def remove_intention(self, source: str, destination: str) -> None:
        delete_intention(self._exchange, source, destination)

    def leaf(self, service: str) -> dict[str, Any]:
        """A certificate of the mesh for any service, with its key."""
        answer: dict[str, Any] = self.get(f"/v1/agent/connect/ca/leaf/{quote(service)}")
        return answer

    def root_pems(self) -> str:
        """All CA certificates."""
        return "\n".join(root["RootCert"] for root in self.get("/v1/agent/connect/ca/roots")["Roots"])


def server_config(name: str, address: str) -> dict[str, Any]:
    """Configuration of a Consul server that is a cluster by itself."""
    return {
        "node_name": name,
        "server": True,
        "bootstrap_expect": 1,
        "bind_addr": address,
        "connect": {"enabled": True},
        # The fastest election timeouts Consul has.
        "performance": {"raft_multiplier": 1},
    }


def client_config(name: str, address: str, server: str) -> dict[str, Any]:
    """Configuration of a Consul client agent that joins the server."""
    return {
        "node_name": name,
        "server": False,
        "bind_addr": address,
        "retry_join": [server],
        "retry_interval": "300ms",
    }


def _common(directory: Path, line: str) -> dict[str, Any]:
    unused = ("dns", "grpc", "grpc_tls") if accepts(line, "ports { grpc_tls = -1 }") else ("dns", "grpc")
    return {
        "ports": dict.fromkeys(unused, -1),
        "datacenter": DATACENTER,
        "data_dir": str(directory / "data"),
        "client_addr": "127.0.0.1",
        "disable_update_check": True,
        "log_level": "INFO",
    }


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")
