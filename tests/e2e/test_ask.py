"""What an operator asks of a running sidecar, typed as an operator types it, in the sidecar's network."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from functools import partial
from typing import Any

import pytest

from hcc.haproxy.runtime import RuntimeSocket
from tests.e2e.clients import http_get, tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, upstream
from tests.e2e.sidecar import HCC
from tests.e2e.standing import DB_PORT, WEB_PORT, Standing
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
NOTED_PORT, TRUE_PORT = 9801, 9802


def asked(member: Member, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`hcc WORDS` beside the sidecar, which the environment chooses."""
    own = {
        "HCC_STATE_DIR": str(member.sidecar.state_base),
        "HCC_SIDECAR_FOR": member.service.service_id,
        "HCC_STATS_ADDR": f"127.0.0.1:{member.sidecar.stats_port}",
        "HCC_CONFIG_FILE": "/dev/null",
    }
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("HCC_", "CONSUL_"))}
    line = member.namespace.command(HCC, *words)
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, env=surroundings | own | env)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    found: list[dict[str, str]] = json.loads(done.stdout)
    return {one["subject"]: one for one in found}


@on_2_8
def test_hcc_status_shows_who_it_is_and_where_calls_go(standing: Standing) -> None:
    done = asked(standing.caller, "status")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caller-sidecar-proxy  ready\n")
    assert f"127.0.0.1:{DB_PORT}" in done.stdout
    assert "\x1b" not in done.stdout
    value: dict[str, Any] = json.loads(asked(standing.caller, "status", "--json").stdout)
    assert value["sidecar"]["proxy_id"] == "caller-sidecar-proxy"
    assert {one["name"] for one in value["upstreams"]} >= {"web", "db", "ghost-tcp"}


@on_2_8
def test_colours_are_for_terminals_and_not_for_those_who_do_not_want_them(standing: Standing) -> None:
    assert b"\x1b[" in on_a_terminal(standing.caller)
    assert b"\x1b[32m" not in on_a_terminal(standing.caller, NO_COLOR="1")


def on_a_terminal(member: Member, **env: str) -> bytes:
    """What `hcc status` writes to a terminal."""
    ours, theirs = pty.openpty()
    line = [HCC, "status", "--state-dir", str(member.sidecar.state_base)]
    surroundings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        with subprocess.Popen(
            line, stdout=theirs, stderr=subprocess.STDOUT, env=surroundings | {"TERM": "xterm"} | env
        ) as process:
            os.close(theirs)
            shown = b""
            try:
                while part := os.read(ours, 65536):
                    shown += part
            except OSError:
                pass  # Linux tells the end of a terminal so.
            assert process.wait(20) == 0, shown
    finally:
        os.close(ours)
    return shown


@on_2_8
def test_hcc_wait_ready_ends_when_it_is_ready_and_says_why_when_it_is_not(standing: Standing) -> None:
    assert asked(standing.caller, "wait-ready", "--timeout", "5s").returncode == 0
    nobody = asked(standing.caller, "wait-ready", "--timeout", "200ms", HCC_SIDECAR_FOR="nobody")
    assert nobody.returncode == 1
    assert "not ready after 0.2 s: expected one running sidecar" in nobody.stderr


@on_2_8
def test_hcc_settings_shows_each_value_and_its_source_and_no_secret(standing: Standing, tmp_path: Any) -> None:
    file = tmp_path / "hcc.toml"
    file.write_text('spoe_workers = 3\ntoken = "s3cret"\n')

    done = asked(standing.caller, "settings", "--log-level", "warn", HCC_CONFIG_FILE=str(file))

    rows = {words[0]: words[1:] for line in done.stdout.splitlines() if (words := line.split())}
    assert rows["log_level"] == ["warn", "--log-level"]
    assert rows["sidecar_for"] == ["caller", "HCC_SIDECAR_FOR"]
    assert rows["spoe_workers"] == ["3", "spoe_workers", "in", str(file)]
    assert rows["drain_timeout"] == ["15s", "default"]
    assert "s3cret" not in done.stdout
    file.write_text("spoe_worker = 3\n")
    wrong = asked(standing.caller, "settings", HCC_CONFIG_FILE=str(file))
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "did you mean spoe_workers?" in wrong.stderr


