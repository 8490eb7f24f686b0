"""Which running sidecar is asked, and what is said of one that does not answer."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hcc.actors.status import StatusError, to_json
from hcc.actors.web import Response, serve_unix
from hcc.cli import control, status
from hcc.cli.control import ControlError, SilentError, ask, fetch, find_control_socket
from hcc.cli.status import running
from hcc.diagnosis.finding import Level
from hcc.diagnosis.sidecar import check_sidecar
from hcc.diagnosis.upstream import _haproxy
from tests import status_builders
from tests.builders import upstream

SOON_S = 0.05


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, as sockets go below it: pytest's own names are long under xdist."""
    with tempfile.TemporaryDirectory(prefix="hcc-t-") as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ABOUT_TIMEOUT_S", SOON_S)
    monkeypatch.setattr(status, "STATUS_TIMEOUT_S", SOON_S)
    # Who is well answers, however slow the machine is; tests of time have less.
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", 10.0)


@contextlib.contextmanager
def hanging(base: Path, name: str) -> Iterator[Path]:
    """A sidecar that takes connections and says nothing, as one that is stopped."""
    (base / name).mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(base / name / "control.sock"))
        server.listen()
        yield base / name / "control.sock"


@contextlib.contextmanager
def crowded(base: Path, name: str) -> Iterator[Path]:
    """One that hangs for so long that it takes no connection any more: that it is silent is seen at once."""
    (base / name).mkdir()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(str(base / name / "control.sock"))
        server.listen(0)
        waiting.connect(server.getsockname())
        yield base / name / "control.sock"


@contextlib.contextmanager
def well(base: Path, name: str, service_id: str, whole: object = None) -> Iterator[Path]:
    about = json.dumps({"proxy_id": name, "service_id": service_id}).encode()
    whole = json.dumps(to_json(status_builders.status()) if whole is None else whole).encode()
    (base / name).mkdir()
    path = base / name / "control.sock"
    server = serve_unix(path, lambda _, target, *__: Response(200, about if target == "/v1/about" else whole))
    try:
        yield path
    finally:
        server.close()


def options(base: Path, **chosen: str) -> argparse.Namespace:
    named = {"proxy_id": "", "sidecar_for": "", "sidecar_for_tag": ""}
    return argparse.Namespace(state_dir=str(base), **{**named, **chosen})


def test_a_sidecar_that_is_named_is_found_though_it_hangs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", SOON_S)
    with hanging(base, "web-sidecar-proxy") as path, well(base, "api-sidecar-proxy", "api"):
        assert find_control_socket(base, "web-sidecar-proxy", "") == path
        with pytest.raises(SilentError, match="runs but does not answer"):
            fetch(path, "GET", "/ready", SOON_S)


def test_a_name_that_makes_no_directory_s_name_is_found(base: Path) -> None:
    with hanging(base, "a%2Fb") as path:
        assert find_control_socket(base, "a/b", "") == path


def test_one_that_hangs_hides_no_other_and_is_named_where_it_may_be_the_wanted_one(base: Path) -> None:
    with crowded(base, "api-sidecar-proxy"), well(base, "web-sidecar-proxy", "web") as path:
        assert find_control_socket(base, "", "web") == path
        with pytest.raises(SilentError, match="no answer from: api-sidecar-proxy"):
            find_control_socket(base, "", "api")


def test_one_whose_path_is_too_long_for_a_socket_is_said_to_be_so(base: Path) -> None:
    outside = base / ("as-seen-from-outside-of-a-container-" * 3)
    outside.mkdir()
    with well(base, "web-sidecar-proxy", "web"):
        (base / "web-sidecar-proxy").rename(outside / "web-sidecar-proxy")

        with pytest.raises(ControlError, match=r"no sidecar answers on .*path too long"):
            ask(find_control_socket(outside, "", ""), "GET", "/v1/about")


def test_one_that_was_killed_does_not_hang(base: Path) -> None:
    with hanging(base, "web-sidecar-proxy") as path:
        pass
    with pytest.raises(ControlError, match="Connection refused") as caught:
        fetch(path, "GET", "/ready")
    assert not isinstance(caught.value, SilentError)


