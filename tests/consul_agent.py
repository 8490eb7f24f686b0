"""A real Consul in development mode, on ports of its own, gone when its block ends."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import binaries
from tests.consul_http import AgentError, ConsulHttp
from tests.ports import free_ports

_LOOPBACK = "127.0.0.1"


@cache
def _help(binary: str) -> str:
    """What `consul agent` takes; 1.8 knows no gRPC port with TLS yet."""
    done = subprocess.run([binary, "agent", "-help"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


@cache
def accepts(line: str, hcl: str) -> bool:
    """Whether the Consul of that line takes this configuration; one with an unknown key does not start."""
    with tempfile.NamedTemporaryFile("w", prefix="hcc-consul-", suffix=".hcl") as file:
        file.write(hcl)
        file.flush()
        # For a server: `validate` wants a whole configuration, the key may be the only thing wrong with it.
        done = subprocess.run(
            [binaries.consul(line), "validate", file.name], capture_output=True, text=True, timeout=30, check=False
        )
    return "invalid config key" not in done.stdout + done.stderr


def acls(line: str, token: str) -> dict[str, Any]:
    """Configuration with ACLs that deny by default and a management token, whose key has two names."""
    for key in ("initial_management", "master"):
        tokens = {key: token, "agent": token}
        made = {"acl": {"enabled": True, "default_policy": "deny", "tokens": tokens}}
        if accepts(line, json.dumps(made)):
            return made
    raise AssertionError(f"Consul {line} takes no management token")


class DevAgent(ConsulHttp):
    """`consul agent -dev`: one server, Connect on, nothing on disk but its log.

    Args:
        hcl: more configuration, such as `acl { enabled = true }`.
        token: sent with each call of ours.
        line: such as `1.8`; empty for the Consul of the environment.
        deadline_s: how long it may take to become ready.
    """

    def __init__(self, hcl: str = "", token: str = "", line: str = "", deadline_s: float = 30.0) -> None:
        http, lan, wan, server = free_ports(4)
        super().__init__(f"{_LOOPBACK}:{http}", token)
        self._deadline_s = deadline_s
        self._directory = tempfile.TemporaryDirectory(prefix="hcc-consul-")
        self._log = Path(self._directory.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None
        ports = {"http": http, "serf-lan": lan, "serf-wan": wan, "server": server}
        self._binary = binaries.consul(line)
        off = ("grpc", "grpc-tls", "dns") if "-grpc-tls-port" in _help(self._binary) else ("grpc", "dns")
        self._command = [
            "agent",
            "-dev",
            "-node=dev",
            f"-bind={_LOOPBACK}",
            *(f"-{name}-port={port}" for name, port in ports.items()),
            *(f"-{name}-port=-1" for name in off),
            "-log-level=warn",
            "-hcl=disable_update_check = true leave_on_terminate = false",
            *((f"-hcl={hcl}",) if hcl else ()),
        ]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    def start(self) -> None:
        """Start it and wait until it has a leader and a CA."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._command], stdout=log, stderr=subprocess.STDOUT, env=env
            )
        self._wait_ready()

    def stop(self) -> None:
        """End it; all its state is lost."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def restart(self) -> None:
        """Stop and start on the same ports: a new cluster, with a new CA and nothing registered."""
        self.stop()
        self.start()

    def _clean_up(self) -> None:
        try:
            self.stop()
        finally:
            self._directory.cleanup()

    def _wait_ready(self) -> None:
        end = time.monotonic() + self._deadline_s
        seen: object = None
        while time.monotonic() < end:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                if self.ask("GET", "/v1/status/leader") and self.ask("GET", "/v1/agent/connect/ca/roots")["Roots"]:
                    return
            except (AgentError, OSError) as exc:
                seen = exc
            time.sleep(0.05)
        text = self._log.read_text(errors="replace")[-2000:]
        raise AssertionError(f"consul was not ready within {self._deadline_s:g} s: {seen}\n{text}")
