"""The Data Plane API over its unix socket: one operation, posting a whole text.

Source: reference/dataplane-api.md sections 1, 1a, 3 and 4.4.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from hcc.haproxy.control import ControlError
from hcc.haproxy.dataplane_text import USER
from hcc.mesh.secret import Secret

GENERATIONS = (3, 2, 1)
# 2.9 and newer wait up to 30 s for a HAProxy that does not run before they listen.
READY_TIMEOUT_S = 40.0
READ_TIMEOUT_S = 5.0
# A check, and a reload with its end, of a large text.
WRITE_TIMEOUT_S = 90.0
RELOAD_TIMEOUT_S = 60.0
# One that does not run, or should have answered long ago, is waited for no longer: it may be about to be started again.
AGAIN_TIMEOUT_S = 0.5
POLL_S = 0.05
TRIES = 3
_CONFLICT = re.compile(r"(?:file is|version is|expected) (\d+)")


class DataplaneError(ControlError):
    """The Data Plane API cannot be reached, or refused."""


class AnswerLostError(DataplaneError):
    """It was given a configuration and said nothing: its reload command may have run, or run still."""


class DataplaneClient:
    """Talks to one Data Plane API, of whatever generation answers.

    Args:
        socket_path: where it listens.
        password: by which we log in.
        is_starting: whether it can be expected to answer within `READY_TIMEOUT_S` of its launch.
    """

    def __init__(self, socket_path: str, password: Secret, is_starting: Callable[[], bool]) -> None:
        self._path = socket_path
        self._is_starting = is_starting
        self._auth = (USER, password.reveal())
        self._generation = 0

    def generation(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """1, 2 or 3, as soon as one of their paths answers; one that was just started gets the time it needs.

        Raises:
            DataplaneError: nobody answers within the time, nor is anybody about to.
        """
        began = time.monotonic()
        while True:
            try:
                self._generation = self._probed()
            except DataplaneError:
                if time.monotonic() - began > (timeout_s if self._is_starting() else min(timeout_s, AGAIN_TIMEOUT_S)):
                    raise
                time.sleep(POLL_S)
            else:
                return self._generation

    def post(self, text: str, version: int) -> None:
        """Let it check, write and reload; returns when all of it is done.

        Args:
            text: of the whole configuration.
            version: in the head of the file; when that is not its own idea, it says which is.

        Raises:
            AnswerLostError: it does not say what came of it.
            DataplaneError: it cannot be reached or refused, or HAProxy did; what the file holds then is open.
        """
        path = f"/v{self.generation()}/services/haproxy/configuration/raw"
        answer = self._post(path, version, text)
        for _ in range(TRIES):
            if answer.status_code != requests.codes.conflict:
                break
            version = self._its_version(answer, version)
            answer = self._post(path, version, text)
        if not answer.ok:
            raise DataplaneError(f"the Data Plane API refuses the configuration: {_message(answer)}")
        reload_id = answer.headers.get("Reload-ID", "")
        if reload_id:
            self._follow(reload_id)

    def _post(self, path: str, version: int, text: str) -> requests.Response:
        try:
            return self._ask("POST", f"{path}?force_reload=true&version={version}", WRITE_TIMEOUT_S, text.encode())
        except DataplaneError as exc:
            raise AnswerLostError(str(exc)) from exc

    def _probed(self) -> int:
        # The one that answered last first: another program may have been started since.
        known = sorted(GENERATIONS, key=lambda generation: generation != self._generation)
        found = next((generation for generation in known if self._is(generation)), 0)
        if not found:
            raise DataplaneError(
                "expected the Data Plane API to answer at /v1, /v2 or /v3, none does with our password"
            )
        return found

    def _is(self, generation: int) -> bool:
        answer = self._ask("GET", f"/v{generation}/info", READ_TIMEOUT_S)
        if answer.status_code not in (requests.codes.ok, requests.codes.not_found, requests.codes.unauthorized):
            raise DataplaneError(f"the Data Plane API answers {answer.status_code}: {_message(answer)}")
        return bool(answer.ok)

    def _its_version(self, conflict: requests.Response, tried: int) -> int:
        named = _CONFLICT.search(_message(conflict))
        if named and int(named[1]) != tried:
            return int(named[1])
        answer = self._ask("GET", f"/v{self._generation}/services/haproxy/configuration/version", READ_TIMEOUT_S)
        if not (answer.ok and answer.text.strip().isdigit()):
            raise DataplaneError(f"the Data Plane API wants another version than {tried}: {_message(conflict)}")
        return int(answer.text)

    def _follow(self, reload_id: str) -> None:
        """Until a reload that was put off has its end."""
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self._ask("GET", f"/v{self._generation}/services/haproxy/reloads/{reload_id}", READ_TIMEOUT_S)
            found = _fields(answer)
            if found.get("status") == "succeeded":
                return
            if found.get("status") == "failed" or answer.status_code == requests.codes.not_found:
                raise DataplaneError(f"the reload failed: {found.get('response') or _message(answer)}")
            time.sleep(POLL_S)
        raise DataplaneError(f"reload {reload_id} has no end after {RELOAD_TIMEOUT_S:.0f} s")

    def _ask(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> requests.Response:
        # Its idle connections die between changes: each exchange has its own.
        headers = {"Content-Type": "text/plain", "Connection": "close"} if body is not None else {"Connection": "close"}
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", _UnixAdapter(self._path))
            try:
                return session.request(
                    method, f"http://dataplane{path}", data=body, headers=headers, auth=self._auth, timeout=timeout_s
                )
            except requests.RequestException as exc:
                raise DataplaneError(f"the Data Plane API does not answer: {exc}") from exc


class _Connection(HTTPConnection):
    path: ClassVar[str]

    def _new_conn(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout if isinstance(self.timeout, int | float) else WRITE_TIMEOUT_S)
            made.connect(self.path)
        except BaseException:
            made.close()
            raise
        return made


class _UnixAdapter(HTTPAdapter):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = HTTPConnectionPool("dataplane", maxsize=1)
        self._pool.ConnectionCls = type("Connection", (_Connection,), {"path": path})

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,
        proxies: Mapping[str, str] | None = None,
        cert: tuple[str, str] | str | None = None,
    ) -> HTTPConnectionPool:
        del request, verify, proxies, cert
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


def _fields(answer: requests.Response) -> dict[str, object]:
    try:
        found = json.loads(answer.text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(answer: requests.Response) -> str:
    return str(_fields(answer).get("message") or answer.text.strip()[:500] or f"status {answer.status_code}")
