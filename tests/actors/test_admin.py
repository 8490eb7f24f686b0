import argparse
import errno
import http.client
import itertools
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, cast

import pytest

from hcc.actors import admin
from hcc.actors.admin import Admin
from hcc.actors.consul_watcher import Ledger
from hcc.actors.draining import Draining
from hcc.actors.messages import ADMIN, CONSUL_WATCHER, Drain, FactsReported, Publish
from hcc.actors.picture import Identity
from hcc.actors.readiness import (
    CallerFacts,
    ConsulFacts,
    CredentialFacts,
    Facts,
    HAProxyFacts,
    PolicyFacts,
    ReconcilerFacts,
    Validity,
    missing_parts,
)
from hcc.actors.sources import Sources
from hcc.actors.status import from_json
from hcc.actors.web import ListenError, Response, serve_unix
from hcc.cli import restart
from hcc.cli.control import ControlError, ask, find_control_socket
from hcc.consul.agent_version import AgentVersion
from hcc.consul.assembly import State
from hcc.consul.client import ConsulClient
from hcc.consul.errors import ConsulUnavailableError
from hcc.consul.stats_service import StatsService
from hcc.errors import SettingError
from hcc.haproxy.stats import Stats
from hcc.haproxy.stats_reader import StatsUnavailableError
from hcc.metrics import Metrics
from hcc.settings import Enforcement, ListenAddress, VerifyUpstream
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually
from tests.builders import endpoint, snapshot, upstream_state
from tests.ports import free_port

IDENTITY = Identity("web-proxy", "web", 4711, 1e9, "1.0", "3.11", "2.6.12", "OpenSSL 3", "direct")
READY = (
    ConsulFacts(proxy_known=True),
    CredentialFacts(leaf=True, roots=True),
    PolicyFacts(version=1, deciding=2, current=2),
    HAProxyFacts(running=True, pid=1),
    ReconcilerFacts(applied=True, public_bound=True),
)


def no_consul() -> ConsulClient:
    raise ConsulUnavailableError("no Consul in this test")


class StatsAgent:
    """The Consul agent, as far as it hears of the stats address; notes whether somebody answered there just then."""

    def __init__(self) -> None:
        self.port = free_port()
        self.told: list[str] = []
        self.takes_registrations = threading.Event()
        self.takes_registrations.set()

    def register(self, _: object) -> None:
        self.takes_registrations.wait(5)
        self.told.append("registered")

    def deregister(self, service_id: str) -> None:
        self.told.append(f"{service_id} is {'served' if serves(self.port) else 'gone'}")

    def close(self) -> None:
        pass

    def service(self) -> StatsService:
        return StatsService(lambda: cast("ConsulClient", self), {"ID": "web-1"})


def serves(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class AdminScene(Scene):
    def __init__(self, base: Path, port: int = 0, stats_service: StatsService | None = None) -> None:
        self.base = base
        self.port = port or free_port()
        self.readiness: list[tuple[str, ...]] = []
        directory = base / "web-proxy"
        directory.mkdir(mode=0o700)
        self.socket = directory / "control.sock"
        self.ledger = Ledger(State("web-proxy"))
        self.stats: Stats | None = None
        self.draining = Draining()
        super().__init__(
            ADMIN,
            Admin,
            {
                "identity": IDENTITY,
                "control_socket": self.socket,
                "stats_addr": ListenAddress("127.0.0.1", self.port),
                "stats_service": stats_service,
                "intentions": Enforcement.ENFORCE,
                "verify": VerifyUpstream.BOTH,
                "metrics": Metrics(),
                "sources": Sources(lambda: self.tree, self.ledger, self.give_stats, AgentVersion(no_consul)),
                "draining": self.draining,
                "on_readiness": self.readiness.append,
            },
            (CONSUL_WATCHER,),
        )
        eventually(self.socket.exists, "the control socket")

    def get(self, path: str, method: str = "GET", accept: str = "") -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, headers={"Accept": accept})
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers["Content-Type"]
        finally:
            connection.close()

    def give_stats(self) -> Stats:
        if self.stats is None:
            raise StatsUnavailableError("nobody listens")
        return self.stats

    def listening(self) -> bool:
        return serves(self.port)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[AdminScene]:
    made = AdminScene(tmp_path)
    with playing(made):
        eventually(made.listening, "the stats address")
        yield made
    assert not made.socket.exists()


