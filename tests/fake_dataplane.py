"""A Data Plane API that is none, of each generation: as real to a client as 1.2.5 and the fact sheet say.

Held against the real 1.2.5 by tests/integration/test_dataplane_contract.py; beyond it, as
reference/dataplane-api.md says of 2.x and 3.x.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECTIONS = ("global", "defaults", "userlist", "frontend", "backend")
RELOAD_ID = "2026-01-02-1"


class RefusalError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeDataplane:
    """Serves one generation on a unix socket until `close`.

    Args:
        reload: the reload command; what it raises is a failed reload.
        check: raises what `haproxy -c` would say.
        delayed: answer 202 at once and reload later, whatever is asked.
    """

    def __init__(
        self,
        generation: int,
        socket_path: str,
        config: str,
        *,
        reload: Callable[[], object] = lambda: None,
        check: Callable[[str], None] = lambda text: None,
        delayed: bool = False,
    ) -> None:
        self.generation = generation
        self.config = Path(config)
        self.version = self._file_version()
        self.posts: list[str] = []
        self._reload, self._check, self.delayed = reload, check, delayed
        self._reloads: dict[str, dict[str, Any]] = {}
        self._later: list[threading.Timer] = []
        self._last_good = self.config.read_text(encoding="utf-8")
        fake = self

        class Handler(_Handler):
            there = fake

        self._server = _Server(socket_path, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        for timer in self._later:
            timer.cancel()
            timer.join(5)

    def answer(self, method: str, target: str, headers: dict[str, str], body: str) -> tuple[int, dict[str, str], str]:
        """Status, headers and body for one request."""
        parts = urlsplit(target)
        base, path = parts.path[:3], parts.path[3:]
        if base != f"/v{self.generation}":
            raise RefusalError(404, f"path {parts.path} was not found")
        self._authorise(headers.get("authorization", ""))
        if path == "/info":
            return 200, {}, json.dumps({"api": {"version": "dev.dirty"}})
        path = path.removeprefix("/services/haproxy")
        if path == "/configuration/raw" and method == "POST":
            return self._post(parse_qs(parts.query), headers.get("content-type", ""), body)
        if path == "/configuration/raw":
            return self._read()
        if path == "/configuration/version" and self.generation > 1:
            return 200, {}, str(self.version)
        if path.startswith("/reloads/") and path.removeprefix("/reloads/") in self._reloads:
            return 200, {}, json.dumps(self._reloads[path.removeprefix("/reloads/")])
        raise RefusalError(404, f"path {parts.path} was not found")

    def _authorise(self, header: str) -> None:
        found = re.search(r"user (\S+) insecure-password (\S+)", self.config.read_text(encoding="utf-8"))
        expected = ":".join(found.groups()) if found else ""
        if header != f"Basic {base64.b64encode(expected.encode()).decode()}":
            raise RefusalError(401, "unauthenticated for invalid credentials")

    def _read(self) -> tuple[int, dict[str, str], str]:
        lines = self.config.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("# _"))
        if self.generation == 3:
            return 200, {"Configuration-Version": str(self.version)}, text
        return 200, {}, json.dumps({"_version": self.version, "data": text})

    def _post(self, query: dict[str, list[str]], kind: str, text: str) -> tuple[int, dict[str, str], str]:
        if kind != "text/plain":
            raise RefusalError(415 if self.generation == 1 else 400, f"unsupported media type {kind}")
        given = int(query.get("version", ["0"])[0])
        if given != self.version:
            raise RefusalError(409, f"15: Version in configuration file is {self.version}, given version is {given}")
        try:
            self._check(text)
        except Exception as exc:
            raise RefusalError(400, f'14: ERR transactionId=0 \nmsg="{exc}"') from exc
        self.posts.append(text)
        self.version += 1
        self.config.write_text(self._rewritten(text), encoding="utf-8")
        forced = query.get("force_reload") == ["true"] and not self.delayed
        if not forced:
            self._reloads[RELOAD_ID] = {"id": RELOAD_ID, "status": "in_progress"}
            self._later.append(threading.Timer(0.1, self._late))
            self._later[-1].start()
            return 202, {"Reload-Id": RELOAD_ID}, text
        self._carry_out()
        return 201, {}, text

    def _carry_out(self) -> None:
        try:
            self._reload()
        except Exception as exc:
            if self.generation > 1:
                self.config.write_text(self._last_good, encoding="utf-8")
            raise RefusalError(400, f"Reload failed: exit status 1, {exc}") from exc
        self._last_good = self.config.read_text(encoding="utf-8")

    def _late(self) -> None:
        try:
            self._carry_out()
        except RefusalError as exc:
            self._reloads[RELOAD_ID] |= {"status": "failed", "response": str(exc)}
        else:
            self._reloads[RELOAD_ID] |= {"status": "succeeded"}

    def _rewritten(self, text: str) -> str:
        """Sections in its own order; 1.x drops what it does not know, 3.x names what has no name."""
        sections = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)
        body = "\n".join(f"{part.strip()}\n" for part in sorted(sections, key=_place) if part.strip())
        if self.generation == 1:
            body = re.sub(r" pool-low-conn \d+", "", body)
            return f"# _version={self.version}\n\n{body}"
        if self.generation == 3:
            body = re.sub(r"^defaults$", "defaults unnamed_defaults_1", body, flags=re.MULTILINE)
        digest = hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()
        return f"# _md5hash={digest}\n# _version={self.version}\n\n{body}"

    def _file_version(self) -> int:
        found = re.search(r"^# _version=(\d+)", self.config.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) if found else 1


def _place(section: str) -> tuple[int, str]:
    words = section.split()
    return (SECTIONS.index(words[0]), words[1] if len(words) > 1 else "") if words else (-1, "")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    there: FakeDataplane

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            status, extra, text = self.there.answer(self.command, self.path, headers, body)
        except RefusalError as exc:
            status, extra, text = exc.status, {}, json.dumps({"code": exc.status, "message": str(exc)})
        data = text.encode()
        self.send_response(status)
        for name, value in {**extra, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _serve  # noqa: N815 - named by http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        pass
