"""The daemon under test as a real process in a namespace, and what can be asked of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.namespaces import Namespace
from tests.e2e.processes import Process
from tests.e2e.waiting import wait_until

SCRIPTS = Path(sys.executable).parent
HCC = str(SCRIPTS / "hcc")
GO_PROGRAM = str(SCRIPTS / "haproxy-consul-connect")
READY_S = 40.0
ACTORS = (
    "ConsulWatcher",
    "CertManager",
    "ConfigReconciler",
    "ProcessSupervisor",
    "SPOE",
    "SPOEPool",
    "TokenAgent",
    "Authoriser",
    "Verifier",
    "Admin",
)


class Sidecar:
    """One hcc. `words` is its whole command line (see `hcc_run` for the ordinary one)."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        words: tuple[str, ...],
        *,
        stats_port: int,
        state_base: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.namespace = namespace
        self.stats_host = "127.0.0.1"
        self.stats_port = stats_port
        self.state_base = state_base
        self._env = _clean_environment() | dict(env or {})
        directory.mkdir(parents=True, exist_ok=True)
        title = f"{Path(words[0]).name} {directory.name}"
        self.process = Process(title, namespace.command(*words), directory / "log", self._env)

    # Its life.

    def start(self) -> None:
        self.process.start()

    def wait_ready(self, deadline_s: float = READY_S) -> None:
        """Return when /ready answers 200; fail at once when the process ended."""

        def ready() -> bool:
            if (status := self.process.status()) is not None:
                raise RuntimeError(f"{self.process.title} ended with {status}:\n{self.process.log_tail()[-3000:]}")
            code, text = self.ready()
            assert code == 200, f"/ready answers {code}: {text}"
            return True

        wait_until(f"{self.process.title} to be ready", ready, deadline_s)

    def stop(self, deadline_s: float = 15.0) -> int:
        """Exit code after SIGTERM."""
        return self.process.stop(deadline_s)

    def kill(self) -> None:
        """SIGKILL; HAProxy and the SPOE workers go on."""
        self.process.kill()

    def hang_up(self) -> None:
        """SIGHUP: read the token file again."""
        self.process.signal(signal.SIGHUP)

    def clear(self) -> None:
        """Kill hcc, its SPOE workers and every HAProxy of its own: for clearing up, as draining takes time."""
        self.kill()
        ours = [pid for pid in self.namespace.pids() if self._is_ours(pid)]
        for pid in (*self.spoe_workers(), *ours):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # What it shows.

    def fetch(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and text of an admin page."""
        connection = self.namespace.http(self.stats_port, self.stats_host, timeout_s=5)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready(self) -> tuple[int, str]:
        return self.fetch("/ready")

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, as written there."""
        _, text = self.fetch("/metrics")
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def log_text(self) -> str:
        return self.process.log_text()

    def actors(self) -> dict[str, dict[str, Any]]:
        """What `hcc actors --json` prints, by name."""
        done = self.command("actors", "--json")
        assert done.returncode == 0, f"hcc actors: exit {done.returncode}: {done.stderr}"
        return {actor["name"]: actor for actor in json.loads(done.stdout)}

    def restart(self, actor: str) -> None:
        """`hcc restart NAME`."""
        done = self.command("restart", actor)
        assert done.returncode == 0, f"hcc restart {actor}: exit {done.returncode}: {done.stdout}{done.stderr}"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another hcc command against this one's control socket."""
        line = [HCC, *words, "--state-dir", str(self.state_base)]
        return subprocess.run(line, capture_output=True, text=True, timeout=20, check=False, env=self._env)

    def wait_rest(self) -> None:
        """Return when its HAProxy runs what is wanted, and that is on disk: no reload is on its way."""
        wait_until("rest", lambda: self.command("plan").stdout.startswith("nothing to do"))

    # Its HAProxy.

    @property
    def state_dir(self) -> Path:
        """The directory of this proxy under the state directory (which has only this one)."""
        found = [path for path in self.state_base.iterdir() if path.is_dir()] if self.state_base.is_dir() else []
        assert len(found) == 1, f"expected one proxy's directory in {self.state_base}, found {found}"
        return found[0]

    def runtime(self, command: str) -> str:
        """HAProxy's answer to one command on its stats socket. Raises OSError where none comes, as of one that dies."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect(str(self.state_dir / "stats.sock"))
            sock.sendall(f"{command}\n".encode())
            parts = []
            while part := sock.recv(65536):
                parts.append(part)
        if not parts:
            raise ConnectionError(f"HAProxy closed without an answer to {command!r}")
        return b"".join(parts).decode()

    def worker_pid(self) -> int:
        """The HAProxy worker that serves now; changes with every reload."""
        lines = (line.split(": ", 1) for line in self.runtime("show info").splitlines() if ": " in line)
        return int(dict(lines)["Pid"])

    def haproxies(self) -> tuple[int, ...]:
        """HAProxy processes that use this state directory: a master, its workers, whoever checks a text."""
        return tuple(pid for pid in self.namespace.pids() if "-W" in _words(pid) and self._is_ours(pid))

    def haproxy_masters(self) -> tuple[int, ...]:
        """HAProxy master processes that use this state directory."""
        words = {pid: _words(pid) for pid in self.namespace.pids()}
        # The Data Plane API has texts checked by `haproxy -c -W`.
        ours = {pid for pid, found in words.items() if "-W" in found and "-c" not in found and self._is_ours(pid)}
        # A worker of before that ends just now has no parent any more.
        return tuple(pid for pid in ours if (parent := _parent(pid)) and parent not in ours)

    def spoe_workers(self) -> tuple[int, ...]:
        """Processes that hold a socket for HAProxy to ask at, whoever forked them."""
        return tuple(pid for pid in self.namespace.pids() if _is_spoe(pid) and _holds_socket(pid, str(self.state_base)))

    def zygotes(self) -> tuple[int, ...]:
        """The processes that fork SPOE workers: one."""
        return tuple(pid for pid in self.descendants() if _is_spoe(pid) and _parent(pid) == self.process.pid)

    def descendants(self) -> frozenset[int]:
        """Processes that hcc started, directly or not, while hcc lives."""
        parents = {pid: _parent(pid) for pid in self.namespace.pids()}
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
            found |= more
        return frozenset(found - {self.process.pid})

    def _is_ours(self, pid: int) -> bool:
        return any(str(self.state_base) in word for word in _words(pid))


def hcc_run(service_id: str, haproxy: str, stats_port: int, state_base: Path, *more: str) -> tuple[str, ...]:
    """The command line of an ordinary sidecar."""
    return (
        *(HCC, "run", "--sidecar-for", service_id, "--haproxy", haproxy, "--log-level", "debug"),
        *("--stats-addr", f"127.0.0.1:{stats_port}", "--state-dir", str(state_base), "--drain-timeout", "3"),
        *more,
    )


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("CONSUL_", "CONNECT_", "HCC_"))}


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _is_spoe(pid: int) -> bool:
    return any("hcc.spoe" in word for word in _words(pid))


def _holds_socket(pid: int, directory: str) -> bool:
    """Whether the process has a unix socket open that is bound below the directory."""
    try:
        rows = (line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:])
        bound = {f"socket:[{row[6]}]" for row in rows if len(row) > 7 and row[7].startswith(directory)}
        return any(str(link.readlink()) in bound for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
