"""What tests ask of a Consul agent over plain HTTP, real or fake, without hcc's own client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.intention_api import delete_intention, put_intention


class AgentError(AssertionError):
    """The agent refused what a test asked."""


class ConsulHttp:
    """Calls to one agent.

    Args:
        http_addr: host:port.
        token: sent with each call unless empty.
    """

    def __init__(self, http_addr: str, token: str = "") -> None:
        self.http_addr = http_addr
        self.token = token

    def ask(self, method: str, path: str, body: object = None, *, timeout_s: float = 15.0) -> Any:
        """The parsed answer; AgentError unless its status is 200."""
        status, said = self.exchange(method, path, body, timeout_s=timeout_s)
        if status != 200:
            raise AgentError(f"{method} {path}: {status} {said}")
        return said

    def exchange(self, method: str, path: str, body: object = None, *, timeout_s: float = 15.0) -> tuple[int, Any]:
        """The status, and the parsed answer of a 200, else the text."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(f"http://{self.http_addr}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()
        return 200, json.loads(text) if text.strip() else None

    def register(self, definition: dict[str, Any]) -> None:
        """Register a service of this agent, with `Connect.SidecarService` if it should have a sidecar."""
        self.ask("PUT", "/v1/agent/service/register", definition)

    def deregister(self, service_id: str) -> None:
        self.ask("PUT", f"/v1/agent/service/deregister/{service_id}")

    def set_health(self, check_id: str, status: str) -> None:
        """Set a TTL check to `passing`, `warning` or `critical`."""
        self.ask("PUT", f"/v1/agent/check/update/{check_id}", {"Status": status})

    def put_intention(self, source: str, destination: str, body: dict[str, Any]) -> None:
        """Write one intention, such as `{"Action": "deny"}`."""
        put_intention(self.exchange, source, destination, body)

    def allow(self, source: str, destination: str) -> None:
        self.put_intention(source, destination, {"Action": "allow"})

    def deny(self, source: str, destination: str) -> None:
        self.put_intention(source, destination, {"Action": "deny"})

    def delete_intention(self, source: str, destination: str) -> None:
        delete_intention(self.exchange, source, destination)

    def put_config(self, entry: dict[str, Any]) -> None:
        """Write one config entry."""
        self.ask("PUT", "/v1/config", entry)

    def create_query(self, name: str, service: str) -> str:
        """Create a prepared query for a service; its ID."""
        body = {"Name": name, "Service": {"Service": service}}
        return str(self.ask("POST", "/v1/query", body)["ID"])

    def delete_query(self, query_id: str) -> None:
        self.ask("DELETE", f"/v1/query/{query_id}")


def service_with_sidecar(
    name: str,
    port: int,
    *,
    sidecar_port: int,
    service_id: str = "",
    upstreams: tuple[dict[str, Any], ...] = (),
    config: dict[str, Any] | None = None,
    weights: tuple[int, int] = (1, 1),
    address: str = "127.0.0.1",
    status: str = "passing",
) -> dict[str, Any]:
    """A registration whose sidecar has one check, `<id>-sidecar-check`, that only a test changes."""
    identifier = service_id or name
    proxy: dict[str, Any] = {"Upstreams": list(upstreams), "Config": config or {}}
    return {
        "Name": name,
        "ID": identifier,
        "Port": port,
        "Connect": {
            "SidecarService": {
                "Port": sidecar_port,
                "Address": address,
                "Weights": {"Passing": weights[0], "Warning": weights[1]},
                "Proxy": proxy,
                "Checks": [
                    {
                        "CheckID": f"{identifier}-sidecar-check",
                        "Name": "set by the test",
                        "TTL": "1h",
                        "Status": status,
                    }
                ],
            }
        },
    }
