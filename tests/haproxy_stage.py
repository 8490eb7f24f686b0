"""A real HAProxy under `DirectControl`, with peers and an application around it; all of it is gone at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hcc.haproxy.binary import probe
from hcc.haproxy.caller_maps import CallerMaps
from hcc.haproxy.capabilities import capabilities_of
from hcc.haproxy.control import Applied, Control
from hcc.haproxy.desired import desired as desired_of
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.direct import DirectControl
from hcc.haproxy.execution import SocketControl
from hcc.haproxy.files import private_directory, write_private
from hcc.haproxy.layout import layout
from hcc.haproxy.leaf_map import LeafMap
from hcc.haproxy.model import CaFile, CertificateFile, GlobalOptions
from hcc.haproxy.plan import Actual, Install, Plan, plan
from hcc.haproxy.process import HAProxyProcess
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.replies import ReplyError, parse_info
from hcc.haproxy.runtime import MasterSocket, RuntimeSocket, RuntimeSocketError, lives
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Snapshot
from hcc.settings import Enforcement
from tests.binaries import HAPROXY_BRANCHES, haproxy
from tests.pki import Authority, IssuedLeaf, service_uri

BINARIES: dict[str, Callable[[], str]] = {branch: partial(haproxy, branch) for branch in HAPROXY_BRANCHES}
DEADLINE_S = 15.0


def wait_until(true: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def _answers(socket_: RuntimeSocket) -> bool:
    with contextlib.suppress(RuntimeSocketError):
        return bool(socket_.send("show proc"))
    return False


class Server:
    """A TCP server in a thread: greets each connection with its name, then echoes; counts callers' serials."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.accepted = 0
        self.caller_serials: list[str] = []
        self.resumed: list[bool] = []
        self.open: list[socket.socket] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *self._threads):
            thread.join(DEADLINE_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
                assert isinstance(connection, ssl.SSLSocket)
                self.resumed.append(bool(connection.session_reused))
                self.caller_serials.append(str((connection.getpeercert() or {}).get("serialNumber")))
            self.open.append(connection)
            stack.callback(self.open.remove, connection)
            self.talk(connection)

    def talk(self, connection: socket.socket) -> None:
        connection.sendall(f"{self.name}\n".encode())
        while data := connection.recv(65536):
            connection.sendall(data)


class HttpServer(Server):
    """Answers each http/1.1 request with its name and the request head it got."""

    def talk(self, connection: socket.socket) -> None:
        head = b""
        while chunk := connection.recv(65536):
            head += chunk
            while b"\r\n\r\n" in head:
                request, _, head = head.partition(b"\r\n\r\n")
                body = self.name.encode() + b"\n" + request
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Stage:
    """One HAProxy with its files. `converge` does what the reconciler does."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="hcc-t-")
        self.layout = layout(self.directory)
        private_directory(self.directory)
        self.authority = Authority()
        self.authorities = [self.authority]
        self.leaf = self.authority.leaf(service_uri("server"))
        self.capabilities = capabilities_of(probe(binary))
        CallerMaps(self.layout, self.capabilities).prepare(running=False)
        LeafMap(self.layout, self.capabilities).prepare(running=False)
        self.control: SocketControl = DirectControl(binary, self.layout, self.capabilities)
        self.process = HAProxyProcess(binary, self.layout)
        self.servers: list[Server] = []

    def close(self) -> None:
        for server in self.servers:
            server.close()
        if self.process.pid:
            self.process.kill()
            wait_until(self.process.reap, "HAProxy ends")
        self._end_left_over()
        shutil.rmtree(self.directory)

    def _end_left_over(self) -> None:
        """Kill every HAProxy of this directory that a test let go and did not adopt again, as when it failed."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if self.layout.config.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def peer(
        self, name: str, *, http: bool = False, leaf: IssuedLeaf | None = None, kind: type[Server] | None = None
    ) -> Server:
        """A remote sidecar with a certificate of our authority, which demands ours."""
        context = self.context(ssl.PROTOCOL_TLS_SERVER, leaf or self.authority.leaf(service_uri("web")))
        context.verify_mode = ssl.CERT_REQUIRED
        return self._kept((kind or (HttpServer if http else Server))(name, context))

    def app(self, name: str = "app", *, http: bool = False) -> Server:
        return self._kept(HttpServer(name) if http else Server(name))

    def context(self, protocol: int, leaf: IssuedLeaf | None) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.load_verify_locations(cadata="".join(a.pem for a in self.authorities))
        if leaf is not None:
            with tempfile.NamedTemporaryFile("w", dir=self.directory, suffix=".pem") as file:
                file.write(leaf.combined_pem)
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def certificates(self) -> Certificates:
        """The present leaf and roots, written as the certificate manager does."""
        ca_pem = "".join(authority.pem for authority in self.authorities)
        write_private(self.layout.roots, ca_pem)
        write_private(self.layout.leaf, self.leaf.combined_pem)
        fingerprints = frozenset(authority.fingerprint for authority in self.authorities)
        return Certificates(
            leaf=CertificateFile(
                self.layout.leaf, self.leaf.fingerprint, Secret(self.leaf.combined_pem), service_uri("server")
            ),
            ca=CaFile(self.layout.roots, fingerprints, ca_pem),
        )

    def rendered(
        self,
        snapshot: Snapshot,
        control: Control | None = None,
        *,
        intentions: Enforcement = Enforcement.OFF,
        callers: tuple[str, ...] = (),
        access_log: str = "",
    ) -> Rendered:
        """What the reconciler would want of `control`, ours unless another is given."""
        options = Options(
            process=GlobalOptions(
                stats_socket=self.layout.stats_socket,
                state_directory=self.directory,
                hard_stop_after_ms=10_000,
                max_connections=500,
                access_log=access_log,
            ),
            agent_sockets=(self.layout.agent_socket(1), self.layout.agent_socket(2)),
            identities=self.layout.identities,
            verdicts=self.layout.verdicts,
            rules=self.layout.rules,
            ticket_keys=self.layout.ticket_keys,
            ticket_secret=Secret("of a test"),
            leaves=self.layout.leaves,
            token_socket=self.layout.token_socket,
            intentions=intentions,
        )
        wanted = desired_of(snapshot, options, self.certificates(), callers).desired
        return render(wanted, self.capabilities, (control or self.control).servers())

    def actual(self, rendered: Rendered) -> Actual:
        return self.control.read_actual(rendered)

    def plan(self, rendered: Rendered) -> Plan:
        return plan(rendered, self.actual(rendered))

    def converge(self, rendered: Rendered) -> Applied:
        """Plan, apply, launch when nothing ran; fails the test when anything does."""
        wanted = self.plan(rendered)
        applied = self.control.apply(wanted)
        assert applied.failure is None, applied.failure
        if any(isinstance(operation, Install) for operation in wanted.operations):
            self.process.launch()
            self.process.wait_ready(rendered.structure, DEADLINE_S)
        return applied

    def worker(self) -> int:
        return self.process.wait_ready(timeout_s=DEADLINE_S)

    def wait_master(self) -> None:
        """Return when it answers. Its worker may be there before it has started; what it hears then is not known."""
        master = RuntimeSocket(self.layout.master_socket)
        wait_until(lambda: _answers(master), "the master's answer")

    def reload_by_signal(self) -> int:
        """What somebody else's reload does, once only the new worker is asked; the process id of the one that stops."""
        before = self.worker()
        self.wait_master()
        os.kill(self.process.pid, signal.SIGUSR2)
        try:
            wait_until(lambda: self.worker() != before, "a new worker")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; HAProxy says:\n{Path(self.layout.log).read_text()[-2000:]}") from exc
        wait_until(lambda: not lives(before) or self._stops(before), "the old worker takes no more questions")
        return before

    def _stops(self, worker: int) -> bool:
        with contextlib.suppress(RuntimeSocketError, ReplyError):
            return parse_info(MasterSocket(self.layout.master_socket).of_worker(worker, "show info")).stopping
        return False

    def _kept(self, server: Server) -> Server:
        self.servers.append(server)
        return server


@contextlib.contextmanager
def stage(version: str) -> Iterator[Stage]:
    made = Stage(BINARIES[version]())
    try:
        yield made
    finally:
        made.close()


def greeting(port: int, host: str = "127.0.0.1") -> str:
    """The name of the server that a tcp connection reaches, empty when it is closed without a word."""
    with socket.create_connection((host, port), timeout=DEADLINE_S) as client:
        client.settimeout(DEADLINE_S)
        return _line(client)


def _line(client: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\n"):
        try:
            chunk = client.recv(1024)
        except ConnectionError:
            break
        if not chunk:
            break
        received += chunk
    return received.decode().strip()


def http_answer(port: int, *headers: str) -> tuple[int, str]:
    """Status and body of a GET on a fresh connection."""
    request = "\r\n".join(["GET / HTTP/1.1", "Host: test", "Connection: close", *headers, "", ""])
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(request.encode())
        return read_http(client)


def read_http(client: socket.socket) -> tuple[int, str]:
    client.settimeout(DEADLINE_S)
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def exists(path: str) -> bool:
    return Path(path).exists()
