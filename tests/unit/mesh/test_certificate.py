import ssl
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from hcc.mesh.certificate import CertificateError, checked_credentials, warning_time
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf, Root, Roots
from tests.pki import TRUST_DOMAIN, Authority, IssuedLeaf, service_uri, sha1

AUTHORITY = Authority()
OTHER_AUTHORITY = Authority("Another CA")
ISSUED = AUTHORITY.leaf(service_uri("web"))
NAME = bytes((0x86, len(service_uri("web")))) + service_uri("web").encode()


def leaf(issued: IssuedLeaf = ISSUED, uri: str = service_uri("web")) -> Leaf:
    return Leaf("web", uri, issued.cert_pem, Secret(issued.key_pem), "", "")


def roots(*authorities: Authority) -> Roots:
    listed = tuple(Root(str(number), authority.pem) for number, authority in enumerate(authorities))
    return Roots(TRUST_DOMAIN, listed)


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
    with pytest.raises(CertificateError, match="expected a leaf that is valid now"):
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


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", id="of version 8"),
        pytest.param(
            b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x09", id="with an unknown kind of key"
        ),
        pytest.param(NAME, b"\xa3" + NAME[1:], id="with an X.400 address"),
        pytest.param(NAME, b"\x83" + NAME[1:], id="with damaged names"),
    ],
)
def test_a_leaf_that_cannot_be_read_is_refused(good: bytes, bad: bytes) -> None:
    assert ISSUED.der.count(good) == 1
    damaged = replace(leaf(), cert_pem=ssl.DER_cert_to_PEM_cert(ISSUED.der.replace(good, bad)))

    with pytest.raises(CertificateError, match=r"that cannot\b|something else"):
        checked_credentials(damaged, roots(AUTHORITY), datetime.now(UTC))


def test_a_root_whose_name_cannot_be_read_is_trusted_all_the_same() -> None:
    authority = Authority("Society CA")
    pem = ssl.DER_cert_to_PEM_cert(authority.certificate_der.replace(b"Society", b"Soci\xe9t\xe9"))
    both = Roots(TRUST_DOMAIN, (Root("0", AUTHORITY.pem), Root("1", pem)))

    credentials = checked_credentials(leaf(), both, datetime.now(UTC))

    serial = f"{authority.certificate.serial_number:X}"
    assert [root.name for root in credentials.roots] == ["Test CA", f"serial number {serial}"]


def test_no_roots_at_all_are_refused() -> None:
    with pytest.raises(CertificateError, match="at least one root"):
        checked_credentials(leaf(), Roots(TRUST_DOMAIN, ()), datetime.now(UTC))


def test_a_warning_is_due_when_nine_tenths_of_the_life_are_over() -> None:
    credentials = checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC))

    life = credentials.not_after - credentials.not_before
    assert warning_time(credentials) == credentials.not_before + life * 0.9


def test_fingerprints_are_haproxys_own() -> None:
    certificate = x509.load_pem_x509_certificate(ISSUED.cert_pem.encode())

    assert checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC)).leaf_sha1 == sha1(certificate)


def test_the_serial_is_written_as_haproxy_prints_it() -> None:
    certificate = x509.load_pem_x509_certificate(ISSUED.cert_pem.encode())

    assert (
        checked_credentials(leaf(), roots(AUTHORITY), datetime.now(UTC)).leaf_serial == f"{certificate.serial_number:X}"
    )


@pytest.mark.parametrize("services", [(), ("web", "api"), ("api", "web")])
def test_a_leaf_with_any_other_list_of_uris_is_refused(services: tuple[str, ...]) -> None:
    with pytest.raises(CertificateError, match="svc/web, found"):
        checked_credentials(leaf(AUTHORITY.leaf(*map(service_uri, services))), roots(AUTHORITY), datetime.now(UTC))


def test_a_leaf_whose_root_has_expired_is_refused() -> None:
    later = datetime.now(UTC) + timedelta(days=2)

    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(leaf(AUTHORITY.leaf(service_uri("web"), days=10)), roots(AUTHORITY), later)


