from __future__ import annotations

import hashlib

import pytest

from hcc.mesh.caller_certificate import remembered_caller
from hcc.mesh.peer_certificate import PeerCertificate, PeerCertificateError, peer_certificate
from tests.pki import Authority

WEB, EVIL = "spiffe://d/web", "spiffe://d/evil"


def test_a_certificate_is_known_by_its_digest_its_uris_and_its_end() -> None:
    leaf = Authority().leaf(WEB, EVIL)

    found = peer_certificate(leaf.der)

    end_s = int(leaf.certificate.not_valid_after_utc.timestamp())
    assert found == PeerCertificate(hashlib.sha256(leaf.der).hexdigest().upper(), (WEB, EVIL), end_s)


def test_a_certificate_without_names_names_nobody() -> None:
    assert peer_certificate(Authority().certificate_der).uris == ()


@pytest.mark.parametrize("uris", [(), (EVIL,), (WEB, WEB), (WEB, EVIL)])
def test_only_the_one_uri_alone_counts(uris: tuple[str, ...]) -> None:
    assert PeerCertificate("A", (WEB,), 1).names_only(WEB)
    assert not PeerCertificate("A", uris, 1).names_only(WEB)


LEAF = Authority().leaf(WEB).der
NAME = bytes((0x86, len(WEB))) + WEB.encode()


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"0",
        b"no certificate",
        pytest.param(LEAF.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"), id="of version 8"),
        pytest.param(LEAF.replace(NAME, b"\xa3" + NAME[1:]), id="with an X.400 address"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_no_caller(der: bytes) -> None:
    with pytest.raises(PeerCertificateError, match="readable certificate"):
        peer_certificate(der)
    assert remembered_caller(der) is None
