"""The fake Data Plane API 1.x answers as the real 1.2.5 does."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from hcc.haproxy.dataplane_client import _UnixAdapter
from hcc.haproxy.dataplane_process import DataplaneProcess
from hcc.haproxy.dataplane_program import find_dataplane
from hcc.haproxy.dataplane_text import differences, version_of, with_user
from hcc.haproxy.layout import layout
from hcc.haproxy.reload_helper import Purpose, want
from hcc.haproxy.takeover import refusal
from hcc.mesh.secret import Secret
from tests.binaries import dataplaneapi, haproxy_2_6
from tests.fake_dataplane import FakeDataplane
from tests.haproxy_stage import wait_until

pytestmark = pytest.mark.integration

PASSWORD = "made-up"
START = with_user("global\n  maxconn 10\n", PASSWORD)
GOOD = with_user(
    """\
global
  maxconn 20

defaults
  mode tcp
  timeout connect 1s
  timeout client 1s
  timeout server 1s

backend two
  server b 127.0.0.1:2

backend one
  server a 127.0.0.1:1

frontend front
  bind 127.0.0.1:10001
  default_backend one
""",
    PASSWORD,
)
BAD = GOOD.replace("maxconn 20", "nonsense 20")
DROPPED = GOOD.replace("server a 127.0.0.1:1", "server a 127.0.0.1:1 pool-low-conn 64")
RAW = "/services/haproxy/configuration/raw"


class Subject:
    """One Data Plane API and its file; HAProxy is only asked to check."""

    def __init__(self, directory: Path, *, fake: bool) -> None:
        self.layout = layout(str(directory))
        self.path = Path(self.layout.config)
        self.path.write_text(f"# _version=1\n{START}", encoding="utf-8")
        self._fake = self._process = None
        if fake:
            self._fake = FakeDataplane(
                1, self.layout.dataplane_socket, self.layout.config, reload=self._reload, check=self._check
            )
        else:
            self._process = DataplaneProcess(
                find_dataplane(dataplaneapi()), haproxy_2_6(), self.layout, Secret(PASSWORD)
            )
            try:
                self._process.launch()
                wait_until(self._answers, "the Data Plane API answers")
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        if self._fake is not None:
            self._fake.close()
        if self._process is not None:
            self._process.stop()

    @property
    def file(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def ask(
        self, method: str, path: str, body: str = "", password: str = PASSWORD, kind: str = "text/plain"
    ) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", _UnixAdapter(self.layout.dataplane_socket))
            return session.request(
                method,
                f"http://dataplane{path}",
                data=body.encode() or None,
                headers={"Content-Type": kind, "Connection": "close"} if body else {"Connection": "close"},
                auth=("hcc", password),
                timeout=20,
            )

    def post(self, text: str, version: int | None = None, query: str = "force_reload=true") -> requests.Response:
        version = version_of(self.file) if version is None else version
        return self.ask("POST", f"/v1{RAW}?version={version}&{query}", text)

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return self.ask("GET", "/v1/info").ok
        return False

    def _check(self, text: str) -> None:
        candidate = self.path.with_suffix(".candidate")
        candidate.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [haproxy_2_6(), "-c", "-f", str(candidate)], capture_output=True, text=True, check=False, timeout=20
        )
        candidate.unlink()
        if done.returncode:
            raise refusal("refused", done.stderr, text, "check")

    def _reload(self) -> None:
        if self.failing.exists():
            raise RuntimeError("nobody listens")

    @property
    def failing(self) -> Path:
        """While it is there, a reload is demanded of a HAProxy that does not run."""
        return Path(self.layout.wanted)


@pytest.fixture(params=["fake", "1.2.5"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made = Subject(tmp_path, fake=request.param == "fake")
    try:
        yield made
    finally:
        made.close()


def test_only_its_own_generation_answers(subject: Subject) -> None:
    assert [subject.ask("GET", f"/v{number}/info").status_code for number in (1, 2, 3)] == [200, 404, 404]


def test_a_forced_post_is_201_and_counts_the_version(subject: Subject) -> None:
    answer = subject.post(GOOD)
    assert (answer.status_code, answer.headers.get("Reload-ID")) == (201, None)
    assert version_of(subject.file) == 2
    assert not differences(GOOD, subject.file)


def test_sections_are_sorted_behind_the_version_line(subject: Subject) -> None:
    subject.post(GOOD)
    assert subject.file.startswith("# _version=2\n")
    heads = [line.strip() for line in subject.file.splitlines() if line[:1].isalpha()]
    assert heads == ["global", "defaults", "userlist hcc", "frontend front", "backend one", "backend two"]


def test_a_post_without_force_is_202_and_its_reload_has_an_end(subject: Subject) -> None:
    # What 1.2 does not know it ignores without a word.
    answer = subject.post(GOOD, query="skip_reload=true")
    assert answer.status_code == 202
    path = f"/v1/services/haproxy/reloads/{answer.headers['Reload-ID']}"
    wait_until(lambda: subject.ask("GET", path).json().get("status") == "succeeded", "the reload succeeds")


def test_a_wrong_version_is_409_and_names_the_right_one(subject: Subject) -> None:
    answer = subject.post(GOOD, version=77)
    assert answer.status_code == 409
    assert "Version in configuration file is 1," in answer.json()["message"]
    assert not differences(START, subject.file)


def test_a_text_that_haproxy_refuses_is_400_and_the_file_stays(subject: Subject) -> None:
    answer = subject.post(BAD)
    assert answer.status_code == 400
    assert "nonsense" in answer.json()["message"]
    assert not differences(START, subject.file)


def test_a_failed_reload_is_400_and_the_bad_text_stays(subject: Subject) -> None:
    want(subject.layout, Purpose.RELOAD, GOOD)
    answer = subject.post(GOOD)
    assert answer.status_code == 400
    assert "nobody listens" in answer.json()["message"]
    assert not differences(GOOD, subject.file)


def test_a_server_option_it_does_not_know_is_dropped_behind_a_201(subject: Subject) -> None:
    assert subject.post(DROPPED).status_code == 201
    assert "pool-low-conn" not in subject.file
    assert not differences(GOOD, subject.file)


def test_a_wrong_password_or_kind_of_content_is_refused(subject: Subject) -> None:
    target = f"/v1{RAW}?version=1&force_reload=true"
    assert subject.ask("POST", target, GOOD, password="other").status_code == 401
    assert subject.ask("POST", target, GOOD, kind="application/json").status_code == 415
    assert not differences(START, subject.file)
