"""The same questions to the fake and to a real Consul: the fake may be believed as far as this goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from hcc.consul.abilities import Lack
from hcc.consul.answers import MeshEntry
from hcc.consul.client import ConsulClient
from hcc.consul.decode import application, intentions, leaf, probe, roots
from hcc.consul.environment import consul_settings
from hcc.consul.errors import ConsulNotFoundError, InterruptedPollError
from hcc.consul.fetch import POLL_S, Position, fetch
from hcc.consul.keys import ChainWatch, EndpointsWatch, IntentionsWatch, MeshWatch, ProxyWatch, QueryWatch
from hcc.consul.policy import Probe, probe_uri
from hcc.consul.response import Result
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action
from hcc.mesh.request import Normalization
from hcc.mesh.snapshot import Health
from hcc.mesh.tls import MeshTls, TlsLimits, TlsVersion
from tests.binaries import CONSUL_LINES
from tests.consul_agent import DevAgent
from tests.consul_http import AgentError, ConsulHttp, service_with_sidecar
from tests.fake_consul import FakeConsul
from tests.haproxy_stage import wait_until

pytestmark = pytest.mark.integration
WEB = service_with_sidecar(
    "web", 8181, sidecar_port=21000, upstreams=({"DestinationName": "db", "LocalBindPort": 9191},)
)
DB = service_with_sidecar("db", 8182, sidecar_port=21001, weights=(7, 3))
# So long a question is held that nothing answers, a little less by some clocks.
WAIT_S, HELD_S = 0.4, 0.35
# So long one is held that a change is to answer, and within this time it does.
PATIENT_S, WOKEN_S = 30.0, 20.0
# An agent whose first sync failed syncs again after 15 to 30 s.
CATALOGUE_S = 60.0


@pytest.fixture(scope="module", params=["fake", *CONSUL_LINES])
def line(request: pytest.FixtureRequest) -> str:
    """The fake, or a line of Consul; the fake is like the newest."""
    return str(request.param)


@pytest.fixture(scope="module")
def agent(line: str) -> Iterator[ConsulHttp]:
    with FakeConsul() if line == "fake" else DevAgent(line=line) as running:
        running.register(WEB)
        running.register(DB)
        wait_until(lambda: running.ask("GET", "/v1/health/connect/db"), "it is in the catalogue", CATALOGUE_S)
        yield running


@pytest.fixture
def client(agent: ConsulHttp) -> Iterator[ConsulClient]:
    with closing(ConsulClient(consul_settings(http_addr=agent.http_addr), wait_s=WAIT_S)) as made:
        yield made


@pytest.fixture
def patient(agent: ConsulHttp) -> Iterator[ConsulClient]:
    """For questions that a change is to answer, not the end of their time."""
    with closing(ConsulClient(consul_settings(http_addr=agent.http_addr), wait_s=PATIENT_S)) as made:
        yield made


@pytest.fixture
def helper() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def later(helper: ThreadPoolExecutor, call: object, *args: object) -> Future[None]:
    """Call from another thread, a moment after the test went on to wait."""

    def run() -> None:
        time.sleep(0.2)
        call(*args)  # type: ignore[operator] # any of the agent's methods

    return helper.submit(run)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_service_and_its_sidecar_are_listed_with_their_ids(client: ConsulClient) -> None:
    listed = client.services().data
    assert {"web", "db", "web-sidecar-proxy", "db-sidecar-proxy"} <= set(listed)
    assert application(client.service("web").data).port == 8181


def upstream_name(answer: Result) -> str:
    return str(answer.data["Proxy"]["Upstreams"][0]["DestinationName"])


def test_a_registration_is_held_while_its_hash_is_the_same(client: ConsulClient) -> None:
    # Consul adds a virtual address to a new registration when it next syncs, which may wake one question or two.
    for _ in range(10):
        first = client.service("web-sidecar-proxy")
        assert first.hash
        started = time.monotonic()
        if client.service("web-sidecar-proxy", first.hash).hash == first.hash:
            assert time.monotonic() - started >= HELD_S
            return
    raise AssertionError("the hash never stayed the same")


def test_a_new_registration_wakes_a_question_held_by_its_hash(
    agent: ConsulHttp, patient: ConsulClient, helper: ThreadPoolExecutor
) -> None:
    changed = service_with_sidecar(
        "web", 8181, sidecar_port=21000, upstreams=({"DestinationName": "cache", "LocalBindPort": 9192},)
    )
    try:
        answer = patient.service("web-sidecar-proxy")
        started = time.monotonic()
        done = later(helper, agent.register, changed)
        while upstream_name(answer) != "cache":
            answer = patient.service("web-sidecar-proxy", answer.hash)
        done.result(5)
        assert time.monotonic() - started < WOKEN_S
    finally:
        agent.register(WEB)


def test_an_unknown_service_id_is_not_found(client: ConsulClient) -> None:
    with pytest.raises(ConsulNotFoundError, match="unknown service ID"):
        client.service("nobody")


def test_a_decoded_registration_has_its_upstream_and_the_datacenter(client: ConsulClient, line: str) -> None:
    value = fetch(client, ProxyWatch("web-sidecar-proxy"), Position(), pause).value
    if line == "1.8":
        assert getattr(value, "datacenter", None) == ""
        chain = fetch(client, ChainWatch("web"), Position(), pause).value
        assert getattr(chain, "datacenter", None) == "dc1"
    else:
        assert getattr(value, "datacenter", None) == "dc1"
    proxy = value.proxy  # type: ignore[union-attr] # a Registration, or the test fails here
    assert (proxy.service, proxy.local_port, proxy.bind_port) == ("web", 8181, 21000)
    assert [upstream.key.label() for upstream in proxy.upstreams] == ["db"]
    assert proxy.warnings == ()


def test_roots_and_leaf_belong_to_one_trust_domain(client: ConsulClient) -> None:
    found = roots(client.roots().data)
    certificate = leaf(client.leaf("web").data)
    assert certificate.uri == f"spiffe://{found.trust_domain}/ns/default/dc/dc1/svc/web"
    assert len(found.roots) == 1


@pytest.mark.parametrize("name", ["a,b;c", "a b", "\u00fc", "a+b", "a'(b)*!", "a:b@c=d&e$f~g", "a%b", 'a"<b>[c]'])
def test_a_service_has_the_uri_that_consul_writes(client: ConsulClient, name: str) -> None:
    identity = ServiceIdentity(roots(client.roots().data).trust_domain, name, "dc1")
    assert leaf(client.leaf(name).data).uri == identity.uri()


def test_roots_are_held_while_nothing_changes(client: ConsulClient) -> None:
    first = client.roots()
    assert first.index is not None
    started = time.monotonic()
    assert client.roots(first.index).index == first.index
    assert time.monotonic() - started >= HELD_S


def test_a_match_can_be_waited_for_or_else_the_list_of_all_intentions(client: ConsulClient, line: str) -> None:
    match = client.intentions("web")
    assert intentions(match.data) == ()
    assert (match.index is None) is (line == "1.8")
    listed = client.all_intentions()
    assert listed.index
    started = time.monotonic()
    assert client.all_intentions(listed.index).index == listed.index
    assert time.monotonic() - started >= HELD_S


def authorized_by_intention(client: ConsulClient, uri: str) -> bool:
    """Whether an intention lets the caller in to `web`: the agent answers from a cache that follows a write later."""
    told: list[Probe] = []

    def follows() -> bool:
        told.append(probe(client.authorize("web", uri).data))
        return told[-1].by_intention

    wait_until(follows, "the agent knows the intention")
    return told[-1].authorized


def test_an_intention_and_its_end_wake_the_watch_and_authorize_follows(
    agent: ConsulHttp, patient: ConsulClient, helper: ThreadPoolExecutor
) -> None:
    trust_domain = roots(patient.roots().data).trust_domain
    key = IntentionsWatch("web", trust_domain, "dc1")
    first = fetch(patient, key, Position(), pause)
    assert (first.poll_s, getattr(first.value, "intentions", None)) == (0.0, ())
    started = time.monotonic()
    done = later(helper, agent.deny, "client", "web")
    second = fetch(patient, key, first.position, pause)
    done.result(5)
    found = getattr(second.value, "intentions", ())
    assert [(item.source, item.action, item.precedence) for item in found] == [("client", Action.DENY, 9)]
    assert not authorized_by_intention(patient, f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/client")
    done = later(helper, agent.delete_intention, "client", "web")
    assert getattr(fetch(patient, key, second.position, pause).value, "intentions", None) == ()
    done.result(5)
    assert time.monotonic() - started < WOKEN_S


LACKS: dict[str, set[Lack]] = {
    "fake": set(),
    "1.8": set(Lack) - {Lack.BLOCKING_INTENTIONS},
    "1.14": {Lack.DEFAULT_INTENTION_POLICY},
    "1.20": set(),
}


def test_what_this_consul_lacks_is_known(client: ConsulClient, line: str) -> None:
    key = IntentionsWatch("web", roots(client.roots().data).trust_domain, "dc1")
    first = fetch(client, key, Position(), pause)
    assert getattr(first.value, "lacks", None) == LACKS[line]
    again = fetch(client, key, first.position, pause)
    assert getattr(again.value, "lacks", None) == LACKS[line]


def test_the_default_policy_is_learned_with_the_list(client: ConsulClient) -> None:
    trust_domain = roots(client.roots().data).trust_domain
    default = probe(client.authorize("web", probe_uri(trust_domain, "dc1")).data)
    assert (default.authorized, default.by_intention) == (True, False)
    value = fetch(client, IntentionsWatch("web", trust_domain, "dc1"), Position(), pause).value
    assert getattr(value, "default_allow", None) is True


def test_a_wildcard_answers_the_probe_itself(agent: ConsulHttp, client: ConsulClient, line: str) -> None:
    agent.deny("*", "web")
    try:
        trust_domain = roots(client.roots().data).trust_domain
        assert not authorized_by_intention(client, probe_uri(trust_domain, "dc1"))
        # On a request that no permission of another intention speaks of, the default decides all the same.
        value = fetch(client, IntentionsWatch("web", trust_domain, "dc1"), Position(), pause).value
        assert getattr(value, "default_allow", None) is (None if line == "1.8" else True)
    finally:
        agent.delete_intention("*", "web")


def test_a_chain_has_one_resolver_and_follows_service_defaults(
    agent: ConsulHttp, patient: ConsulClient, helper: ThreadPoolExecutor
) -> None:
    first = patient.chain(ChainWatch("queue"))
    assert first.index is not None
    assert first.data["Chain"]["Protocol"] == "tcp"
    started = time.monotonic()
    done = later(helper, agent.put_config, {"Kind": "service-defaults", "Name": "queue", "Protocol": "http"})
    second = patient.chain(ChainWatch("queue"), first.index)
    done.result(5)
    assert time.monotonic() - started < WOKEN_S
    assert second.data["Chain"]["Protocol"] == "http"


def test_a_chain_takes_protocol_and_datacenter_from_the_question(client: ConsulClient) -> None:
    chain = client.chain(ChainWatch("db", datacenter="dc7", protocol="grpc")).data["Chain"]
    assert (chain["Protocol"], chain["Datacenter"]) == ("grpc", "dc7")


def test_an_overridden_chain_is_held_too(client: ConsulClient) -> None:
    key = ChainWatch("db", protocol="http")
    first = client.chain(key)
    assert first.index is not None
    started = time.monotonic()
    client.chain(key, first.index)
    assert time.monotonic() - started >= HELD_S


def test_an_agent_keeps_the_chains_in_its_cache_up_to_date(agent: ConsulHttp, client: ConsulClient) -> None:
    for key in (ChainWatch("cached"), ChainWatch("cached", mesh_gateway="local")):
        assert client.chain(key, cached=True).data["Chain"]["Protocol"] == "tcp"
    agent.put_config({"Kind": "service-defaults", "Name": "cached", "Protocol": "http"})
    end = time.monotonic() + 20.0
    for key in (ChainWatch("cached"), ChainWatch("cached", mesh_gateway="local")):
        while client.chain(key, cached=True).data["Chain"]["Protocol"] != "http":
            assert time.monotonic() < end, "the cache stays as it was"
            time.sleep(0.02)


def endpoints(client: ConsulClient, name: str, index: int = 0) -> Result:
    return client.endpoints(EndpointsWatch(name, "dc1"), index)


def health(answer: Result) -> str:
    """Of the check that tests set."""
    return next(str(check["Status"]) for check in answer.data[0]["Checks"] if check["CheckID"] == "db-sidecar-check")


def test_a_health_change_wakes_a_held_endpoint_query(
    agent: ConsulHttp, patient: ConsulClient, helper: ThreadPoolExecutor
) -> None:
    answer = endpoints(patient, "db")
    try:
        started = time.monotonic()
        done = later(helper, agent.set_health, "db-sidecar-check", "warning")
        # Other news of the catalogue may wake a question too.
        while health(answer) != "warning":
            before = answer.index
            assert before is not None
            answer = endpoints(patient, "db", before)
            assert answer.index is not None
            assert answer.index > before
        done.result(5)
        assert time.monotonic() - started < WOKEN_S
        found = fetch(patient, EndpointsWatch("db", "dc1"), Position(), pause).value
        assert isinstance(found, tuple)
        assert [(one.address, one.port, one.weight, one.health) for one in found] == [
            ("127.0.0.1", 21001, 3, Health.WARNING)
        ]
    finally:
        agent.set_health("db-sidecar-check", "passing")
        wait_until(lambda: health(endpoints(patient, "db")) == "passing", "it is as before", CATALOGUE_S)


def test_an_unknown_service_has_no_endpoints_and_an_index(client: ConsulClient) -> None:
    answer = endpoints(client, "nobody")
    assert answer.data == []
    assert answer.index


def test_a_prepared_query_finds_sidecars_and_an_unknown_one_is_not_found(
    agent: ConsulHttp, client: ConsulClient
) -> None:
    query_id = agent.create_query("find-db", "db")
    try:
        value = fetch(client, QueryWatch("find-db", "", "dc1", 1000), Position(), pause).value
        assert isinstance(value, tuple)
        assert [(one.port, one.service, one.weight) for one in value] == [(21001, "db", 7)]
    finally:
        agent.delete_query(query_id)
    with pytest.raises(ConsulNotFoundError, match="Query not found"):
        client.execute_query("find-db")


def test_hcc_registers_and_deregisters_a_service(client: ConsulClient) -> None:
    client.register({"Name": "web-stats", "ID": "web-stats-1", "Port": 9999, "Tags": ["a b"]})
    assert client.service("web-stats-1").data["Tags"] == ["a b"]
    client.deregister("web-stats-1")
    with pytest.raises(ConsulNotFoundError):
        client.service("web-stats-1")


def test_a_held_query_is_broken_off_from_another_thread(patient: ConsulClient, helper: ThreadPoolExecutor) -> None:
    index = patient.roots().index
    assert index is not None
    done = later(helper, patient.interrupt)
    started = time.monotonic()
    with pytest.raises(InterruptedPollError):
        patient.roots(index)
    assert time.monotonic() - started < WOKEN_S
    done.result(5)
    with pytest.raises(InterruptedPollError):
        patient.roots()


MERGE = {"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": {"MergeSlashes": True}}}}
STRICT = {"TLS": {"Incoming": {"TLSMinVersion": "TLSv1_3"}}}
NEWEST = TlsLimits(TlsVersion.TLS_1_3)
HIDING = {"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": True}}


def test_the_mesh_entry_comes_blocks_and_goes(
    agent: ConsulHttp, patient: ConsulClient, helper: ThreadPoolExecutor, line: str
) -> None:
    key = MeshWatch()
    first = fetch(patient, key, Position(), pause)
    assert first.value == MeshEntry()
    if line == "1.8":
        # There is no such entry: asked again in a while, as Consul may be upgraded.
        assert first.poll_s == POLL_S
        with pytest.raises(AgentError, match="invalid config entry kind"):
            agent.put_config(MERGE)
        return
    assert first.poll_s == 0.0
    entry, expected = {**MERGE, **STRICT}, MeshEntry(Normalization(merge_slashes=True), MeshTls(incoming=NEWEST))
    if line == "1.14":
        # There is the entry, but it does not know of normalisation.
        with pytest.raises(AgentError, match=r"HTTP\.Incoming"):
            agent.put_config(MERGE)
        entry, expected = {**HIDING, **STRICT}, MeshEntry(tls=MeshTls(incoming=NEWEST), hides_callers=True)
    done = later(helper, agent.put_config, entry)
    second = fetch(patient, key, first.position, pause)
    done.result(5)
    assert second.value == expected
    assert second.position.index > first.position.index
    done = later(helper, agent.ask, "DELETE", "/v1/config/mesh/mesh")
    assert fetch(patient, key, second.position, pause).value == MeshEntry()
    done.result(5)