def warnings_of(scene: AdminScene, beginning: str) -> list[str]:
    shown = from_json(ask(scene.socket, "GET", "/api/v1/status"))
    return [warning for warning in shown.readiness.warnings if warning.startswith(beginning)]


def test_a_stats_address_that_is_taken_is_tried_again_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin, "LISTEN_AGAIN_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as other:
        made = AdminScene(tmp_path, other.getsockname()[1])
        with playing(made):
            eventually(lambda: "--stats-addr" in caplog.text, "that it is taken")
            threading.Event().wait(0.2)
            assert caplog.text.count("--stats-addr") == 1
            (warning,) = warnings_of(made, "stats address")
            assert warning.startswith(f"stats address: cannot listen on 127.0.0.1:{other.getsockname()[1]}")
            other.close()
            eventually(made.listening, "that it is free")
            assert made.get("/health")[0] == 200
            eventually(lambda: not warnings_of(made, "stats address"), "that it listens is known")


def test_ready_names_what_is_missing_until_nothing_is(scene: AdminScene) -> None:
    status, body, _ = scene.get("/ready")
    assert status == 503
    assert [line.split(":")[0] for line in body.splitlines()] == [
        "proxy",
        "leaf",
        "roots",
        "policy",
        "haproxy",
        "public listener",
    ]

    for facts in READY:
        scene.tell(FactsReported(facts))

    eventually(lambda: scene.get("/ready")[:2] == (200, "ready\n"), "readiness")


def test_without_a_thread_to_ask_for_consuls_version_in_it_goes_on(
    scene: AdminScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, threading.Event()

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "consul-version":
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    scene.tell(admin._AskVersion())
    scene.settle()
    assert refused.is_set()
    assert scene.tree.actors(10.0)[-1].generation == 1


def test_without_a_thread_to_register_in_it_goes_on_and_registers_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "RENEW_S", 0.05)
    start, refused = threading.Thread.start, threading.Event()

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name == "stats-service" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    consul = StatsAgent()
    with playing(AdminScene(tmp_path, consul.port, consul.service())) as scene:
        eventually(lambda: bool(consul.told), "its metrics are registered")
        assert refused.is_set()
        assert scene.generation() == 1


def test_draining_is_not_ready(scene: AdminScene) -> None:
    for facts in READY:
        scene.tell(FactsReported(facts))

    scene.tell(Drain())

    eventually(lambda: "draining" in scene.get("/ready")[1], "not ready while draining")


