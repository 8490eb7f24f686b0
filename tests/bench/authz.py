"""`make bench-authz`: what authorisation costs, and how soon a changed intention is enforced; about three minutes.

Two pairs of sidecars alike but for one thing: the server of one checks intentions, that of the other is run with
`--intentions=off`. Rounds of both take turns in random order, and ratios count: everything shares one
machine. Callers that are new come straight to the public listeners, each with a certificate of its own, signed here
with the key that Consul's CA was given.
"""

from __future__ import annotations

import datetime as dt
import http.client
import json
import os
import random
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import binaries
from tests.bench.load import Load, connecting, kept_alive
from tests.bench.machine import load_average, machine
from tests.bench.memory import Member, cpu_s, family, pss_kib
from tests.bench.mesh import Agent, Pair, agent, pair, sidecar, wait_open
from tests.bench.origin import origin
from tests.bench.report import Cell, Report, Table

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "8"))
ROUND_S = 1.5
CONNECTIONS = 16
NEW_CALLERS = int(os.environ.get("BENCH_NEW_CALLERS", "1000"))
FLIPS = 25
WITH, WITHOUT = "with intentions", "without"
DAY = dt.timedelta(days=1)


@dataclass
class Way:
    """The server with or without intentions: where to call, whose processor time counts, what was measured."""

    pair: Pair
    members: tuple[Member, ...]
    directory: Path
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def note(self, load: Load, before_s: float) -> None:
        self.loads.append(load)
        self.cpu_us.append((cpu_s(self.members) - before_s) * 1e6 / max(1, load.done))


def main() -> None:
    """Run it, print the tables, write the file."""
    haproxy, consul = os.environ.get("HAPROXY_BIN") or binaries.haproxy_2_8(), binaries.consul()
    before = load_average()
    pairs = {
        (protocol, way): pair(protocol, way.partition(" ")[0])
        for protocol in ("tcp", "http")
        for way in (WITH, WITHOUT)
    }
    # Short, as unix sockets must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as name:
        folder = Path(name)
        with agent(consul, pairs.values(), folder) as running:
            tables = []
            issuer = Issuer(running)
            with _ways(haproxy, running, {way: pairs["tcp", way] for way in (WITH, WITHOUT)}, folder) as ways:
                tables.append(_loaded("New tcp connections, caller known", ways, connecting))
                tables.append(_new_callers(ways, issuer, folder))
                tables.append(_flips(ways[WITH].pair, running))
            with _ways(haproxy, running, {way: pairs["http", way] for way in (WITH, WITHOUT)}, folder) as ways:
                tables.append(_loaded("Http requests on kept-alive connections", ways, kept_alive))
                tables.append(_loaded("Http requests, each on a new connection of the client", ways, connecting))
    facts = {**machine(haproxy, consul), "load": f"{before} before, {load_average()} after"}
    settings: dict[str, Cell] = {
        "rounds": ROUNDS, "round_s": ROUND_S, "connections": CONNECTIONS, "new_callers": NEW_CALLERS, "flips": FLIPS,
    }  # fmt: skip
    report = Report("authz", facts, settings, tuple(tables))
    print(report.text())
    print(f"\nwritten to {report.write()}")


@contextmanager
def _ways(haproxy: str, agent: Agent, pairs: Mapping[str, Pair], folder: Path) -> Iterator[dict[str, Way]]:
    """Both pairs of sidecars, answering."""
    with ExitStack() as stack:
        ways = {}
        for name, one in pairs.items():
            more = () if name == WITH else ("--intentions=off",)
            stack.enter_context(origin(haproxy, one.app, folder))
            server = stack.enter_context(sidecar(one.server, one.server_stats, agent, haproxy, folder, *more))
            stack.enter_context(sidecar(one.client, one.client_stats, agent, haproxy, folder))
            ways[name] = Way(one, family(server.program.pid, str(server.directory)), server.directory)
        for way in ways.values():
            wait_open(way.pair.upstream)
        yield ways


def _loaded(title: str, ways: Mapping[str, Way], generate: object) -> Table:
    print(f"... {title}, {ROUNDS} rounds of each way", flush=True)
    assert callable(generate)
    for way in ways.values():
        way.loads, way.cpu_us = [], []
        generate(way.pair.upstream, CONNECTIONS, ROUND_S / 2)
    for _ in range(ROUNDS):
        for way in random.sample(list(ways.values()), len(ways)):
            before = cpu_s(way.members)
            way.note(generate(way.pair.upstream, CONNECTIONS, ROUND_S), before)
    return _table(title, ways)


def _table(title: str, ways: Mapping[str, Way]) -> Table:
    base = ways[WITHOUT]
    rows = []
    for name, way in ways.items():
        ratios = [one.per_second / other.per_second for one, other in zip(way.loads, base.loads, strict=True)]
        cpus = [one / other for one, other in zip(way.cpu_us, base.cpu_us, strict=True) if other]
        rows.append(
            (
                name,
                statistics.median(load.per_second for load in way.loads),
                sum(load.failed for load in way.loads),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                statistics.median(way.cpu_us),
                statistics.median(cpus),
            )
        )
    columns = ("server", "per s", "failed", "ratio", "min", "max", "CPU us each", "CPU ratio")
    note = (
        "Ratio: to the pair without intentions in the same round, median. CPU: of the server's sidecar, hcc included."
    )
    return Table(title, columns, tuple(rows), note)


