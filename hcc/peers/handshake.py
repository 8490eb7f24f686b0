"""A TLS handshake up to the moment at which the server's certificate and key are verified: bytes in, bytes out.

With TLS 1.3 that moment comes before our last flight. It is never sent: to the server the handshake was broken off, and
an application behind it does not hear of a connection. (MySQL, for one, blocks a host after a hundred connections that
say nothing.) With TLS 1.2 the server proves itself last of all, so that the handshake is finished, with our leaf.
"""

from __future__ import annotations

import ssl

from hcc.mesh.peer_book import NoAnswer, Outcome, Seen, Unverified
from hcc.mesh.peer_certificate import PeerCertificateError, peer_certificate

# A server's flight is a few kB, with a long chain 20; a peer that sends more is no sidecar.
MAX_BYTES = 256 * 1024


class Handshake:
    """One handshake, the client's side.

    Args:
        context: as `hcc.peers.tls.client_context` makes it.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        self._received = 0

    def start(self) -> bytes | Outcome:
        """The first bytes to send."""
        return self._step()

    def receive(self, data: bytes) -> bytes | Outcome:
        """What to send next (perhaps nothing), or what came of it.

        Args:
            data: what the server sent; empty when it closed.
        """
        self._received += len(data)
        if self._received > MAX_BYTES:
            return NoAnswer(f"sends more than {MAX_BYTES} bytes before its certificate is known")
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return self._step()

    def _step(self) -> bytes | Outcome:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        except ssl.SSLCertVerificationError as exc:
            return Unverified(exc.verify_message)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return NoAnswer("closes during the handshake")
        except OSError as exc:
            return NoAnswer(f"handshake fails: {reason(exc)}")
        return seen(self._tls)


def seen(tls: ssl.SSLObject | ssl.SSLSocket) -> Outcome:
    """Whom the server's certificate names, after a handshake that verified it."""
    try:
        return Seen(peer_certificate(tls.getpeercert(binary_form=True) or b""))
    except PeerCertificateError as exc:
        return Unverified(str(exc))


def reason(error: OSError) -> str:
    """Why, in a few words."""
    return getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