@on_2_8
def test_hcc_doctor_finds_a_running_sidecar_in_order(standing: Standing) -> None:
    done = asked(standing.caller, "doctor", "--haproxy", standing.mesh.haproxy, "--json")

    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert found[f"upstream db 127.0.0.1:{DB_PORT}"]["text"] == "held by this sidecar"
    assert found["ready"]["text"] == "yes"
    assert found["state directory"]["level"] == found["clock"]["level"] == found["Consul version"]["level"] == "ok"
    text = asked(standing.caller, "doctor", "--haproxy", "/no/such", HCC_SIDECAR_FOR="nobody")
    assert text.returncode == 1
    assert "-> register it with this agent" in text.stdout
    assert "2 failed" in text.stdout


@on_2_8
def test_hcc_log_level_changes_a_running_sidecar(standing: Standing) -> None:
    sidecar = standing.pages.sidecar
    assert asked(standing.pages, "log-level", "error").returncode == 0
    try:
        sidecar.restart("CertManager")
        wait_until("a line", lambda: '"level": "warning", "area": "actors.admin"' in sidecar.log_text())
        quiet = sidecar.log_text()
    finally:
        assert asked(standing.pages, "log-level", "debug").stdout == "log level debug\n"
    sidecar.restart("CertManager")
    wait_until("more lines", lambda: len(sidecar.log_text()) > len(quiet))
    for line in sidecar.log_text().splitlines():
        assert {"time", "level", "area", "message"} <= json.loads(line).keys()
    wrong = asked(standing.pages, "log-level", "loud")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "hcc: argument LEVEL: expected one of trace, debug, info, warn, error, fatal, found 'loud'\n",
    )


@on_2_8
def test_the_access_log_names_the_caller_and_the_upstream_of_each_request(mesh: Mesh) -> None:
    itself = Service("noted", "http", upstreams=(upstream("noted", NOTED_PORT),))
    noted = mesh.add(itself, "--access-log", "stdout")
    noted.wait_ready()
    noted.wait_healthy(mesh.site.server)
    wait_until("an answer", lambda: http_get(noted.namespace, NOTED_PORT, "/who?secret=1").text == "noted", 20)
    mesh.site.server.set_intention("noted", "noted", "deny")
    try:
        wait_until("a refusal", lambda: http_get(noted.namespace, NOTED_PORT, "/no").status == 403)
    finally:
        mesh.site.server.remove_intention("noted", "noted")

    def logged(direction: str, path: str, status: int) -> dict[str, Any]:
        texts = [line for line in noted.sidecar.log_text().splitlines() if f'"direction":"{direction}"' in line]
        lines: list[dict[str, Any]] = [json.loads(text) for text in texts]
        return next(line for line in lines if (line.get("path"), line.get("status")) == (path, status))

    for path, status in (("/who", 200), ("/no", 403)):
        assert wait_until("the line", partial(logged, "out", path, status))["upstream"] == "noted"
        assert wait_until("the line", partial(logged, "in", path, status))["caller"] == "noted"
    assert "secret=1" not in noted.sidecar.log_text()


@on_2_8
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("db", 0, "it works as far as can be seen from here"),
        ("ghost-tcp", 1, "it breaks at: instances"),
        ("db.dc2", 1, "-> correct the upstream's datacenter"),
        ("nobody", 1, "has no upstream nobody, but: db, db.dc2, ghost-http, ghost-tcp, pages, rpc, web"),
    ],
)
def test_hcc_troubleshoot_says_where_the_way_to_an_upstream_breaks(
    standing: Standing, name: str, code: int, said: str
) -> None:
    done = asked(standing.caller, "troubleshoot", "upstream", name)

    assert said in done.stdout, done.stdout + done.stderr
    assert done.returncode == code


@on_2_8
def test_hcc_troubleshoot_tells_a_denial_from_a_sick_instance(standing: Standing) -> None:
    standing.site.server.set_intention("caller", "db", "deny")
    try:
        wait_until("the denial", lambda: "it breaks at: let in" in _about_db(standing))
    finally:
        standing.site.server.remove_intention("caller", "db")
    standing.db.set_health("critical")
    try:
        wait_until("the sick one", lambda: "0 of 1 take traffic" in _about_db(standing))
    finally:
        standing.db.set_health("passing")
        standing.db.wait_healthy(standing.site.client)
    wait_until("all well again", lambda: "it works" in _about_db(standing))


def _about_db(standing: Standing) -> str:
    return _about(standing, "db")


def _about(standing: Standing, name: str) -> str:
    return asked(standing.caller, "troubleshoot", "upstream", name).stdout