class Issuer:
    """Signs certificates of callers with the key that Consul's CA now has."""

    def __init__(self, agent: Agent) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
        config = agent.get("/v1/connect/ca/configuration")
        config["Config"] |= {"PrivateKey": pem, "RootCert": ""}
        _put(agent.port, "/v1/connect/ca/configuration", config)
        self._domain, self.root = _root_of(agent, self._key.public_key())
        self._issuer = x509.load_pem_x509_certificate(self.root.encode()).subject
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._key_pem = self._leaf_key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        ).decode()

    def context(self, service: str, folder: Path) -> ssl.SSLContext:
        """A client with a certificate that nobody has seen."""
        now = dt.datetime.now(dt.UTC)
        uri = f"spiffe://{self._domain}/ns/default/dc/dc1/svc/{service}"
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._issuer)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        file = folder / "caller.pem"
        file.write_text(certificate.public_bytes(Encoding.PEM).decode() + self._key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(file)
        return context


def _root_of(agent: Agent, key: ec.EllipticCurvePublicKey) -> tuple[str, str]:
    """Trust domain and root with this key, once the agent has it: it answers from its cache, which follows later."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = agent.get("/v1/agent/connect/ca/roots")
        for root in found["Roots"]:
            if x509.load_pem_x509_certificate(root["RootCert"].encode()).public_key() == key:
                return found["TrustDomain"], root["RootCert"]
        time.sleep(0.05)
    raise AssertionError("the agent never had the root of the bench's key")


def _new_callers(ways: Mapping[str, Way], issuer: Issuer, folder: Path) -> Table:
    title = f"New mTLS connections, every caller new ({NEW_CALLERS} certificates a round, 50 services)"
    print(f"... {title}", flush=True)
    for way in ways.values():
        way.loads, way.cpu_us = [], []
    # The listeners take certificates of the new root as soon as the sidecars heard of it.
    time.sleep(3)
    for number in range(4):
        for way in random.sample(list(ways.values()), len(ways)):
            contexts = [issuer.context(f"caller{one % 50}", folder) for one in range(NEW_CALLERS)]
            before = cpu_s(way.members)
            load = _called(way.pair.server_public, contexts)
            if number:
                way.note(load, before)
    table = _table(title, ways)
    remembered = sum(1 for _ in (ways[WITH].directory / "identities.map").open())
    memory = sum(pss_kib(member.pid) for member in ways[WITH].members) / 1024
    note = f" HAProxy then remembered {remembered} certificates; the sidecar took {memory:.0f} MiB (PSS)."
    return Table(table.title, table.columns, table.rows, table.note + note)


def _called(port: int, contexts: list[ssl.SSLContext]) -> Load:
    """One request with each, four at a time."""
    cpu, begin = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        answered = sum(pool.map(lambda context: _answered(port, context), contexts))
    passed = time.perf_counter() - begin
    return Load(answered, len(contexts) - answered, passed, (time.process_time() - cpu) / passed)


def _answered(port: int, context: ssl.SSLContext) -> bool:
    # From an address of its own: the connections of the scene before still hold most local ports of 127.0.0.1.
    own = ("127.0.0.2", 0)
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), 5.0, source_address=own) as raw,
        context.wrap_socket(raw) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        return sock.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def _flips(one: Pair, agent: Agent) -> Table:
    """From an intention's write until the first refused, or allowed, connection."""
    print(f"... {FLIPS} flips of an intention", flush=True)
    times: dict[str, list[float]] = {"deny": [], "allow": []}
    for _ in range(FLIPS):
        for action, found in times.items():
            time.sleep(random.uniform(0.02, 0.1))
            source = {"Name": one.client, "Action": action}
            begin = time.perf_counter()
            _put(agent.port, "/v1/config", {"Kind": "service-intentions", "Name": one.server, "Sources": [source]})
            while _gets_in(one.upstream) is not (action == "allow"):
                assert time.perf_counter() < begin + 10, f"{action} was not enforced"
            found.append((time.perf_counter() - begin) * 1000)
    rows = tuple(
        (
            action,
            FLIPS,
            statistics.median(found),
            statistics.quantiles(found, n=100, method="inclusive")[98],
            max(found),
        )
        for action, found in times.items()
    )
    note = "From the start of the write to Consul to the end of the first connection it decided; one after the other."
    return Table(
        "Time until an intention is enforced", ("intention", "writes", "p50 ms", "p99 ms", "max ms"), rows, note
    )


def _gets_in(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        return sock.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def _put(port: int, path: str, body: object) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("PUT", path, json.dumps(body))
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, f"PUT {path}: {response.status} {answer!r}"
    finally:
        connection.close()


if __name__ == "__main__":
    main()
