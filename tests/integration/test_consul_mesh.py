"""The whole path against a real Consul: watches and assembly together keep one Snapshot true."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from hcc.consul.agent_version import AgentVersion
from hcc.consul.assembly import State, snapshot, updated, wanted
from hcc.consul.client import ConsulClient
from hcc.consul.decode import roots
from hcc.consul.environment import consul_settings
from hcc.consul.errors import ConsulPermissionError, NoProxyError
from hcc.consul.keys import EndpointsWatch, IntentionsWatch, ProxyWatch, WatchKey
from hcc.consul.selection import proxy_for_service
from hcc.consul.watch import Watcher, WatchEvent, WatchFailed, WatchValue
from hcc.mesh.identity import ServiceIdentity, parse_service_uri
from hcc.mesh.intentions import demands_of, rule_sets, verdict_of
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Endpoint, Health, Protocol, Snapshot
from tests.binaries import CONSUL_LINES
from tests.consul_agent import DevAgent, accepts, acls
from tests.consul_http import AgentError, service_with_sidecar
from tests.tokens import entry, signer

pytestmark = pytest.mark.integration
T = TypeVar("T")
# An agent whose first sync failed syncs again after 15 to 30 s; until then the catalogue has nothing.
DEADLINE_S = 60.0


class Shell:
    """What the ConsulWatcher actor does, in the test's own thread."""

    def __init__(self, http_addr: str, proxy_id: str, token: str = "", wait_s: float = 60.0) -> None:
        self._wait_s = wait_s
        self._settings = consul_settings(http_addr=http_addr, token=token)
        self.state = State(proxy_id)
        self.failing: dict[WatchKey, Exception] = {}
        self._events: queue.Queue[tuple[WatchKey, WatchEvent]] = queue.Queue()
        self._watchers: dict[WatchKey, Watcher] = {}
        self._reconcile()

    def until(self, what: str, condition: Callable[[Snapshot], T | None]) -> T:
        """Take events until the condition holds; its result."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = snapshot(self.state, 1)
            if found is not None and (result := condition(found)):
                return result
            try:
                key, event = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"waited {DEADLINE_S:g} s for {what}; failing: {self.failing}; {found}") from None
            self._take(key, event)

    def until_failing(self, kind: type[Exception], count: int, keys: type = object) -> None:
        end = time.monotonic() + DEADLINE_S
        while sum(isinstance(error, kind) and isinstance(key, keys) for key, error in self.failing.items()) < count:
            try:
                key, event = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                states = {key.label(): watcher.state() for key, watcher in self._watchers.items()}
                raise AssertionError(f"waited {DEADLINE_S:g} s for {kind.__name__} of {keys}; found {states}") from None
            self._take(key, event)

    def close(self) -> None:
        for watcher in self._watchers.values():
            watcher.stop()
        assert all(watcher.join(DEADLINE_S) for watcher in self._watchers.values())

    def _take(self, key: WatchKey, event: WatchEvent) -> None:
        if isinstance(event, WatchFailed):
            self.failing[key] = event.error
            return
        assert isinstance(event, WatchValue)
        self.failing.pop(key, None)
        self.state = updated(self.state, key, event.value)
        self._reconcile()

    def _reconcile(self) -> None:
        keys = wanted(self.state)
        for key in self._watchers.keys() - keys:
            watcher = self._watchers.pop(key)
            watcher.stop()
            assert watcher.join(DEADLINE_S)
        for key in keys - self._watchers.keys():
            self._watchers[key] = Watcher(
                key, lambda: ConsulClient(self._settings, wait_s=self._wait_s), lambda *news: self._events.put(news)
            )
            self._watchers[key].start()


def web(*upstreams: tuple[str, int]) -> dict[str, object]:
    listed = tuple({"DestinationName": name, "LocalBindPort": port} for name, port in upstreams)
    return service_with_sidecar("web", 8181, sidecar_port=21000, upstreams=listed)


def endpoints(found: Snapshot, position: int = 0) -> tuple[Endpoint, ...]:
    targets = found.upstreams[position].targets if len(found.upstreams) > position else ()
    return targets[0].endpoints if targets else ()


def is_whole(found: Snapshot) -> bool:
    return None not in (found.leaf, found.roots, found.policy)


@pytest.fixture(scope="module", params=CONSUL_LINES)
def line(request: pytest.FixtureRequest) -> str:
    """A line of Consul such as 1.8."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(line: str) -> Iterator[DevAgent]:
    with DevAgent(line=line) as running:
        yield running