@on_2_8
def test_hcc_troubleshoot_tells_where_an_upstream_fails_over_to_and_whether_it_did(standing: Standing) -> None:
    server = standing.site.server
    server.put("/v1/config", {"Kind": "service-resolver", "Name": "db", "Failover": {"*": {"Service": "other"}}})
    other = standing.mesh.join(Service("other"))[0]
    try:
        wait_until("the other one to stand by", lambda: "1 of 1 take traffic, 1 more stand by" in _about_db(standing))
        assert "where none of its instances can take traffic, to service other in dc1" in _about_db(standing)
        wait_until("all to be well", lambda: "FAIL" not in _about_db(standing))
        standing.db.set_health("critical")
        wait_until("the other one to serve", lambda: "1 of 2 take traffic: " in _about_db(standing))
        wait_until("all to be well", lambda: "FAIL" not in _about_db(standing))
        assert tcp_ask(standing.client, DB_PORT) == "other"
    finally:
        standing.db.set_health("passing")
        standing.db.wait_healthy(standing.site.client)
        server.delete("/v1/config/service-resolver/db")
        wait_until("the usual one", lambda: tcp_ask(standing.client, DB_PORT) == "db")
        other.remove()


@on_2_8
def test_hcc_troubleshoot_and_status_tell_of_a_terminating_gateway(standing: Standing) -> None:
    server = standing.site.server
    gateway = {"Kind": "terminating-gateway", "Service": "way-out", "Port": 8443}
    for service in ({"Service": "ghost-tcp", "Port": 80}, gateway):
        server.put("/v1/catalog/register", {"Node": "outside", "Address": "192.0.2.1", "Service": service})
    entry = {"Kind": "terminating-gateway", "Name": "way-out", "Services": [{"Name": "ghost-tcp"}]}
    server.put("/v1/config", entry)
    try:
        wait_until("the gateway", lambda: "behind a terminating gateway" in _about(standing, "ghost-tcp"))
        assert "FAIL" in _about(standing, "ghost-tcp")
        told = "ghost-tcp.default.default.dc1 are behind a terminating gateway, which is not served"
        wait_until("the problem", lambda: told in standing.caller.sidecar.command("status").stdout)
    finally:
        server.delete("/v1/config/terminating-gateway/way-out")
        server.put("/v1/catalog/deregister", {"Node": "outside"})
    wait_until("no gateway", lambda: "gateway" not in _about(standing, "ghost-tcp"))


@on_2_8
def test_hcc_troubleshoot_takes_the_one_sidecar_that_runs_where_none_is_named(standing: Standing) -> None:
    done = asked(standing.caller, "troubleshoot", "upstream", "db", HCC_SIDECAR_FOR="")
    assert done.stdout == _about_db(standing)
    nobody = asked(standing.caller, "troubleshoot", "upstream", "db", HCC_SIDECAR_FOR="", HCC_STATE_DIR="/nowhere")
    assert "expected one running sidecar below /nowhere, found none" in nobody.stderr


@on_2_8
def test_hcc_troubleshoot_without_a_running_sidecar_says_so(standing: Standing) -> None:
    done = asked(standing.caller, "troubleshoot", "upstream", "db", HCC_STATE_DIR="/nowhere")

    assert done.returncode == 1
    assert "it breaks at: sidecar" in done.stdout


