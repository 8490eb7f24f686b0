"""The same way without hcc: two HAProxys, mutual TLS with Consul's certificates, nobody asked who may come in.

Configured by hand for speed: what is reached here is the most that hcc can reach. What hcc promises is promised here,
too: TLS 1.3, sessions in tickets (a cache of them would outlive a certificate that was replaced), and a request that
may be repeated survives a connection that the other side closes: that costs the client's side 2 us for each request.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.mesh import Agent, Pair
from tests.bench.programs import Program, started
from tests.ports import free_ports

_REUSE = """  http-reuse always
  retry-on conn-failure empty-response
"""
_ALPN = {"http": " alpn http/1.1", "tcp": ""}


@dataclass(frozen=True)
class Bare:
    """Both HAProxys, and where the application's client calls."""

    server: Program
    client: Program
    upstream: int


@dataclass(frozen=True)
class BarePair:
    """What two HAProxys in front of the application of `pair` need: certificates in `folder`, ports."""

    pair: Pair
    haproxy: str
    threads: int
    folder: Path
    upstream: int
    public: int

    def server(self) -> Program:
        """The running HAProxy of the server's side."""
        # With keys of one's own HAProxy seals a ticket for less than OpenSSL does with its own.
        bind = f"127.0.0.1:{self.public} {self._tls(self.pair.server)} tls-ticket-keys {self.folder}/tickets.keys"
        return self._run("server", bind, f"127.0.0.1:{self.pair.app}", self.public)

    def client(self) -> Program:
        """The running HAProxy of the client's side."""
        server = f"127.0.0.1:{self.public} {self._tls(self.pair.client)}"
        return self._run("client", f"127.0.0.1:{self.upstream}", server, self.upstream)

    def _run(self, side: str, bind: str, server: str, port: int) -> Program:
        name = f"bare-{self.pair.protocol}-{side}"
        config = self.folder / f"{name}.cfg"
        config.write_text(_proxy(self.pair.protocol, self.threads, bind, server))
        return started(name, [self.haproxy, "-db", "-f", str(config)], self.folder, port)

    def _tls(self, service: str) -> str:
        files = f"crt {self.folder}/{service}.pem ca-file {self.folder}/roots.pem"
        return f"ssl {files} verify required{_ALPN[self.pair.protocol]}"


def bare_pair(pair: Pair, agent: Agent, haproxy: str, threads: int, folder: Path) -> BarePair:
    """A pair that can be started, on free ports; its certificates are written."""
    for service in (pair.server, pair.client):
        leaf = agent.get(f"/v1/agent/connect/ca/leaf/{service}")
        _private(folder / f"{service}.pem", leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    _private(folder / "tickets.keys", "".join(f"{base64.b64encode(os.urandom(48)).decode()}\n" for _ in range(3)))
    roots = agent.get("/v1/agent/connect/ca/roots")["Roots"]
    (folder / "roots.pem").write_text("".join(root["RootCert"] for root in roots))
    return BarePair(pair, haproxy, threads, folder, *free_ports(2))


@contextmanager
def bare(pair: Pair, agent: Agent, haproxy: str, threads: int, folder: Path) -> Iterator[Bare]:
    """The running pair in front of the application of `pair`; ended afterwards."""
    both = bare_pair(pair, agent, haproxy, threads, folder)
    with both.server() as server, both.client() as client:
        yield Bare(server, client, both.upstream)


def _proxy(protocol: str, threads: int, bind: str, server: str) -> str:
    reuse = _REUSE if protocol == "http" else ""
    return f"""global
  hard-stop-after 1s
  nbthread {threads}
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode {protocol}
  timeout connect 5s
  timeout client 60s
  timeout server 60s
{reuse}frontend front
  bind {bind}
  default_backend back
backend back
  server one {server}
"""


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
