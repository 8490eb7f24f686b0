"""A TLS server in a namespace with a valid certificate of whatever service, that writes down what it is sent."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.agents import ConsulAgent
from tests.e2e.certificates import mesh_certificate

NAME = "impostor"
# In the hello of a TLS client that speaks http (ALPN).
OFFER = b"\x08http/1.1"
HTTP = f"HTTP/1.1 200 OK\r\nContent-Length: {len(NAME)}\r\n\r\n{NAME}".encode()


class Impostor:
    """Where the agent is, on the port given; `heard` is all that clients sent it inside TLS.

    Args:
        http: whether it answers http, or with a line.
    """

    def __init__(self, agent: ConsulAgent, port: int, directory: Path, *, http: bool) -> None:
        self.agent = agent
        self.port = port
        self.heard = b""
        # Whether it hangs up on whoever offers no protocol for http, as probes do.
        self.shy = False
        self._directory = directory
        self._answer = HTTP if http else f"{NAME}\n".encode()
        self._context: ssl.SSLContext | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = agent.namespace.tcp_socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((agent.namespace.address, port))
        self._listener.listen(64)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def become(self, service: str) -> None:
        """Show the certificate of that service from now on; connections that are open end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=self.agent.root_pems())
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(mesh_certificate(self.agent, service, self._directory))
        context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self._hang_up()

    def pose_as(self, service: str, instance: str) -> None:
        """Register it as an instance of that service, passing."""
        check = {"CheckID": f"{instance}-ttl", "Name": "up", "TTL": "1h", "Status": "passing"}
        sidecar = {"Port": self.port, "Checks": [check]}
        self.agent.register({"ID": instance, "Name": service, "Port": 1, "Connect": {"SidecarService": sidecar}})

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments)  # type: ignore[arg-type]  # one of the two below
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        assert self._context is not None
        with contextlib.suppress(OSError), plain:
            plain.settimeout(10)
            if self.shy and OFFER not in plain.recv(4096, socket.MSG_PEEK):
                return
            with self._context.wrap_socket(plain, server_side=True) as tls:
                tls.settimeout(None)
                self._open.add(tls)
                try:
                    while data := tls.recv(65536):
                        self.heard += data
                        tls.sendall(self._answer)
                finally:
                    self._open.discard(tls)

    def _hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