@pytest.fixture
def agent(shared: DevAgent) -> Iterator[DevAgent]:
    shared.register(web(("db", 9191)))
    shared.register(service_with_sidecar("db", 8182, sidecar_port=21001))
    try:
        yield shared
    finally:
        for service_id in ("web", "db", "db-2", "cache"):
            if service_id in shared.ask("GET", "/v1/agent/services"):
                shared.deregister(service_id)
        shared.delete_intention("db", "web")


@pytest.fixture
def shell(agent: DevAgent) -> Iterator[Shell]:
    running = Shell(agent.http_addr, "web-sidecar-proxy")
    try:
        yield running
    finally:
        running.close()


def test_a_snapshot_becomes_whole(shell: Shell) -> None:
    found = shell.until("a whole snapshot", lambda now: now if is_whole(now) and endpoints(now) else None)
    assert found.leaf is not None
    assert found.roots is not None
    assert found.policy is not None
    assert found.datacenter == "dc1"
    assert found.leaf.uri == f"spiffe://{found.roots.trust_domain}/ns/default/dc/dc1/svc/web"
    assert found.policy.default_allow is True
    (endpoint,) = endpoints(found)
    expected = f"spiffe://{found.roots.trust_domain}/ns/default/dc/dc1/svc/db"
    assert endpoint == Endpoint("127.0.0.1", 21001, 1, Health.PASSING, expected)
    assert not shell.failing


def test_instances_come_and_go(agent: DevAgent, shell: Shell) -> None:
    shell.until("one endpoint", lambda now: len(endpoints(now)) == 1)
    agent.register(service_with_sidecar("db", 8183, service_id="db-2", sidecar_port=21002, weights=(5, 2)))
    shell.until("two endpoints", lambda now: [one.weight for one in endpoints(now)] == [1, 5])
    agent.set_health("db-2-sidecar-check", "warning")
    shell.until("a warning", lambda now: [one.weight for one in endpoints(now)] == [1, 2])
    agent.deregister("db-2")
    shell.until("one endpoint again", lambda now: len(endpoints(now)) == 1)


def test_an_intention_changes_the_verdict_and_back(agent: DevAgent, shell: Shell) -> None:
    shell.until("a whole snapshot", is_whole)

    def allows(now: Snapshot) -> bool:
        assert now.policy is not None
        caller = parse_service_uri(f"spiffe://{now.policy.trust_domain}/ns/default/dc/dc1/svc/db")
        return verdict_of(now.policy, caller).allowed

    def version() -> int:
        found = snapshot(shell.state, 1)
        assert found is not None
        assert found.policy is not None
        return found.policy.version

    assert shell.until("allow", allows)
    versions = [version()]
    agent.deny("db", "web")
    shell.until("deny", lambda now: not allows(now))
    versions.append(version())
    agent.delete_intention("db", "web")
    shell.until("allow again", allows)
    versions.append(version())
    # By how much says nothing: the mesh entry may come at any time, and is part of the policy.
    assert sorted(set(versions)) == versions


def test_two_upstreams_on_one_port_are_refused_by_consul_or_both_told(agent: DevAgent, shell: Shell, line: str) -> None:
    shell.until("one endpoint", endpoints)
    if line == "1.8":
        agent.register(web(("db", 9191), ("cache", 9191)))
        shell.until("both", lambda now: len(now.upstreams) == 2)
    else:
        with pytest.raises(AgentError, match="400"):
            agent.register(web(("db", 9191), ("cache", 9191)))


def test_a_proxy_registered_anew_has_its_new_upstreams(agent: DevAgent, shell: Shell) -> None:
    shell.until("one endpoint", endpoints)
    agent.register(service_with_sidecar("cache", 8184, sidecar_port=21004))
    agent.register(web(("db", 9191), ("cache", 9192)))
    shell.until("both", lambda now: endpoints(now) and [one.port for one in endpoints(now, 1)] == [21004])
    agent.register(web(("cache", 9192)))
    found = shell.until("the second alone", lambda now: now if len(now.upstreams) == 1 else None)
    assert found.upstreams[0].upstream.key.name == "cache"
    assert [one.port for one in endpoints(found)] == [21004]


