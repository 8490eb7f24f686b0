"""The registration of our own metrics address as a Consul service, as the Go program had it.

Source: haproxy-consul-connect haproxy/stats/stats.go: names, tag, check, and renewal every minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hcc.consul.client import ConsulClient
from hcc.settings import ListenAddress

RENEW_S = 60.0
_ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104 (compared with, not bound)


def stats_service_id(service_id: str) -> str:
    """The ID under which the metrics of that service instance's sidecar are registered."""
    return f"{service_id}-connect-stats"


def stats_definition(service_id: str, service: str, address: str, listen: ListenAddress) -> Mapping[str, object]:
    """The registration.

    Args:
        service_id: of the service instance the sidecar stands for.
        service: its name.
        address: where the sidecar is registered to be reached, empty for the node's; told where the metrics are
            served on every address.
        listen: where the metrics are served.
    """
    told = address if listen.host in _ANY_HOST else listen.host
    host = told or "localhost"
    shown = f"[{host}]" if ":" in host else host
    return {
        "ID": stats_service_id(service_id),
        "Name": f"{service}-connect-stats",
        "Address": told,
        "Port": listen.port,
        "Tags": ["connect-stats"],
        "Checks": [
            {
                "HTTP": f"http://{shown}:{listen.port}/metrics",
                "Interval": "10s",
                "DeregisterCriticalServiceAfter": "1m",
            }
        ],
    }


@dataclass(frozen=True, slots=True)
class StatsService:
    """Registers and deregisters one definition; every call raises ConsulError when Consul does not take it."""

    make_client: Callable[[], ConsulClient]
    definition: Mapping[str, object]

    def register(self) -> None:
        """Register, or renew."""
        client = self.make_client()
        try:
            client.register(self.definition)
        finally:
            client.close()

    def deregister(self) -> None:
        """Take it out."""
        client = self.make_client()
        try:
            client.deregister(str(self.definition["ID"]))
        finally:
            client.close()