def test_one_that_was_killed_is_named_as_such_and_hides_no_other(base: Path) -> None:
    with hanging(base, "api-sidecar-proxy"):
        pass
    for chosen in (("api-sidecar-proxy", ""), ("", "api"), ("", "")):
        with pytest.raises(ControlError, match="hcc does not run for: api-sidecar-proxy") as caught:
            find_control_socket(base, *chosen)
        assert not isinstance(caught.value, SilentError)
    with well(base, "web-sidecar-proxy", "web") as path:
        assert find_control_socket(base, "", "") == path
        with pytest.raises(ControlError, match=r"found none; .*api-sidecar-proxy.*; there are: web-sidecar-proxy"):
            find_control_socket(base, "", "api")
        # A wrong name, too: what ended is not offered as if it ran.
        with pytest.raises(ControlError, match=r"run for: api-sidecar-proxy .*; there are: web-sidecar-proxy$"):
            find_control_socket(base, "db", "")


def test_a_wrong_name_is_said_with_what_there_is(base: Path) -> None:
    with pytest.raises(ControlError, match=f"below {base}, found none, see --state-dir"):
        find_control_socket(base, "", "")
    with well(base, "web-sidecar-proxy", "web"), well(base, "api-sidecar-proxy", "api"):
        for chosen, flag in ((("db", ""), "--proxy-id db"), (("", "db"), "--sidecar-for db")):
            with pytest.raises(ControlError) as caught:
                find_control_socket(base, *chosen)
            assert str(caught.value).endswith(
                f"{flag} below {base}, found none; there are: api-sidecar-proxy, web-sidecar-proxy"
            )
        with pytest.raises(ControlError, match="found api-sidecar-proxy, web-sidecar-proxy; choose with --sidecar-for"):
            find_control_socket(base, "", "")


def test_a_directory_of_somebody_else_is_said_to_be_one(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "web").mkdir()
    real = os.scandir

    def scandir(path: Path) -> object:
        # Tests may run as root, who may look into everything.
        if path == base / "web":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ControlError, match=f"may not look into: {base}/web"):
        find_control_socket(base, "", "web")
    # It may run there: nothing is said to be broken for that.
    seen = running(options(base), "web-sidecar-proxy")
    for finding in (*check_sidecar(seen), *_haproxy(upstream(), (), seen)):
        assert finding.level is Level.SKIPPED
        assert "ask as root, or as the user that runs hcc" in finding.text
    with well(base, "own-sidecar-proxy", "own") as path:
        assert find_control_socket(base, "", "own") == path


def test_waiting_ends_in_time_where_the_sidecar_hangs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", SOON_S)
    outcome: list[str] = []

    def wait() -> None:
        try:
            status._wait_ready(argparse.Namespace(timeout=SOON_S, **vars(options(base))))
        except status.NotReadyError as exc:
            outcome.append(str(exc))

    with hanging(base, "web-sidecar-proxy"):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(15.0)
    assert len(outcome) == 1
    assert "runs but does not answer" in outcome[0]