def test_the_protocol_comes_from_the_chain_unless_the_registration_overrides_it(agent: DevAgent, shell: Shell) -> None:
    def protocol(now: Snapshot) -> str:
        chain = now.upstreams[0].chain
        return chain.protocol if chain is not None else ""

    shell.until("tcp", lambda now: protocol(now) == "tcp")
    agent.put_config({"Kind": "service-defaults", "Name": "db", "Protocol": "http"})
    try:
        shell.until("http", lambda now: protocol(now) == "http")
        item = {"DestinationName": "db", "LocalBindPort": 9191, "Config": {"protocol": "http2"}}
        agent.register(service_with_sidecar("web", 8181, sidecar_port=21000, upstreams=(item,)))
        shell.until("http2", lambda now: protocol(now) == "http2")
    finally:
        agent.ask("DELETE", "/v1/config/service-defaults/db")


def test_the_protocol_that_service_defaults_say_reaches_the_public_side(agent: DevAgent, shell: Shell) -> None:
    shell.until("tcp", lambda now: now.proxy.protocol is Protocol.TCP)
    agent.put_config({"Kind": "service-defaults", "Name": "web", "Protocol": "http"})
    try:
        shell.until("http", lambda now: now.proxy.protocol is Protocol.HTTP)
    finally:
        agent.ask("DELETE", "/v1/config/service-defaults/web")
    shell.until("tcp again", lambda now: now.proxy.protocol is Protocol.TCP)


def test_a_prepared_query_is_an_upstream(agent: DevAgent, shell: Shell) -> None:
    item = {
        "DestinationType": "prepared_query",
        "DestinationName": "find-db",
        "LocalBindPort": 9193,
        "Config": {"poll_interval": "100ms", "protocol": "http"},
    }
    query_id = agent.create_query("find-db", "db")
    try:
        agent.register(service_with_sidecar("web", 8181, sidecar_port=21000, upstreams=(item,)))
        found = shell.until(
            "the query's instance",
            lambda now: now if now.upstreams[0].chain is None and endpoints(now) else None,
        )
        assert found.upstreams[0].upstream.protocol is Protocol.HTTP
        assert endpoints(found)[0].identity.endswith("/ns/default/dc/dc1/svc/db")
        agent.set_health("db-sidecar-check", "critical")
        shell.until("nothing", lambda now: not endpoints(now))
    finally:
        agent.delete_query(query_id)


def test_a_stand_alone_proxy_finds_the_port_of_its_service(agent: DevAgent) -> None:
    proxy = {"DestinationServiceName": "db", "DestinationServiceID": "db"}
    agent.register({"Name": "alone", "Kind": "connect-proxy", "Port": 21009, "Proxy": proxy})
    shell = Shell(agent.http_addr, "alone")
    try:
        shell.until("the port", lambda now: now.proxy.local_port == 8182)
    finally:
        shell.close()
        agent.deregister("alone")


def test_the_sidecar_is_found_by_the_id_of_its_service(agent: DevAgent) -> None:
    client = ConsulClient(consul_settings(http_addr=agent.http_addr))
    try:
        services = client.services().data
        assert proxy_for_service(services, "web") == "web-sidecar-proxy"
        with pytest.raises(NoProxyError, match="db, web"):
            proxy_for_service(services, "nobody")
    finally:
        client.close()


def test_names_with_dots_underscores_and_mixed_case_are_kept(agent: DevAgent) -> None:
    name = "My_Svc.with-dots"
    agent.register(service_with_sidecar(name, 8190, sidecar_port=21010))
    agent.register(web((name, 9191)))
    shell = Shell(agent.http_addr, f"{name}-sidecar-proxy")
    other = Shell(agent.http_addr, "web-sidecar-proxy")
    try:
        found = shell.until("a whole snapshot", lambda now: now if is_whole(now) else None)
        assert found.leaf is not None
        (endpoint,) = other.until("its endpoint", lambda now: endpoints(now) if now.roots else ())
        assert endpoint.identity == found.leaf.uri
    finally:
        shell.close()
        other.close()
        agent.deregister(name)


