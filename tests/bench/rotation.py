"""The CA changes under load, and every leaf with it: both sidecars of a pair, as Consul hands certificates out.

Consul spreads the renewal of leaves after a change of CA over half a minute and more, and has no way to renew them
alone (a leaf lives for an hour at least): so each change is timed twice, to the first caller whose certificate only the
new root vouches for, and from the agent's new leaf to the first handshake that shows it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.bench.mesh import Agent, Pair

RENEWED_S = 180.0
_POLL_S = 0.005


@dataclass(frozen=True)
class Rotation:
    """One change of the CA, seen at the server's sidecar of a pair.

    Args:
        name: tells it from others; callers with certificates of the new CA are called after it.
    """

    one: Pair
    agent: Agent
    folder: Path
    name: str

    def times(self) -> tuple[float, float]:
        """Seconds until a caller of the new CA was let in, and until the agent's new leaf was shown."""
        old = self._serial()
        began = time.perf_counter()
        _change_ca(self.agent)
        newcomer = _bare_leaf(self.agent, f"newcomer-{self.name}", self.folder)
        _wait("a caller of the new CA to be let in", lambda: _let_in(self.one.server_public, newcomer))
        roots_s = time.perf_counter() - began
        _wait("a new leaf", lambda: self._serial() != old, 0.02)
        began, new = time.perf_counter(), self._serial()
        _wait("the new leaf to be shown", lambda: _shown_serial(self.one.server_public) == new)
        return roots_s, time.perf_counter() - began

    def _serial(self) -> int:
        leaf = self.agent.get(f"/v1/agent/connect/ca/leaf/{self.one.server}")
        return x509.load_pem_x509_certificate(leaf["CertPEM"].encode()).serial_number


def _change_ca(agent: Agent) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    config = agent.get("/v1/connect/ca/configuration")
    config["Config"] |= {"PrivateKey": pem, "RootCert": ""}
    agent.put("/v1/connect/ca/configuration", config)


def _bare_leaf(agent: Agent, service: str, folder: Path) -> Path:
    """Certificate and key of a service, without the intermediate by which holders of older roots verify it."""
    leaf = agent.get(f"/v1/agent/connect/ca/leaf/{service}")
    first = x509.load_pem_x509_certificate(leaf["CertPEM"].encode())
    file = folder / f"{service}.pem"
    file.touch(mode=0o600)
    file.write_text(first.public_bytes(Encoding.PEM).decode() + leaf["PrivateKeyPEM"])
    return file


def _let_in(port: int, certificate: Path) -> bool:
    with suppress(OSError), _connected(port, certificate) as sock:
        # With TLS 1.3 a caller hears of its certificate's refusal only when it reads.
        sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        return sock.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def _shown_serial(port: int) -> int:
    with suppress(OSError), _connected(port) as sock:
        shown = sock.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown).serial_number if shown else 0
    return 0


def _connected(port: int, certificate: Path | None = None) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5.0))


def _wait(what: str, done: Callable[[], bool], pause_s: float = _POLL_S) -> None:
    end = time.perf_counter() + RENEWED_S
    while not done():
        assert time.perf_counter() < end, f"no sign of {what} within {RENEWED_S:g} s"
        time.sleep(pause_s)
