"""A service mesh of two "servers" for tests: services with an application and a sidecar each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.e2e.agents import ConsulAgent
from tests.e2e.apps import App
from tests.e2e.clients import http_get, is_answered
from tests.e2e.namespaces import Namespace
from tests.e2e.sidecar import HCC, Sidecar, hcc_run
from tests.e2e.waiting import wait_until

# An agent whose first try to tell the servers fails tries again only after some 15 s. An alias check that missed the
# health of its service looks again only after a minute.
_CATALOGUE_S = 90.0
# On a busy machine it was seen to look never again, until the service's own check changed.
_STUCK_S = 15.0


@dataclass
class Site:
    """What all tests of one run share: the namespaces, an agent in each, a directory, fresh port numbers."""

    server: ConsulAgent
    client: ConsulAgent
    directory: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def number(self) -> int:
        """A number no other part of this run has, below 1000 for ports' sake."""
        return next(self.numbers)

    def agent(self, host: str) -> ConsulAgent:
        """The agent on host "a" (Consul's server) or "b"."""
        return {"a": self.server, "b": self.client}[host]


@dataclass(frozen=True)
class Service:
    """One instance to be: what it speaks, where it is, what it calls.

    Args:
        kind: tcp, http, http2 or grpc: the application's and, by service-defaults, Consul's protocol.
        host: "a" or "b".
        id: the name unless given.
        weights: Consul's {"Passing", "Warning"} of the sidecar.
        upstreams: upstream objects of the registration (see `upstream`).
        config: the proxy's opaque Config.
        exposed: paths of its Expose.
        app: whether to start an application.
        more: keys of the service registration to add or replace.
    """

    name: str
    kind: str = "tcp"
    host: str = "a"
    id: str = ""
    weights: dict[str, int] | None = None
    upstreams: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    exposed: tuple[dict[str, Any], ...] = ()
    app: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def service_id(self) -> str:
        return self.id or self.name


@dataclass(eq=False)
class Member:
    """A service in the mesh."""

    service: Service
    agent: ConsulAgent
    app_port: int
    public_port: int
    sidecar: Sidecar
    app: App | None

    @property
    def namespace(self) -> Namespace:
        return self.agent.namespace

    @property
    def check(self) -> str:
        """ID of the TTL check whose state the test sets."""
        return f"{self.service.service_id}-ttl"

    def register(self, service: Service | None = None) -> None:
        """Register it, or register it anew with other upstreams, weights or configuration."""
        self.service = service or self.service
        self.agent.register(registration(self.service, self.agent, self.app_port, self.public_port))

    def come_back(self) -> None:
        """Register it again, which was deregistered a moment ago; returns when its agent says that it is healthy.

        Consul's alias check, by which the sidecar is as healthy as the application, was then seen to stay critical on
        a busy machine, until the application's own check changed.
        """
        self.register()

        def healthy() -> bool:
            if not self._unhealthy(self.agent):
                return True
            for status in ("warning", "passing"):
                self.set_health(status)
            return False

        wait_until(f"{self._proxy_id} to be healthy again", healthy, _CATALOGUE_S, pause_s=0.3)

    def set_health(self, status: str) -> None:
        """passing, warning or critical."""
        self.agent.set_health(self.check, status)

    def wait_ready(self) -> None:
        if self.app:
            self.app.wait_ready()
        self.sidecar.wait_ready()

    def wait_healthy(self, seen_by: ConsulAgent) -> None:
        """Return when the catalogue, as this agent sees it, has the sidecar passing.

        An alias check that has not looked by itself is made to, as by `come_back`.
        """
        nudge_at_s = time.monotonic() + _STUCK_S

        def healthy() -> bool:
            nonlocal nudge_at_s
            bad = self._unhealthy(seen_by)
            if [name for name, _ in bad] == ["alias"] and time.monotonic() > nudge_at_s:
                nudge_at_s = time.monotonic() + _STUCK_S
                for status in ("warning", "passing"):
                    self.set_health(status)
            assert not bad, bad
            return True

        wait_until(f"{self._proxy_id} to be healthy in Consul", healthy, _CATALOGUE_S)

    def wait_held(self, requests: int) -> None:
        """Return when so many slow requests are in its application, which speaks http."""

        def held() -> str:
            return http_get(self.namespace, self.app_port, "/held").text

        wait_until(f"{requests} requests in {self.service.service_id}", lambda: held() == str(requests))

    def wait_unhealthy(self, seen_by: ConsulAgent) -> None:
        """Return when the catalogue, as this agent sees it, has a check of the sidecar critical."""

        def unhealthy() -> bool:
            return "critical" in {check["Status"] for check in self._checks(seen_by)}

        wait_until(f"{self._proxy_id} to be critical in Consul", unhealthy, _CATALOGUE_S)

    def _unhealthy(self, seen_by: ConsulAgent) -> list[tuple[str, str]]:
        return [(check["Name"], check["Output"]) for check in self._checks(seen_by) if check["Status"] != "passing"]

    def _checks(self, seen_by: ConsulAgent) -> list[dict[str, str]]:
        entries = seen_by.get(f"/v1/health/connect/{quote(self.service.name)}")
        found = {entry["Service"]["ID"]: entry["Checks"] for entry in entries}
        assert self._proxy_id in found, f"registered are {sorted(found)}"
        checks: list[dict[str, str]] = found[self._proxy_id]
        return checks

    @property
    def _proxy_id(self) -> str:
        return f"{self.service.service_id}-sidecar-proxy"

    def remove(self) -> None:
        """Take sidecar, application and registration away."""
        self.sidecar.clear()
        if self.app:
            self.app.stop()
        self.agent.deregister(self.service.service_id)

    def forget(self) -> None:
        """Drop its logs from the evidence of failures."""
        self.sidecar.process.forget()
        if self.app:
            self.app.process.forget()


