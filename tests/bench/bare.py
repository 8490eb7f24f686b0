"""The same way without hcc: two HAProxys, mutual TLS with Consul's certificates, nobody asked who may come in.

The configuration is made by hand after the one hcc writes (hcc/haproxy/render.py), without SPOE and intentions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.mesh import Agent, Pair
from tests.bench.programs import Program, free_ports, started

_ALPN = {"http": " alpn http/1.1", "tcp": ""}


@dataclass(frozen=True)
class Bare:
    """Both HAProxys, and where the application's client calls."""

    server: Program
    client: Program
    upstream: int


@contextmanager
def bare(pair: Pair, agent: Agent, haproxy: str, threads: int, folder: Path) -> Iterator[Bare]:
    """The running pair in front of the application of `pair`; ended afterwards."""
    upstream, public = free_ports(2)
    for service in (pair.server, pair.client):
        leaf = agent.get(f"/v1/agent/connect/ca/leaf/{service}")
        _private(folder / f"{service}.pem", leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    roots = agent.get("/v1/agent/connect/ca/roots")["Roots"]
    (folder / "roots.pem").write_text("".join(root["RootCert"] for root in roots))
    tls = _tls(folder, pair.server, pair.protocol), _tls(folder, pair.client, pair.protocol)
    server = _proxy(pair.protocol, threads, f"127.0.0.1:{public} {tls[0]}", f"127.0.0.1:{pair.app}")
    client = _proxy(pair.protocol, threads, f"127.0.0.1:{upstream}", f"127.0.0.1:{public} {tls[1]}")
    with ExitStack() as stack:
        programs = [
            stack.enter_context(_run(haproxy, name, text, port, folder))
            for name, text, port in (("bare-server", server, public), ("bare-client", client, upstream))
        ]
        yield Bare(programs[0], programs[1], upstream)


def _run(haproxy: str, name: str, text: str, port: int, folder: Path) -> Program:
    config = folder / f"{name}.cfg"
    config.write_text(text)
    return started(name, [haproxy, "-W", "-db", "-f", str(config)], folder, port)


def _tls(folder: Path, service: str, protocol: str) -> str:
    return f"ssl crt {folder}/{service}.pem ca-file {folder}/roots.pem verify required{_ALPN[protocol]}"


def _proxy(protocol: str, threads: int, bind: str, server: str) -> str:
    return f"""global
  hard-stop-after 1s
  nbthread {threads}
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-server-options ssl-min-ver TLSv1.2
defaults
  mode {protocol}
  timeout connect 5000ms
  timeout client 60000ms
  timeout server 60000ms
  option redispatch 1
  retries 3
frontend front
  bind {bind}
  default_backend back
backend back
  balance roundrobin
  server one {server}
"""


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