@pytest.mark.parametrize("sidecar_for", ["", "web"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_status_of_one_that_hangs_ends_soon(
    base: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool, sidecar_for: str
) -> None:
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", SOON_S)
    monkeypatch.setattr(control, "ABOUT_TIMEOUT_S", control.TIMEOUT_S)
    began_s = time.monotonic()

    with hanging(base, "web-sidecar-proxy"), pytest.raises(SilentError):
        status._status(argparse.Namespace(json=as_json, watch=False, **vars(options(base, sidecar_for=sidecar_for))))

    assert time.monotonic() - began_s < control.TIMEOUT_S / 2


def test_those_that_hang_are_waited_for_all_at_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", 2.0)
    with ExitStack() as stack:
        names = [f"hung-{number:02}" for number in range(12)]
        for name in names:
            stack.enter_context(hanging(base, name))
        path = stack.enter_context(well(base, "web", "web"))
        began_s = time.monotonic()

        assert find_control_socket(base, "", "web", SOON_S) == path
        with pytest.raises(SilentError, match=f"no answer from: {', '.join(names)}, which may hang"):
            find_control_socket(base, "", "api", SOON_S)

        assert time.monotonic() - began_s < 6 * control.MIN_TIMEOUT_S


def test_who_is_well_has_time_for_its_status_however_many_hang(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MIN_TIMEOUT_S", SOON_S)
    monkeypatch.setattr(control, "ABOUT_TIMEOUT_S", control.TIMEOUT_S)
    monkeypatch.setattr(status, "STATUS_TIMEOUT_S", 4.0)
    left: list[float] = []
    real = control.fetch

    def fetch(path: Path, method: str, target: str, timeout_s: float) -> tuple[int, str]:
        if target == status.TARGET:
            left.append(timeout_s)
        return real(path, method, target, timeout_s)

    monkeypatch.setattr(control, "fetch", fetch)
    with hanging(base, "api"), hanging(base, "db"), well(base, "web", "web"):
        assert running(options(base, sidecar_for="web"), "").status == status_builders.status()

    # A search that takes all of it leaves less than nothing.
    assert [0.0 < each <= 4.0 for each in left] == [True]


def test_a_tag_s_sidecar_is_asked_by_the_proxy_s_id_alone(base: Path) -> None:
    tagged = options(base, sidecar_for_tag="seasoned")
    with well(base, "api-sidecar-proxy", "api"), crowded(base, "web-sidecar-proxy"):
        assert running(tagged, "api-sidecar-proxy").status == status_builders.status()
        assert running(tagged, "web-sidecar-proxy").hangs
        unknown = running(tagged, "")
        assert unknown.status is None
        assert "seasoned" in unknown.problem


def test_a_sidecar_of_another_hcc_is_told_as_such_and_nobody_is_told_to_kill_it(base: Path) -> None:
    shown = to_json(status_builders.status())
    assert isinstance(shown, dict)
    told = "the sidecar runs another hcc than this one (0.0.1, this is"
    with well(base, "web-sidecar-proxy", "web", shown | {"callers": None, "versions": {"hcc": "0.0.1"}}):
        found = running(options(base), "web-sidecar-proxy")
        with pytest.raises(StatusError) as caught:
            status._view(options(base))

    (doctor,) = check_sidecar(found, pid=4711)
    (troubleshoot,) = _haproxy(upstream(), (), found)
    for finding in (doctor, troubleshoot):
        assert finding.text.startswith(told)
        assert (finding.level, finding.remedy) == (Level.WARNING, "restart it to have this hcc, or ask it with its own")
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith("restart it to have this hcc, or ask it with its own, or look at --json")


def test_a_sidecar_that_cannot_do_what_it_is_asked_is_of_another_hcc(base: Path) -> None:
    def answer(*_: str) -> Response:
        return Response(404, b"expected one of /, /api/v1/status, /metrics, /health, /ready\n")

    (base / "web").mkdir()
    server = serve_unix(base / "web" / "control.sock", answer)
    try:
        with pytest.raises(ControlError, match="runs another hcc than this one, which cannot do this; restart it"):
            ask(base / "web" / "control.sock", "GET", "/v1/plan")
    finally:
        server.close()


@pytest.mark.parametrize("told_to_leave", [False, True])
def test_doctor_warns_of_an_hcc_that_ended_without_a_drain(base: Path, told_to_leave: bool) -> None:
    with well(base, "web-sidecar-proxy", "web") as path:
        pass
    if told_to_leave:
        path.with_name("haproxy.pid").touch()
        path.unlink()
    (finding,) = check_sidecar(running(options(base), "web-sidecar-proxy"))
    assert (finding.level, finding.text.partition("found ")[2]) == (
        Level.WARNING,
        "none; hcc does not run for: web-sidecar-proxy (its HAProxy may go on)",
    )
    assert finding.remedy.startswith("start it: hcc run takes its HAProxy over")
    # Of others nothing is said.
    assert [one.level for one in check_sidecar(running(options(base), "api-sidecar-proxy"))] == [Level.SKIPPED]