class Mesh:
    """Services that are all gone at `close`, on one version of HAProxy.

    Args:
        flags: of every sidecar.
    """

    def __init__(self, site: Site, haproxy: str, flags: tuple[str, ...] = ()) -> None:
        self.site = site
        self.haproxy = haproxy
        self.flags = flags
        self._members: list[Member] = []
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()
        for member in self._members:
            member.forget()

    def add(
        self,
        service: Service,
        *flags: str,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = (HCC,),
        state_base: Path | None = None,
    ) -> Member:
        """The service registered, its application and sidecar started; not waited for."""
        agent, number = self.site.agent(service.host), self.site.number()
        directory = self.site.directory / f"{number}-{service.service_id}"[:30]
        base = state_base or directory / "s"
        words = (*program, *hcc_run(service.service_id, self.haproxy, 19000 + number, base, *self.flags, *flags)[1:])
        sidecar = Sidecar(agent.namespace, directory, words, stats_port=19000 + number, state_base=base, env=env)
        app = App(agent.namespace, directory, service.kind, 8000 + number, service.service_id) if service.app else None
        member = Member(service, agent, 8000 + number, 22000 + number, sidecar, app)
        self._members.append(member)
        self._stack.callback(member.remove)
        if service.kind != "tcp":
            self.set_protocol(service.name, service.kind)
        member.register()
        if app:
            app.start()
        sidecar.start()
        return member

    def join(self, *services: Service, flags: tuple[str, ...] = ()) -> list[Member]:
        """The services added, ready, healthy in everybody's eyes, and answering those of them that call them."""
        members = [self.add(service, *flags) for service in services]
        for member in members:
            member.wait_ready()
        for member in members:
            member.wait_healthy(self.site.client)
        kinds = {service.name: service.kind for service in services if service.app}
        for member in members:
            for call in member.service.upstreams:
                self._wait_answered(member, call, kinds.get(call["DestinationName"], ""))
        return members

    @staticmethod
    def _wait_answered(member: Member, call: dict[str, Any], kind: str) -> None:
        if kind and not call.get("Datacenter") and not call.get("LocalBindAddress"):
            port, what = call["LocalBindPort"], call["DestinationName"]
            wait_until(f"{what} to answer {member.service.name}", partial(is_answered, member.namespace, port, kind))

    def set_protocol(self, service: str, protocol: str) -> None:
        """service-defaults for the time of this mesh."""
        self.site.server.set_protocol(service, protocol)
        self._stack.callback(self.site.server.delete, f"/v1/config/service-defaults/{quote(service)}")

    def intend(self, source: str, destination: str, action: str) -> None:
        """An intention for the time of this mesh."""
        self.site.server.set_intention(source, destination, action)
        self._stack.callback(self.site.server.remove_intention, source, destination)


def upstream(name: str, port: int, **more: object) -> dict[str, Any]:
    """One upstream of a registration."""
    return {"DestinationName": name, "LocalBindPort": port} | more


def registration(service: Service, agent: ConsulAgent, app_port: int, public_port: int) -> dict[str, Any]:
    """What an operator would give to Consul, with checks quick enough for tests."""
    checks = [
        {
            "Name": "listening",
            "TCP": f"{agent.namespace.address or '127.0.0.1'}:{public_port}",
            "Interval": "300ms",
        },
        {"Name": "alias", "AliasService": service.service_id},
    ]
    proxy = {
        "Config": service.config,
        "Upstreams": list(service.upstreams),
        "Expose": {"Paths": list(service.exposed)},
    }
    weights = {"Weights": service.weights} if service.weights else {}
    return {
        "ID": service.service_id,
        "Name": service.name,
        "Port": app_port,
        "Check": {"CheckID": f"{service.service_id}-ttl", "TTL": "1h", "Status": "passing"},
        "Connect": {"SidecarService": {"Port": public_port, "Proxy": proxy, "Checks": checks} | weights},
    } | service.more
