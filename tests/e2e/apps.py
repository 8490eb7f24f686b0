"""Applications started in a namespace."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e.namespaces import Namespace
from tests.e2e.processes import Process
from tests.e2e.waiting import wait_until


class App:
    """One `tests.e2e.app_server`. `name` is what it says when asked who it is."""

    def __init__(self, namespace: Namespace, directory: Path, kind: str, port: int, name: str) -> None:
        self.namespace = namespace
        self.port = port
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        command = namespace.command(sys.executable, "-m", "tests.e2e.app_server", kind, str(port), name)
        self.process = Process(f"app {name}", command, directory / "app.log")

    def start(self) -> None:
        self.process.start()

    def wait_ready(self) -> None:
        wait_until(f"{self.process.title} to listen", lambda: self.namespace.listening(self.port))

    def stop(self) -> None:
        self.process.end(2)
