"""Both console scripts: how each finds its proxy, what it says when it cannot, and the pages it serves."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from hcc.version import VERSION
from tests.e2e.clients import http_get
from tests.e2e.mesh import Mesh, Service, upstream
from tests.e2e.sidecar import ACTORS, GO_PROGRAM, HCC, Sidecar
from tests.e2e.standing import Standing
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
PORT = 9501


@on_2_8
def test_the_go_program_s_command_line_serves_the_same(mesh: Mesh, tmp_path: Path) -> None:
    web = mesh.join(Service("classic", "http"))[0]
    web.agent.register({"ID": "old", "Name": "old", "Tags": ["seasoned"], "Port": 1, "Connect": _sidecar(mesh)})
    number = mesh.site.number()
    base = mesh.site.directory / f"{number}-go"
    words = (
        *(
            GO_PROGRAM,
            "-sidecar-for-tag",
            "seasoned",
            "-http-addr",
            "127.0.0.1:8500",
            "-haproxy",
            mesh.haproxy,
        ),
        *("-haproxy-cfg-base-path", str(base / "s"), "-stats-addr", f"127.0.0.1:{19000 + number}"),
        *("-stats-service-register", "-enable-intentions", "-log-level", "DEBUG"),
    )
    namespace = web.namespace
    sidecar = Sidecar(namespace, base, words, stats_port=19000 + number, state_base=base / "s")
    try:
        sidecar.start()
        wait_until("an answer", lambda: http_get(namespace, PORT).text == "classic", 20)
        names = wait_until(
            "the stats service",
            lambda: {n for n in _names(web.agent.get("/v1/agent/services")) if "stats" in n},
        )
        assert names
        assert sidecar.stop() == 0
        left = {name for name in _names(web.agent.get("/v1/agent/services")) if "stats" in name}
        assert not left, "the stats service stays registered"
    finally:
        sidecar.clear()
        sidecar.process.forget()
        web.agent.deregister("old")
        for found in web.agent.get("/v1/agent/services"):
            if "stats" in found:
                web.agent.deregister(found)


@pytest.mark.parametrize("words", [(HCC, "--version"), (GO_PROGRAM, "-version"), (GO_PROGRAM, "--version")])
def test_each_script_tells_its_version(words: tuple[str, ...]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0
    assert VERSION in done.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((HCC, "run", "--sidecar-for", "x", "--log-level", "loud"), "loud"),
        ((HCC, "run", "--sidecar-for", "x", "--stats-addr", "nowhere"), "nowhere"),
        ((HCC, "run", "--no-such-flag"), "no-such-flag"),
        ((GO_PROGRAM, "-sidecar-for", "x", "-no-such-flag"), "no-such-flag"),
    ],
)
def test_a_bad_flag_is_named_in_one_line_with_exit_2(words: tuple[str, ...], named: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@on_2_8
def test_a_service_without_a_sidecar_is_told_to_the_user(mesh: Mesh) -> None:
    member = mesh.add(Service("lonely", app=False))
    member.agent.deregister("lonely")
    sidecar = _started(mesh, "run", "--sidecar-for", "nobody")
    try:
        wait_until("its name in the log", lambda: "nobody" in sidecar.log_text(), 15)
    finally:
        sidecar.clear()
        sidecar.process.forget()


@on_2_8
def test_two_sidecars_of_one_service_are_named_and_a_proxy_id_chooses(mesh: Mesh) -> None:
    web = mesh.join(Service("double", "http", host="b"))[0]
    port = 22000 + mesh.site.number()
    second = {
        "ID": "second-proxy",
        "Name": "second-proxy",
        "Kind": "connect-proxy",
        "Port": port,
        "Proxy": {
            "DestinationServiceName": "double",
            "DestinationServiceID": "double",
            "Upstreams": [upstream("double", PORT)],
        },
    }
    web.agent.register(second)
    unclear, clear = (
        _started(mesh, "run", "--sidecar-for", "double"),
        _started(mesh, "run", "--proxy-id", "second-proxy"),
    )
    try:
        clear.wait_ready()
        wait_until("an answer", lambda: http_get(web.namespace, PORT).text == "double")
        wait_until(
            "both IDs in the log",
            lambda: {"second-proxy", "double-sidecar-proxy"} <= _words(unclear.log_text()),
            15,
        )
    finally:
        for sidecar in (unclear, clear):
            sidecar.clear()
            sidecar.process.forget()
        web.agent.put("/v1/agent/service/deregister/second-proxy")


@on_2_8
def test_hcc_actors_lists_the_whole_tree(standing: Standing) -> None:
    actors = standing.web.sidecar.actors()
    assert set(ACTORS) <= set(actors)
    assert {actor["state"] for actor in actors.values()} == {"running"}
    table = standing.web.sidecar.command("actors").stdout
    assert all(actor in table for actor in ACTORS)


@on_2_8
def test_health_readiness_and_metrics_are_served(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    assert sidecar.fetch("/health")[0] == 200
    assert sidecar.fetch("/ready")[0] == 200
    assert any(name.startswith("hcc_") for name in sidecar.metrics())
    openmetrics = sidecar.fetch("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})[1]
    assert openmetrics.rstrip().endswith("# EOF")


@on_2_8
def test_private_files_and_sockets_are_for_the_owner_only(standing: Standing) -> None:
    directory = standing.web.sidecar.state_dir
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path.name} has mode {mode:o}"


def _started(mesh: Mesh, *words: str) -> Sidecar:
    number = mesh.site.number()
    base = mesh.site.directory / f"{number}-cmd"
    flags = (
        "--haproxy",
        mesh.haproxy,
        "--stats-addr",
        f"127.0.0.1:{19000 + number}",
        "--state-dir",
        str(base / "s"),
    )
    sidecar = Sidecar(
        mesh.site.client.namespace,
        base,
        (HCC, *words, *flags),
        stats_port=19000 + number,
        state_base=base / "s",
    )
    sidecar.start()
    return sidecar


def _sidecar(mesh: Mesh) -> dict[str, object]:
    port = 22000 + mesh.site.number()
    return {"SidecarService": {"Port": port, "Proxy": {"Upstreams": [upstream("classic", PORT)]}}}


def _names(services: dict[str, dict[str, object]]) -> set[str]:
    return {str(service["Service"]) for service in services.values()}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text))
