"""Words about TLS: which certificates, whom to trust, which versions and ciphers. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import PublicListener, Tls
from hcc.mesh.tls import TlsLimits, TlsVersion

# Kind of a file beside haproxy.cfg.
CERTIFICATE_LIST = "certificates"
# Consul's leaves carry no DNS name. HAProxy (2.6.12, 2.8.25) then keeps a listener's certificate in its default context
# only, and replacing it, or its CAs, at run time leaves that context without `verify required`, or with the old CAs.
# A name in the certificate list puts it where an update reaches it.
CERTIFICATE_NAME = "hcc.invalid"
_TLS_VERSIONS = {
    TlsVersion.TLS_1_0: "TLSv1.0",
    TlsVersion.TLS_1_1: "TLSv1.1",
    TlsVersion.TLS_1_2: "TLSv1.2",
    TlsVersion.TLS_1_3: "TLSv1.3",
}
# All that Consul takes, by OpenSSL's names. Source: hashicorp/consul types/tls.go (1.20.1).
CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}


def certificate_list(tls: Tls) -> Iterator[str]:
    """The file that says which certificate the public listener shows."""
    yield f"{words.path(tls.certificate)} {CERTIFICATE_NAME}"


def bind_tls(public: PublicListener, list_path: str) -> str:
    """What follows `bind` and the address of the public listener."""
    keys = words.path(public.ticket_keys)
    return f"ssl crt-list {words.path(list_path)} {_verified(public.tls)} tls-ticket-keys {keys}"


def server_tls(tls: Tls, capabilities: Capabilities) -> str:
    """What a server's line says of TLS."""
    # An SNI would make HAProxy demand a DNS name that Connect certificates have not; since 3.3 it sends one
    # by itself.
    sni = " no-sni-auto" if capabilities.has(Feature.NO_SNI_AUTO) else ""
    return f"ssl crt {words.path(tls.certificate)} {_verified(tls)}{sni}"


def _verified(tls: Tls) -> str:
    alpn = f" alpn {words.word(','.join(tls.alpn))}" if tls.alpn else ""
    return f"ca-file {words.path(tls.ca_file)} verify required{alpn}{_limits(tls.limits)}"


def _limits(limits: TlsLimits) -> str:
    """What the mesh entry says. Else 1.2 at least, as Envoy's clients speak no newer by default; with us it is 1.3."""
    lowest = f" ssl-min-ver {_TLS_VERSIONS[limits.min_version]}" if limits.min_version else ""
    highest = f" ssl-max-ver {_TLS_VERSIONS[limits.max_version]}" if limits.max_version else ""
    known = [CIPHERS[name] for name in limits.ciphers if name in CIPHERS]
    # One that does not exist, so that a list of unknown ones allows none: HAProxy refuses the text and says so.
    ciphers = f" ciphers {words.word(':'.join(known or ['none']))}" if limits.ciphers else ""
    return f"{lowest}{highest}{ciphers}"
