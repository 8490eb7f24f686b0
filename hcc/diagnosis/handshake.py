"""A connection to another sidecar as ours would make it: TCP, mutual TLS with our leaf, and whether it lets us in."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator

from hcc.diagnosis.finding import Finding, failed, ok
from hcc.mesh.peer_book import Seen
from hcc.mesh.snapshot import Endpoint, Leaf, Roots
from hcc.peers.handshake import reason, seen
from hcc.peers.tls import client_context

CONNECT_TIMEOUT_S = 3.0
# A refusal comes right after the handshake; an application that waits for us says nothing.
REFUSAL_WITHIN_S = 0.5


def context_of(leaf: Leaf, roots: Roots) -> ssl.SSLContext:
    """As `hcc.peers.tls.client_context`, with a leaf that is in no file.

    Raises:
        OSError: they cannot be used.
    """
    # A file in memory: the key comes onto no disk, and a container need have no place for temporary files.
    with os.fdopen(os.memfd_create("hcc-leaf"), "w", encoding="ascii") as file:
        file.write(f"{leaf.cert_pem}\n{leaf.key_pem.reveal()}")
        file.flush()
        return client_context(f"/proc/self/fd/{file.fileno()}", "\n".join(root.cert_pem for root in roots.roots))


def check_endpoint(endpoint: Endpoint, context: ssl.SSLContext) -> Iterator[Finding]:
    """TCP, TLS, the server's identity, and whether it closes on us; ends at the first that fails."""
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    where = f"{host}:{endpoint.port}"
    try:
        plain = socket.create_connection((endpoint.address, endpoint.port), timeout=CONNECT_TIMEOUT_S)
    except OSError as exc:
        remedy = "start its sidecar, open the way to it (firewall), or correct the address it registers"
        late = f"no answer within {CONNECT_TIMEOUT_S:.0f} s" if isinstance(exc, TimeoutError) else ""
        yield failed(f"connect {where}", late or exc.strerror or str(exc) or "no answer", remedy)
        return
    with contextlib.closing(plain):
        yield from _check_tls(plain, where, endpoint, context)


def _check_tls(plain: socket.socket, where: str, endpoint: Endpoint, context: ssl.SSLContext) -> Iterator[Finding]:
    try:
        tls = context.wrap_socket(plain)
    except ssl.SSLCertVerificationError as exc:
        remedy = "it holds a certificate of another CA: look at its sidecar, and whether a CA rotation is under way"
        yield failed(f"handshake {where}", exc.verify_message, remedy)
        return
    except TimeoutError:
        remedy = "look at its sidecar: `hcc doctor` there"
        yield failed(f"handshake {where}", f"no answer within {CONNECT_TIMEOUT_S:.0f} s; its HAProxy may hang", remedy)
        return
    except OSError as exc:
        remedy = "something else than a sidecar listens there, or it refuses our certificate"
        yield failed(f"handshake {where}", reason(exc), remedy)
        return
    with contextlib.closing(tls):
        found = seen(tls)
        uris = found.certificate.uris if isinstance(found, Seen) else ()
        if endpoint.identity and uris != (endpoint.identity,):
            text = f"expected {endpoint.identity}, found {', '.join(uris) or 'no SPIFFE URI'}"
            yield failed(f"identity {where}", text, "another service has this address: correct its registration")
            return
        yield ok(f"handshake {where}", f"{tls.version()}, {', '.join(uris)}")
        yield _let_in(tls, where)


def _let_in(tls: ssl.SSLSocket, where: str) -> Finding:
    subject = f"let in {where}"
    tls.settimeout(REFUSAL_WITHIN_S)
    try:
        closed = not tls.recv(1)
    except TimeoutError:
        closed = False
    except OSError as exc:
        # With TLS 1.3 the refusal of a client's certificate comes after the handshake.
        return failed(subject, f"refuses our certificate: {reason(exc)}", "look at the clocks and CAs of both sides")
    if closed:
        remedy = "an intention denies us, or its application is down: look at its sidecar's log and `hcc status`"
        return failed(subject, "closed right after the handshake", remedy)
    return ok(subject, "stays open (a service of protocol http may still answer 403)")
