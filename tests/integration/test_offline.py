"""`hcc config --from`: a configuration made of a snapshot and checked by a real HAProxy, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.app import offline
from hcc.app.offline import checked_offline
from hcc.errors import SettingError
from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import capabilities_of
from hcc.haproxy.control import ApplyError
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.review import Review, review_json
from hcc.mesh.snapshot import Protocol, Snapshot
from tests.builders import endpoint, leaf, options, proxy, roots, snapshot, upstream, upstream_state, with_text
from tests.haproxy_examples import examples
from tests.haproxy_stage import BINARIES, DEADLINE_S, exists
from tests.pki import Authority, service_uri

pytestmark = pytest.mark.integration

AUTHORITY = Authority()


def mesh() -> Snapshot:
    """A sidecar with everything in it; nothing of it has to exist here."""
    states = (
        upstream_state(upstream("web", connect_timeout_ms=700), [endpoint("10.0.0.1"), endpoint("::1")]),
        upstream_state(upstream("api", socket="/run/nowhere/api.sock", max_connections=9), protocol="http"),
        replace(examples()["routes"].upstreams[0], upstream=upstream("shop", 9393)),
    )
    registered = proxy(protocol=Protocol.HTTP, appname_header="X-App", upstreams=(state.upstream for state in states))
    issued = AUTHORITY.leaf(service_uri("server"))
    return snapshot(*states, proxy_=registered, leaf_=leaf(cert_pem=issued.cert_pem), roots_=roots(AUTHORITY.pem))


def review() -> Review:
    return Review(options(directory="/run/hcc/web"), ("a:dc1",), mesh())


def run(file: Path | str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "hcc", "config", "--from", str(file), *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HCC_")}
    env["HCC_CONFIG_FILE"] = "/dev/null"
    return subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S, check=False, input=text, env=env)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "web.json"
    made.write_text(json.dumps(review_json(review(), "2.8.25")))
    return made


@pytest.mark.parametrize("version", sorted(BINARIES))
def test_a_snapshot_becomes_the_configuration_of_a_running_sidecar_and_haproxy_takes_it(
    version: str, file: Path
) -> None:
    done = run(file, "--haproxy", BINARIES[version]())

    assert done.returncode == 0, done.stderr
    assert " takes it" in done.stderr
    assert f"HAProxy {version}" in done.stderr
    # The paths are those of the sidecar.
    assert "stats socket /run/hcc/web/stats.sock" in done.stdout
    assert "/tmp" not in done.stdout
    assert "bind unix@/run/nowhere/api.sock" in done.stdout
    assert "use_backend up:shop:9393:to:v2 if" in done.stdout
    assert not exists("/run/hcc/web")


def test_a_snapshot_may_come_from_standard_input(file: Path) -> None:
    done = run("-", "--haproxy", BINARIES["2.8"](), text=file.read_text())
    assert done.stdout.startswith("global\n")


def test_what_haproxy_refuses_is_told_with_line_reason_and_the_words_of_consul(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worse(*arguments: object) -> Rendered:
        made = render(*arguments)  # type: ignore[arg-type] # as given
        text = made.config.replace("  timeout connect 700ms", "  timeout connect never")
        return with_text(made, text, structure=made.structure)

    monkeypatch.setattr(offline, "render", worse)
    binary = BINARIES["2.8"]()
    with pytest.raises(ApplyError) as raised:
        checked_offline(review(), binary, capabilities_of(probe(binary)))
    line = worse(*_arguments(binary)).config.splitlines().index("  timeout connect never") + 1
    assert raised.value.line == line
    assert f"line {line}" in str(raised.value)
    assert "timeout connect never" in str(raised.value)
    assert "; it comes from upstream web in the registration of server-sidecar-proxy, Config connect_timeout_ms" in str(
        raised.value
    )
    assert "/tmp" not in str(raised.value)


def test_nowhere_for_temporary_files_is_told_as_in_a_container_with_a_read_only_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    binary = BINARIES["2.8"]()
    with pytest.raises(SettingError, match=r"expected a directory for temporary files, .* name one with TMPDIR"):
        checked_offline(review(), binary, capabilities_of(probe(binary)))


def _arguments(binary: str) -> tuple[object, ...]:
    return offline.made_offline(review()).desired, capabilities_of(probe(binary))


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("{", 2, "expected JSON as `hcc snapshot` writes it"),
        ("[]", 1, "expected a file that `hcc snapshot` wrote"),
        ('{"kind": "hcc snapshot", "format": 3, "hcc": "9"}', 1, "expected format 2 of `hcc snapshot`, found 3"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str, code: int, said: str) -> None:
    (tmp_path / "x").write_text(text)
    done = run(tmp_path / "x")
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert said in done.stderr


def test_a_file_that_is_not_there_is_named() -> None:
    done = run("/no/such")
    said = "hcc: --from /no/such: expected a readable file, found No such file or directory\n"
    assert (done.returncode, done.stderr) == (2, said)