def test_an_encrypted_key_is_named() -> None:
    key = load_pem_private_key(ISSUED.key_pem.encode(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()

    with pytest.raises(CertificateError, match="expected an unencrypted PEM private key"):
        checked_credentials(replace(leaf(), key_pem=Secret(pem)), roots(AUTHORITY), datetime.now(UTC))


def test_no_blank_line_of_consul_s_gets_into_what_haproxy_is_told() -> None:
    spaced = replace(leaf(), key_pem=Secret(f"\n{ISSUED.key_pem}\n \n"), cert_pem=f"{ISSUED.cert_pem}\n\n")
    credentials = checked_credentials(spaced, roots(AUTHORITY), datetime.now(UTC))

    assert all(line.strip() for line in credentials.leaf_pem.reveal().splitlines())


def test_a_leaf_of_an_intermediate_is_good_with_it_and_is_shown_with_it() -> None:
    between = Authority("Between")
    signed = AUTHORITY.authority(between)
    issued = between.leaf(service_uri("web"))
    whole = replace(leaf(issued), cert_pem=issued.cert_pem + signed)

    credentials = checked_credentials(whole, roots(AUTHORITY), datetime.now(UTC))

    assert credentials.leaf_sha1 == issued.fingerprint
    assert credentials.leaf_pem.reveal().startswith(issued.cert_pem + signed)
    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(leaf(issued), roots(AUTHORITY), datetime.now(UTC))


def between(*authorities: Authority, issued: IssuedLeaf, **last: Any) -> Leaf:
    """A leaf of the last of these, each of which the one before it signed; `last` is of the last one's certificate."""
    signed = [above.authority(below) for above, below in pairwise(authorities[:-1])]
    signed.append(authorities[-2].authority(authorities[-1], **last))
    return replace(leaf(issued), cert_pem="".join((issued.cert_pem, *reversed(signed))))


def test_an_issuer_needs_no_name() -> None:
    # As in a secondary datacenter.
    nameless = Authority("")
    given = between(AUTHORITY, nameless, issued=nameless.leaf(service_uri("web")))

    assert checked_credentials(given, roots(AUTHORITY), datetime.now(UTC)).uri == service_uri("web")
    with pytest.raises(CertificateError, match="found one of a CA without a name"):
        checked_credentials(given, roots(OTHER_AUTHORITY), datetime.now(UTC))


def test_a_nameless_issuer_is_the_one_that_signed_it() -> None:
    given = between(AUTHORITY, Authority(""), issued=Authority("").leaf(service_uri("web")))

    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(given, roots(AUTHORITY), datetime.now(UTC))


@pytest.mark.parametrize(
    ("last", "good"),
    [
        ({}, True),
        ({"path_length": 0}, True),
        ({"may_sign": True}, True),
        ({"may_sign": False}, False),
        ({"ca": False}, False),
        ({"ca": False, "may_sign": True}, False),
        ({"days": -2}, False),
    ],
)
def test_an_issuer_is_a_ca_that_may_sign_and_is_valid_now(last: dict[str, Any], good: bool) -> None:
    middle, lowest = Authority("Middle"), Authority("Lowest")
    given = between(AUTHORITY, middle, lowest, issued=lowest.leaf(service_uri("web")), **last)

    with nullcontext() if good else pytest.raises(CertificateError, match="CAs that are valid now"):
        checked_credentials(given, roots(AUTHORITY), datetime.now(UTC))


def test_no_more_cas_are_below_one_than_it_says() -> None:
    middle, lowest = Authority("Middle"), Authority("Lowest")
    issued = lowest.leaf(service_uri("web"))
    chain = (issued.cert_pem, middle.authority(lowest), AUTHORITY.authority(middle, path_length=0))

    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(replace(leaf(issued), cert_pem="".join(chain)), roots(AUTHORITY), datetime.now(UTC))


def test_cas_that_signed_each_other_lead_nowhere() -> None:
    one, two = Authority("One"), Authority("Two")
    issued = one.leaf(service_uri("web"))
    chain = (issued.cert_pem, one.authority(two), two.authority(one), one.pem)

    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(replace(leaf(issued), cert_pem="".join(chain)), roots(AUTHORITY), datetime.now(UTC))


def test_a_leaf_that_another_leaf_signed_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = AUTHORITY.leaf(service_uri("evil"), key=key)
    issued = Authority.of(signer.certificate, key).leaf(service_uri("web"))
    whole = replace(leaf(issued), cert_pem=issued.cert_pem + signer.cert_pem)

    with pytest.raises(CertificateError, match="chains to one of Consul's roots"):
        checked_credentials(whole, roots(AUTHORITY), datetime.now(UTC))
