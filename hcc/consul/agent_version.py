"""Which Consul this is: for people, so asked rarely and missed by nobody when the token may not know."""

from __future__ import annotations

from collections.abc import Callable

from hcc.consul.client import ConsulClient
from hcc.consul.errors import ConsulError, ConsulPermissionError


class AgentVersion:
    """The version of the agent, or of a server of its datacenter where the token may not ask the agent.

    A service's own token has no `agent:read`, but may read services, and the servers are one. `text` is empty until
    `refresh` found out; any thread may read it.
    """

    def __init__(self, make_client: Callable[[], ConsulClient]) -> None:
        self.text = ""
        self._make_client = make_client

    def refresh(self) -> None:
        """Ask; the old answer stays when there is no new one."""
        client = self._make_client()
        try:
            self.text = _asked(client) or self.text
        except ConsulError:
            # Whoever watches Consul says so; this is only for people.
            return
        finally:
            client.close()


def _asked(client: ConsulClient) -> str:
    try:
        return _text(client.agent_self().data, "Config", "Version")
    except ConsulPermissionError:
        servers = client.servers().data
    first = servers[0] if isinstance(servers, list) and servers else None
    return _text(first, "Service", "Meta", "version")


def _text(value: object, *path: str) -> str:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
