from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from hcc.mesh.certificate import CertificateError, checked_credentials, warning_time
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf, Root, Roots
from tests.pki import TRUST_DOMAIN, Authority, IssuedLeaf, service_uri, sha1

AUTHORITY = Authority()
OTHER_AUTHORITY = Authority("Another CA")
ISSUED = AUTHORITY.leaf(service_uri("web"))


def leaf(issued: IssuedLeaf = ISSUED, uri: str = service_uri("web")) -> Leaf:
    return Leaf("web", uri, "1", issued.cert_pem, Secret(issued.key_pem), "", "")


def roots(*authorities: Authority) -> Roots:
    listed = tuple(Root(str(number), authority.pem, active=number == 0) for number, authority in enumerate(authorities))
    return Roots(TRUST_DOMAIN, "0", listed)


def test_a_good_leaf_comes_out_with_key_and_fingerprints() -> None:
    credentials = checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC))

    assert credentials.leaf_sha1 == ISSUED.fingerprint
    assert credentials.roots_sha1 == frozenset((AUTHORITY.fingerprint,))
    assert "PRIVATE KEY" in credentials.leaf_pem.reveal()
    assert "\n\n" not in credentials.leaf_pem.reveal()


def test_the_private_key_never_shows_in_a_representation() -> None:
    credentials = checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC))

    assert "PRIVATE KEY" not in repr(credentials) + str(credentials) + repr(leaf()) + f"{credentials.leaf_pem}"


def test_old_roots_stay_trusted_and_doubles_go() -> None:
    credentials = checked_credentials(leaf(), roots(OTHER_AUTHORITY, AUTHORITY, AUTHORITY), datetime.now(UTC))

    assert credentials.roots_sha1 == frozenset((OTHER_AUTHORITY.fingerprint, AUTHORITY.fingerprint))
    assert credentials.roots_pem.count("BEGIN CERTIFICATE") == 2


def test_the_key_of_another_certificate_is_refused() -> None:
    swapped = replace(leaf(), key_pem=Secret(AUTHORITY.leaf(service_uri("web")).key_pem))

    with pytest.raises(CertificateError, match="the key of another certificate"):
        checked_credentials(swapped, roots(AUTHORITY), datetime.now(UTC))


def test_another_services_leaf_is_refused() -> None:
    with pytest.raises(CertificateError, match="svc/api"):
        checked_credentials(leaf(uri=service_uri("api")), roots(AUTHORITY), datetime.now(UTC))


def test_a_leaf_of_an_unlisted_ca_is_refused() -> None:
    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(leaf(), roots(OTHER_AUTHORITY), datetime.now(UTC))


@pytest.mark.parametrize("shift", [timedelta(days=-3650), timedelta(days=3650)])
def test_a_leaf_that_is_not_valid_now_is_refused(shift: timedelta) -> None:
    with pytest.raises(CertificateError, match="expected a leaf valid at"):
        checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC) + shift)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(leaf(), cert_pem="nonsense"), "expected PEM certificates in the leaf"),
        (replace(leaf(), key_pem=Secret("nonsense")), "expected an unencrypted PEM private key"),
    ],
)
def test_what_is_no_pem_is_named(bad: Leaf, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        checked_credentials(bad, roots(AUTHORITY), datetime.now(UTC))


def test_no_roots_at_all_are_refused() -> None:
    with pytest.raises(CertificateError, match="at least one root"):
        checked_credentials(leaf(), Roots(TRUST_DOMAIN, "", ()), datetime.now(UTC))


def test_a_warning_is_due_when_nine_tenths_of_the_life_are_over() -> None:
    credentials = checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC))

    assert credentials.not_before < warning_time(credentials) < credentials.not_after


def test_fingerprints_are_haproxys_own() -> None:
    certificate = x509.load_pem_x509_certificate(ISSUED.cert_pem.encode())

    assert checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC)).leaf_sha1 == sha1(certificate)