@on_2_8
def test_hcc_explain_names_the_permission_that_decides_as_haproxy_does(standing: Standing) -> None:
    sources = [
        {"Name": "caller", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/headers", "Methods": ["GET"]}}]},
        {"Name": "evil", "Action": "deny"},
    ]
    server = standing.site.server
    server.put("/v1/config", {"Kind": "service-intentions", "Name": "web", "Sources": sources})
    try:
        wait_until("the rules", lambda: http_get(standing.client, WEB_PORT, "/headers").status == 403)
        refused = asked(standing.web, "explain", "--source", "caller", "--path", "/who/../headers")
        assert refused.returncode == 3, refused.stderr
        assert "permission 0  deny path prefix '/headers', method GET <- decides\n" in refused.stdout
        put = asked(standing.web, "explain", "--source", "caller", "--path", "/headers", "--method", "PUT", "--json")
        told = json.loads(put.stdout)
        assert (put.returncode, told["verdict"], told["permission"]) == (0, "allow", None)
        assert told["reason"].endswith("no permission matches; default allow")
        assert asked(standing.web, "explain", "--source", "caller").returncode == 4
        uri = told["source"].replace("/svc/caller", "/svc/evil")
        by_uri = asked(standing.web, "explain", "--source", uri)
        assert (by_uri.returncode, "evil -> deny (precedence 9)" in by_uri.stdout) == (3, True)
    finally:
        server.delete("/v1/config/service-intentions/web")
        wait_until("no rules", lambda: asked(standing.web, "explain", "--source", "caller").returncode == 0)


@on_2_8
def test_hcc_explain_says_what_is_wrong_with_the_question_or_that_nobody_answers(standing: Standing) -> None:
    bad = asked(standing.web, "explain", "--source", "caller", "--header", "x-role")
    assert (bad.returncode, bad.stderr) == (2, "hcc: expected a header such as x-role:admin, found 'x-role'\n")
    nowhere = asked(standing.web, "explain", "--source", "caller", HCC_STATE_DIR="/nowhere")
    assert nowhere.returncode == 1
    assert "below /nowhere, found none" in nowhere.stderr


@on_2_8
def test_hcc_plan_says_what_would_be_done_now_and_that_there_is_nothing(standing: Standing) -> None:
    # What is applied is written down a moment later.
    wait_until("rest", lambda: asked(standing.db, "plan").stdout == "nothing to do: HAProxy runs what is wanted\n")
    by_hand(standing.db, "disable frontend public")

    done = asked(standing.db, "plan")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "# listeners differ from what was started\nenable listener public\n"
    assert json.loads(asked(standing.db, "plan", "--json").stdout) == {
        "operations": ["enable listener public"],
        "reasons": ["listeners differ from what was started"],
        "reloads": False,
        "left_out": [],
    }
    standing.db.sidecar.restart("ConfigReconciler")
    wait_until("the repair", lambda: asked(standing.db, "plan").stdout.startswith("nothing to do"))


@on_2_8
def test_hcc_config_prints_what_runs_and_the_same_is_made_of_hcc_snapshot(standing: Standing, tmp_path: Any) -> None:
    config = asked(standing.web, "config")
    snapshot = asked(standing.web, "snapshot")

    assert (config.returncode, snapshot.returncode) == (0, 0), config.stderr + snapshot.stderr
    on_disk = (standing.web.sidecar.state_dir / "haproxy.cfg").read_text()
    assert config.stdout == on_disk
    assert "PRIVATE KEY" not in snapshot.stdout
    assert json.loads(snapshot.stdout)["review"]["snapshot"]["leaf"]["key_pem"] == "(hidden)"
    file = tmp_path / "web.json"
    file.write_text(snapshot.stdout)
    made = asked(standing.web, "config", "--from", str(file), "--haproxy", standing.mesh.haproxy)
    assert made.returncode == 0, made.stderr
    assert made.stdout == on_disk
    nobody = asked(standing.web, "plan", HCC_SIDECAR_FOR="nobody")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (1, 1)
    assert "expected one running sidecar" in nobody.stderr


@on_2_8
def test_what_somebody_changes_by_hand_is_repaired_every_resync_and_counted(mesh: Mesh) -> None:
    itself = Service("true", "http", upstreams=(upstream("true", TRUE_PORT),))
    member = mesh.add(itself, "--resync", "1s")
    member.wait_ready()
    member.wait_healthy(mesh.site.server)

    def answers() -> bool:
        return http_get(member.namespace, TRUE_PORT).text == "true"

    def repaired_since(before: float) -> bool:
        return repairs() > before

    def repairs() -> float:
        return member.sidecar.metrics()["hcc_drift_repairs_total"]

    wait_until("an answer", answers, 20)
    listener, verdicts = f"up:true:{TRUE_PORT}", member.sidecar.state_dir / "verdicts.map"
    wait_until("the caller to be remembered", verdicts.read_text)
    key = verdicts.read_text().split()[0]
    forged = f"add map {member.sidecar.state_dir}/leaves.map {'A' * 64} spiffe://x/ns/default/dc/dc1/svc/true"
    for command in (
        f"disable frontend {listener}",
        "disable server app/app",
        f"set map {verdicts} {key} deny",
        forged,
    ):
        before = repairs()
        by_hand(member, command)
        wait_until(f"the repair of: {command}", partial(repaired_since, before), 10)
        wait_until("an answer", answers)
    plans = json.loads(asked(member, "status", "--json").stdout)["plans"]
    assert any(plan["drift"] for plan in plans)


def by_hand(member: Member, command: str) -> None:
    """Say it on HAProxy's runtime socket, as an operator with socat."""
    answer = RuntimeSocket(str(member.sidecar.state_dir / "stats.sock")).send(command)
    assert not answer.strip(), answer