def test_an_agent_that_is_restarted_is_followed_into_its_new_cluster(line: str) -> None:
    with DevAgent(line=line) as agent:
        agent.register(web(("db", 9191)))
        agent.register(service_with_sidecar("db", 8182, sidecar_port=21001))
        shell = Shell(agent.http_addr, "web-sidecar-proxy")
        try:
            before = shell.until("all of it", lambda now: now if is_whole(now) and endpoints(now) else None)
            assert before.roots is not None
            old = before.roots.trust_domain
            agent.stop()
            shell.until_failing(Exception, 3)
            kept = snapshot(shell.state, 1)
            assert kept == before
            agent.start()
            agent.register(web(("db", 9191)))
            agent.register(service_with_sidecar("db", 8182, sidecar_port=21005))

            def is_new(now: Snapshot) -> bool:
                assert None not in (now.leaf, now.roots, now.policy)
                assert now.leaf is not None
                assert now.roots is not None
                assert now.policy is not None
                new = now.roots.trust_domain
                return (
                    new != old
                    and now.policy.trust_domain == new
                    and new in now.leaf.uri
                    and [one.port for one in endpoints(now)] == [21005]
                )

            shell.until("the new cluster", is_new)
        finally:
            shell.close()


def test_a_service_identity_suffices_and_a_token_without_rights_is_named_as_the_cause(line: str) -> None:
    with DevAgent(json.dumps(acls(line, "root-token")), "root-token", line) as agent:
        agent.register(web(("db", 9191)))
        agent.register(service_with_sidecar("db", 8182, sidecar_port=21001))
        made = agent.ask("PUT", "/v1/acl/token", {"ServiceIdentities": [{"ServiceName": "web"}]})
        shell = Shell(agent.http_addr, "web-sidecar-proxy", made["SecretID"])
        try:
            found = shell.until("all of it", lambda now: now if is_whole(now) and endpoints(now) else None)
            assert found.policy is not None
            assert found.policy.default_allow is False
            assert not shell.failing
        finally:
            shell.close()
        assert_version_is_known(agent.http_addr, made["SecretID"])
        powerless = agent.ask("PUT", "/v1/acl/token", {})
        shell = Shell(agent.http_addr, "web-sidecar-proxy", powerless["SecretID"])
        try:
            shell.until_failing(ConsulPermissionError, 1)
            assert "service:read" in str(next(iter(shell.failing.values())))
        finally:
            shell.close()


def test_who_may_not_read_the_intentions_may_not_ask_about_single_callers_either(line: str) -> None:
    """Why nothing stands in for the list: `agent/connect/authorize` reads it with the same token."""
    rules = 'service "web" { policy = "write" intentions = "%s" }'
    with DevAgent(json.dumps(acls(line, "root-token")), "root-token", line) as agent:
        agent.register(web())
        asked: dict[str, list[str]] = {}
        for access in ("deny", "read"):
            policy = agent.ask("PUT", "/v1/acl/policy", {"Name": access, "Rules": rules % access})
            made = agent.ask("PUT", "/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
            asked[access] = list(what_intentions_say(agent.http_addr, made["SecretID"]))
        assert asked["read"] == ["the list", "a verdict"]
        assert ["intentions:read" in refused for refused in asked["deny"]] == [True, True]


def what_intentions_say(http_addr: str, token: str) -> Iterator[str]:
    client = ConsulClient(consul_settings(http_addr=http_addr), lambda: Secret(token))
    caller = ServiceIdentity(roots(client.roots().data).trust_domain, "api", "dc1").uri()
    questions: dict[str, Callable[[], object]] = {
        "the list": lambda: client.intentions("web"),
        "a verdict": lambda: client.authorize("web", caller),
    }
    try:
        for name, question in questions.items():
            try:
                question()
            except ConsulPermissionError as exc:
                yield str(exc)
            else:
                yield name
    finally:
        client.close()


def test_a_service_identity_may_read_who_signs_the_tokens_that_intentions_demand() -> None:
    line = CONSUL_LINES[-1]
    provider = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "https://okta"}
    demand = {"Sources": [{"Name": "api", "Action": "allow"}], "JWT": {"Providers": [{"Name": "okta"}]}}
    with DevAgent(json.dumps(acls(line, "root-token")), "root-token", line) as agent:
        agent.register(web())
        agent.put_config(provider | {"JSONWebKeySet": {"Remote": {"URI": "https://okta/keys"}}})
        agent.put_config({"Kind": "service-defaults", "Name": "web", "Protocol": "http"})
        agent.put_config({"Kind": "service-intentions", "Name": "web"} | demand)
        made = agent.ask("PUT", "/v1/acl/token", {"ServiceIdentities": [{"ServiceName": "web"}]})
        shell = Shell(agent.http_addr, "web-sidecar-proxy", made["SecretID"])

        def demands(now: Snapshot) -> bool:
            return now.policy is not None and bool(demands_of(now.policy))

        def why(now: Snapshot) -> str:
            assert now.policy is not None
            verdict = verdict_of(now.policy, ServiceIdentity(now.policy.trust_domain, "api", "dc1"))
            assert not verdict.allowed
            return verdict.reason

        try:
            told = "of okta [issuer 'https://okta', keys on a server; keys can only be used from the entry itself]"
            shell.until("the provider", lambda now: now.policy and told in why(now))
            agent.put_config(provider | {"JSONWebKeySet": {"Local": {"JWKS": "eyJrZXlzIjpbeyJr\ndHkiOiJFQyJ9XX0=\n"}}})
            shell.until("its new keys", lambda now: now.policy and "keys in its entry: EC; none" in why(now))
            agent.put_config(entry(signer("ES256"), signer("HS256"), Audiences=["web"], ClockSkewSeconds=7))
            policy = shell.until("keys to check with", lambda now: now.policy if demands(now) else None)
            assert verdict_of(policy, ServiceIdentity(policy.trust_domain, "api", "dc1")).rules == rule_sets(policy)[0]
            assert policy.providers
            (okta,) = policy.providers.entries
            assert okta.checks
            assert (okta.checks.audiences, okta.checks.skew_s) == (("web",), 7)
            assert [key.algorithms for key in okta.checks.keys] == [("ES256",), ("HS256", "HS384", "HS512")]
            assert not shell.failing
        finally:
            shell.close()


