"""What our HAProxy uses to call another sidecar, as a TLS context of ours."""

from __future__ import annotations

import ssl


def client_context(leaf_path: str, roots_pem: str) -> ssl.SSLContext:
    """Our leaf to show, and Consul's roots to verify with, for the purpose of a server.

    Args:
        leaf_path: file with certificates and key; the library takes a key from nothing else.
        roots_pem: certificates of the CAs.

    Raises:
        OSError: they cannot be used (ssl.SSLError is one), or read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Sidecars are known by their SPIFFE URI, not by a host name; and no name is sent, as HAProxy sends none.
    context.check_hostname = False
    # As HAProxy does: what Consul lists is trusted, whether or not somebody else issued it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Every suite that OpenSSL offers by itself, as HAProxy does: a mesh may speak none but some that Python leaves out.
    context.set_ciphers("DEFAULT")
    context.load_verify_locations(cadata=roots_pem)
    context.load_cert_chain(leaf_path)
    return context