def test_a_leaf_that_expires_while_nobody_says_a_word_ends_readiness(
    scene: AdminScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    end = now() + 3600.0
    leaf = Validity("leaf", "web", end - 100, end)
    for facts in (*READY, CredentialFacts(leaf=True, roots=True, certificates=(leaf,))):
        scene.tell(FactsReported(facts))
    eventually(lambda: () in scene.readiness, "to be ready")

    monkeypatch.setattr(time, "time", lambda: now() + 3600.0)

    eventually(lambda: scene.readiness[-1] != (), "the end of it")
    (missing,) = scene.readiness[-1]
    assert missing == f"leaf: expired at {datetime.fromtimestamp(end, UTC):%FT%TZ}, and was not renewed"
    assert scene.get("/ready")[:2] == (503, f"{missing}\n")
    assert "hcc_ready 0.0" in scene.get("/metrics")[1]
    scene.settle()
    scene.tell(
        FactsReported(CredentialFacts(leaf=True, roots=True, certificates=(replace(leaf, not_after=end + 100),)))
    )
    eventually(lambda: scene.get("/ready")[0] == 200, "the new leaf")


def test_one_that_is_restarted_in_a_drain_is_not_ready_either(scene: AdminScene) -> None:
    scene.draining.announced = True
    scene.restart()
    for facts in READY:
        scene.tell(FactsReported(facts))

    eventually(lambda: scene.get("/ready")[1] == "draining: the sidecar is stopping\n", "nothing else is missing")


@pytest.mark.parametrize("drains", [True, False])
def test_consul_forgets_the_stats_address_while_it_is_still_served(tmp_path: Path, *, drains: bool) -> None:
    agent = StatsAgent()
    made = AdminScene(tmp_path, agent.port, agent.service())
    with playing(made):
        eventually(lambda: made.listening() and agent.told == ["registered"], "the stats address, in Consul as well")
        if drains:
            made.tell(Drain())
            eventually(lambda: len(agent.told) > 1, "Consul is told at the beginning of the drain")
            assert made.listening()

    assert agent.told == ["registered", "web-1 is served"]
    assert not made.listening()


def test_a_renewal_that_is_under_way_does_not_register_the_stats_address_again(tmp_path: Path) -> None:
    agent = StatsAgent()
    agent.takes_registrations.clear()
    made = AdminScene(tmp_path, agent.port, agent.service())
    with playing(made):
        eventually(made.listening, "the stats address")
        made.tell(Drain())
        eventually(lambda: made.readiness[-1:] == [missing_parts(Facts(draining=True), 0.0)], "the drain")
        agent.takes_registrations.set()
        eventually(lambda: len(agent.told) > 1, "Consul is told")

    assert agent.told == ["registered", "web-1 is served"]


def test_one_that_is_restarted_in_a_drain_does_not_register_again(tmp_path: Path) -> None:
    agent = StatsAgent()
    made = AdminScene(tmp_path, agent.port, agent.service())
    with playing(made):
        eventually(lambda: agent.told == ["registered"], "the registration")
        made.draining.announced = True
        made.tell(Drain())
        eventually(lambda: len(agent.told) > 1, "Consul is told")
        made.restart()

    assert agent.told.count("registered") == 1


def test_health_answers_as_long_as_the_process_lives(scene: AdminScene) -> None:
    assert scene.get("/health")[:2] == (200, "ok\n")


def test_metrics_come_as_prometheus_text_and_as_openmetrics(scene: AdminScene) -> None:
    status, body, kind = scene.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "hcc_build_info" in body

    _, body, kind = scene.get("/metrics", accept="application/openmetrics-text")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_the_open_address_takes_no_orders(scene: AdminScene) -> None:
    assert scene.get("/v1/actors")[0] == 404
    assert scene.get("/v1/actors/Admin/restart", method="POST")[0] == 405
    assert scene.get("/nonsense")[0] == 404


def test_the_control_socket_is_private_and_lists_and_restarts_actors(scene: AdminScene) -> None:
    assert stat.S_IMODE(scene.socket.stat().st_mode) == 0o600
    rows = ask(scene.socket, "GET", "/v1/actors")
    assert isinstance(rows, list)
    assert [row["name"] for row in rows] == ["root", CONSUL_WATCHER, ADMIN]

    answer = ask(scene.socket, "POST", f"/v1/actors/{CONSUL_WATCHER.lower()}/restart")

    assert answer == {"name": CONSUL_WATCHER, "generation": 2}


def test_admin_restarts_itself_and_still_answers_the_one_who_asked(scene: AdminScene) -> None:
    answer = ask(scene.socket, "POST", "/v1/actors/admin/restart")

    assert answer == {"name": ADMIN, "generation": 2}
    eventually(lambda: scene.listening() and scene.get("/health")[0] == 200, "the new one listens")
    scene.expect(CONSUL_WATCHER, Publish)


def test_an_unknown_actor_is_an_error_that_names_the_actors(scene: AdminScene) -> None:
    with pytest.raises(ControlError, match=r"no actor 'nobody'.*ConsulWatcher"):
        ask(scene.socket, "POST", "/v1/actors/nobody/restart")


@pytest.mark.parametrize("name", ["é", "a b", "a/b", "a?b", "a%2Fb", "\udcff"])
def test_whatever_an_actor_is_called_it_is_an_unknown_one(scene: AdminScene, name: str) -> None:
    options = argparse.Namespace(name=name, state_dir=str(scene.base), proxy_id="", sidecar_for="")

    with pytest.raises(ControlError) as caught:
        restart._restart(options)

    asked_for = name if name.isprintable() else "?"
    assert str(caught.value).startswith(f"There is no actor {asked_for!r}; the actors are: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_sidecar_is_found_by_proxy_or_service_and_a_wrong_name_names_what_runs(scene: AdminScene) -> None:
    assert find_control_socket(scene.base, "", "") == scene.socket
    assert find_control_socket(scene.base, "web-proxy", "") == scene.socket
    assert find_control_socket(scene.base, "", "web") == scene.socket
    with pytest.raises(ControlError, match="web-proxy"):
        find_control_socket(scene.base, "", "api")


def test_silent_clients_of_the_stats_address_do_not_keep_the_control_socket_from_answering(scene: AdminScene) -> None:
    silent = [socket.create_connection(("127.0.0.1", scene.port)) for _ in range(64)]
    try:
        assert json.dumps(ask(scene.socket, "GET", "/v1/about"))
    finally:
        for client in silent:
            client.close()


def test_the_status_is_the_same_json_on_the_open_address_and_on_the_control_socket(scene: AdminScene) -> None:
    scene.ledger.page.snapshot = snapshot(upstream_state(endpoints=(endpoint(),)))
    for facts in READY:
        scene.tell(FactsReported(facts))
    eventually(lambda: scene.get("/ready")[0] == 200, "readiness")

    code, body, kind = scene.get("/api/v1/status")

    assert (code, kind) == (200, "application/json")
    shown = from_json(json.loads(body))
    assert shown.sidecar.proxy_id == "web-proxy"
    assert shown.readiness.ready
    assert [actor.name for actor in shown.actors] == ["root", CONSUL_WATCHER, ADMIN]
    assert [one.address for one in shown.upstreams[0].endpoints] == ["10.0.0.1"]
    privately = from_json(ask(scene.socket, "GET", "/api/v1/status"))
    assert privately.sidecar == shown.sidecar
    assert privately.upstreams == shown.upstreams


def test_the_status_says_what_could_not_be_found_out(scene: AdminScene) -> None:
    shown = from_json(json.loads(scene.get("/api/v1/status")[1]))

    assert not shown.readiness.ready
    assert shown.haproxy.problem == "nobody listens"
    assert shown.versions.consul == ""
    assert shown.upstreams == ()


def test_explain_answers_by_the_present_policy_on_the_control_socket_alone(scene: AdminScene) -> None:
    with pytest.raises(ControlError, match="no policy yet"):
        ask(scene.socket, "GET", "/v1/explain?source=web")
    scene.ledger.page.snapshot = snapshot()
    answer = ask(scene.socket, "GET", "/v1/explain?source=web&path=%2Fx")
    assert isinstance(answer, dict)
    assert answer["source"].endswith("/ns/default/dc/dc1/svc/web")
    scene.tell(FactsReported(CallerFacts((("web:dc2", "allow"),), 1)))

    def explained_in_dc2() -> bool:
        named = ask(scene.socket, "GET", "/v1/explain?source=web.dc2")
        assert isinstance(named, dict)
        source: str = named["source"]
        return source.endswith("/ns/default/dc/dc2/svc/web")

    eventually(explained_in_dc2, "web.dc2 as status shows a caller of another datacenter")
    with pytest.raises(SettingError, match="expected a source"):
        ask(scene.socket, "GET", "/v1/explain")
    assert scene.get("/v1/explain?source=web")[0] == 404


def test_a_control_socket_that_somebody_removed_is_bound_anew(scene: AdminScene) -> None:
    scene.socket.unlink()

    eventually(scene.socket.is_socket, "another control socket")

    eventually(lambda: stat.S_IMODE(scene.socket.stat().st_mode) == 0o600, "a private one")
    assert ask(scene.socket, "GET", "/v1/actors")


def test_a_process_without_a_file_left_rests_until_it_has_one(
    scene: AdminScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def refuse(_: socket.socket) -> NoReturn:
        tried.append(time.monotonic())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", refuse)
        waiting = http.client.HTTPConnection("127.0.0.1", scene.port, timeout=5)
        waiting.request("GET", "/health")
        eventually(lambda: len(tried) > 3, "some tries")
        assert all(later - earlier > 0.09 for earlier, later in itertools.pairwise(tuple(tried)))
    with closing(waiting):
        assert waiting.getresponse().status == 200


def test_a_server_that_no_thread_could_be_started_for_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    # Those of other tests may still be ending, and have files until they have.
    eventually(lambda: not any("process_request" in one.name for one in threading.enumerate()), "no server's threads")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(ListenError, match="new thread"):
        serve_unix(tmp_path / "control.sock", lambda *_: Response(200, b""))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
