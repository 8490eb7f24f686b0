"""Consul's built-in proxy, run for the same services as the sidecars of hcc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.mesh import Agent
from tests.bench.programs import Program, started


@contextmanager
def builtin(service: str, port: int, agent: Agent, consul: str, folder: Path) -> Iterator[Program]:
    """`consul connect proxy`, listening on its port; ended afterwards."""
    command = [
        consul, "connect", "proxy", "-sidecar-for", service, "-http-addr", agent.address, "-log-level", "err",
    ]  # fmt: skip
    with started(f"builtin-{service}", command, folder, port) as program:
        yield program
