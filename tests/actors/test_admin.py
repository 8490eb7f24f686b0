import http.client
import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hcc.actors.admin import About, Admin
from hcc.actors.messages import ADMIN, CONSUL_WATCHER, Drain, FactsReported, Publish
from hcc.actors.readiness import ConsulFacts, CredentialFacts, HAProxyFacts, PolicyFacts, ReconcilerFacts
from hcc.cli.control import ControlError, ask, find_control_socket
from hcc.metrics import Metrics
from hcc.settings import ListenAddress
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually

READY = (
    ConsulFacts(proxy_known=True),
    CredentialFacts(leaf=True, roots=True),
    PolicyFacts(version=1, deciding=2, current=2),
    HAProxyFacts(running=True, pid=1),
    ReconcilerFacts(applied=True, public_bound=True),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AdminScene(Scene):
    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.readiness: list[tuple[str, ...]] = []
        directory = base / "web-proxy"
        directory.mkdir(mode=0o700)
        self.socket = directory / "control.sock"
        super().__init__(
            ADMIN,
            Admin,
            {
                "about": About("web-proxy", "web"),
                "control_socket": self.socket,
                "stats_addr": ListenAddress("127.0.0.1", self.port),
                "stats_service": None,
                "intentions": True,
                "metrics": Metrics(),
                "tree": lambda: self.tree,
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

    def listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[AdminScene]:
    made = AdminScene(tmp_path)
    with playing(made):
        eventually(made.listening, "the stats address")
        yield made
    assert not made.socket.exists()


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


def test_draining_is_not_ready(scene: AdminScene) -> None:
    for facts in READY:
        scene.tell(FactsReported(facts))

    scene.tell(Drain(1.0))

    eventually(lambda: "draining" in scene.get("/ready")[1], "not ready while draining")


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