def test_a_token_that_loses_its_rights_takes_nothing_away(line: str) -> None:
    with DevAgent(json.dumps(acls(line, "root-token")), "root-token", line) as agent:
        agent.register(web(("db", 9191)))
        agent.register(service_with_sidecar("db", 8182, sidecar_port=21001))
        made = agent.ask("PUT", "/v1/acl/token", {"ServiceIdentities": [{"ServiceName": "web"}]})
        # Held questions of Consul 1.14 see nothing of it until they end.
        shell = Shell(agent.http_addr, "web-sidecar-proxy", made["SecretID"], wait_s=1.2)
        try:
            before = shell.until("all of it", lambda now: now if is_whole(now) and endpoints(now) else None)
            agent.ask("PUT", f"/v1/acl/token/{made['AccessorID']}", {"AccessorID": made["AccessorID"]})
            for keys in (EndpointsWatch, IntentionsWatch, ProxyWatch):
                shell.until_failing(ConsulPermissionError, 1, keys)
            assert snapshot(shell.state, 1) == before
        finally:
            shell.close()


def assert_version_is_known(http_addr: str, token: str) -> None:
    """Without agent:read, by the servers."""
    settings = consul_settings(http_addr=http_addr)
    version = AgentVersion(lambda: ConsulClient(settings, lambda: Secret(token)))
    version.refresh()
    assert version.text.startswith("1.")


DEFAULT_DENY = 'default_intention_policy = "deny"'


def test_a_default_intention_policy_is_believed_though_the_header_says_otherwise(line: str) -> None:
    if not accepts(line, DEFAULT_DENY):
        # What these have instead: the ACL default policy, which the test above follows.
        assert line in ("1.8", "1.14")
        with pytest.raises(AssertionError, match="invalid config key default_intention_policy"):
            DevAgent(DEFAULT_DENY, line=line).__enter__()
        return
    with DevAgent(DEFAULT_DENY, line=line) as agent:
        agent.register(web())
        shell = Shell(agent.http_addr, "web-sidecar-proxy")
        try:
            found = shell.until("a whole snapshot", lambda now: now if is_whole(now) else None)
            assert found.policy is not None
            assert found.policy.default_allow is False
        finally:
            shell.close()


def test_tokens_never_show_in_an_error(agent: DevAgent) -> None:
    client = ConsulClient(consul_settings(http_addr=agent.http_addr), lambda: Secret("very-secret"))
    try:
        with pytest.raises(Exception, match="unknown service") as caught:
            client.service("nobody")
        assert "very-secret" not in repr(caught.value)
    finally:
        client.close()
