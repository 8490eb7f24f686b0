"""Record what real HAProxys send to an agent: `python -m tests.protocol.capture [BRANCH ..]` writes captured/*.hex.

Each file is one connection, one frame a line, as it came: a session (a greeting and three questions), and a health
check. `deploy/bootstrap --tests --print-env` names the binaries.
"""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hcc.spoe.caller import Asked, answer_actions
from hcc.spoe.connection import Connection
from hcc.spoe.frames import LENGTH_BYTES
from tests import binaries
from tests.integration.spoe_frontend import running_frontend, wait_for
from tests.spoe_certificates import Authority
from tests.spop_frames import ARGUMENTS, BRANCHES, CAPTURED, MODES, hello_of

CALLERS = ("web", "db", "billing")
ROUNDS = 5


class Recorder(socketserver.ThreadingUnixStreamServer):
    """An agent that lets everybody in and keeps what it was sent: `checks` and `sessions`, a bytearray a connection."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Recording)
        self.checks: list[bytearray] = []
        self.sessions: list[bytearray] = []


class _Recording(socketserver.BaseRequestHandler):
    request: socket.socket
    server: Recorder

    def handle(self) -> None:
        connection, received = Connection(), bytearray()
        while not connection.finished and (data := self.request.recv(65536)):
            if not received:
                # Whether HAProxy only looks after us stands in its hello, which comes in one piece.
                (self.server.checks if b"healthcheck" in hello_of(data) else self.server.sessions).append(received)
            received += data
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, Asked):
                    connection.acknowledge(event.ids, answer_actions(True, ""))
            self.request.sendall(connection.data_to_send())


def frames(stream: bytes | bytearray) -> list[bytes]:
    """The frames of a connection, length prefixes included."""
    found = []
    while stream:
        end = LENGTH_BYTES + int.from_bytes(stream[:LENGTH_BYTES], "big")
        found.append(bytes(stream[:end]))
        stream = stream[end:]
    return found


def record(branch: str, mode: str, directory: Path) -> None:
    """Write the session and the check of one HAProxy in one mode."""
    authority, binary, path = Authority(), binaries.haproxy(branch), directory / "agent.sock"
    with Recorder(path) as agent:
        threading.Thread(target=agent.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with running_frontend(binary, mode, directory / "haproxy", authority, (str(path),)) as frontend:
                wait_for("a health check", lambda: agent.checks)
                # HAProxy may spread its first questions over several connections.
                for _ in range(ROUNDS):
                    answers = [frontend.ask(authority.service(caller)) for caller in CALLERS]
                    assert answers == ["allowed"] * len(CALLERS), f"HAProxy {branch}, {mode}: {answers}"
        finally:
            agent.shutdown()
    wanted = 1 + len(CALLERS)
    session = next(found for found in map(frames, agent.sessions) if len(found) >= wanted)[:wanted]
    version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    message = f"mode {mode}, event on-frontend-{mode}-request, message caller, args {ARGUMENTS}"
    for kind, found, what in (
        ("session", session, "the start of one connection, as it came"),
        ("check", frames(agent.checks[0]), "health check by option spop-check"),
    ):
        lines = [
            f"# HAProxy {version}, {what}; one frame a line",
            f"# {message}",
            *(part.hex() for part in found),
        ]
        (CAPTURED / f"haproxy-{branch}-{mode}-{kind}.hex").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or BRANCHES:
        for mode in MODES:
            with tempfile.TemporaryDirectory(prefix="hcc-capture-") as directory:
                record(wanted, mode, Path(directory))
