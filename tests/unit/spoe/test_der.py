from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcc.spoe.der import MAX_CERTIFICATE_BYTES, Certificate, CertificateError, parse_certificate
from tests.spoe_certificates import by_cryptography, odd_leaves, service_uri

WEB = odd_leaves()["plain"]


@pytest.mark.parametrize("odd", odd_leaves())
def test_serial_and_uris_are_those_that_cryptography_finds(odd: str) -> None:
    der = odd_leaves()[odd]
    assert parse_certificate(der) == by_cryptography(der)


@pytest.mark.parametrize("odd", [name for name in odd_leaves() if "URI in" in name or "foreign" in name])
def test_a_planted_uri_is_not_an_identity(odd: str) -> None:
    assert parse_certificate(odd_leaves()[odd]).uris == (service_uri("evil"),)


def test_a_certificate_cut_anywhere_is_refused() -> None:
    for cut in range(len(WEB)):
        with pytest.raises(CertificateError):
            parse_certificate(WEB[:cut])


def test_bytes_after_a_certificate_are_refused() -> None:
    for more in (b"\x00", WEB):
        with pytest.raises(CertificateError):
            parse_certificate(WEB + more)


@settings(max_examples=500)
@given(st.data())
def test_a_damaged_certificate_is_refused_or_means_what_cryptography_finds(data: st.DataObject) -> None:
    damaged = bytearray(odd_leaves()[data.draw(st.sampled_from(sorted(odd_leaves())))])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        change = data.draw(st.sampled_from(("set", "flip", "drop", "double")))
        if change == "drop":
            del damaged[position]
        elif change == "double":
            damaged[position:position] = damaged[position : position + data.draw(st.integers(1, 8))]
        else:
            old = damaged[position] if change == "flip" else 0
            damaged[position] = old ^ data.draw(st.sampled_from((1, 2, 4, 8, 16, 32, 64, 128, 0x30, 0x80, 0xFF)))
    try:
        found = parse_certificate(bytes(damaged))
    except CertificateError:
        return
    assert by_cryptography(bytes(damaged)) in (found, None)


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(data)


# ---- a certificate built by hand, so that each rule can be broken alone


def element(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    if len(content) < 128:
        return bytes((tag, len(content))) + content
    if len(content) < 256:
        return bytes((tag, 0x81, len(content))) + content
    return bytes((tag, 0x82)) + len(content).to_bytes(2, "big") + content


SEQUENCE = 0x30
EMPTY = element(SEQUENCE)
SAN = element(0x06, b"\x55\x1d\x11")
URI = element(0x86, b"spiffe://td/ns/default/dc/dc1/svc/web")


def san(*names: bytes, critical: bytes = b"") -> bytes:
    return element(SEQUENCE, SAN, critical, element(0x04, element(SEQUENCE, *names)))


def handmade(
    *extensions: bytes,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    serial: bytes = b"\x02\x01\x07",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    listed = element(0xA3, element(SEQUENCE, *extensions)) if extensions else b""
    body = element(SEQUENCE, version, serial, EMPTY * 5, before, listed, after)
    return element(SEQUENCE, body, EMPTY, element(0x03, b"\x00"))


def test_the_handmade_certificate_is_read() -> None:
    expected = Certificate(7, ("spiffe://td/ns/default/dc/dc1/svc/web",))
    for der in (
        handmade(san(URI)),
        handmade(san(URI, critical=b"\x01\x01\xff")),
        handmade(san(URI), before=b"\x81\x01\x00\x82\x01\x00"),
        handmade(element(SEQUENCE, element(0x06, b"\x2a"), element(0x04)), san(URI)),
    ):
        assert parse_certificate(der) == expected
    longest = handmade(san(URI), serial=element(0x02, b"\x00" + b"\xff" * 20))
    assert parse_certificate(longest).serial == 2**160 - 1


BROKEN = {
    "no version": handmade(san(URI), version=b""),
    "version 1": handmade(san(URI), version=b"\xa0\x03\x02\x01\x00"),
    "more in the version": handmade(san(URI), version=b"\xa0\x04\x02\x01\x02\x00"),
    "negative serial": handmade(san(URI), serial=b"\x02\x01\x80"),
    "serial with a needless zero": handmade(san(URI), serial=b"\x02\x02\x00\x07"),
    "empty serial": handmade(san(URI), serial=b"\x02\x00"),
    "long serial": handmade(san(URI), serial=element(0x02, b"\x01" * 22)),
    "two alternative names": handmade(san(URI), san(URI)),
    "any extension twice": handmade(*(element(SEQUENCE, element(0x06, b"\x2a"), element(0x04)),) * 2, san(URI)),
    "empty extensions": handmade(b""),
    "extensions twice": handmade(san(URI), after=element(0xA3, element(SEQUENCE, san(URI)))),
    "something after the list of extensions": handmade(after=element(0xA3, element(SEQUENCE, san(URI)), b"\x05\x00")),
    "something after the signature": element(SEQUENCE, handmade(san(URI))[2:], b"\x05\x00"),
    "empty alternative names": handmade(san()),
    "something after the names": handmade(element(SEQUENCE, SAN, element(0x04, element(SEQUENCE, URI), b"\x05\x00"))),
    "something after the extensions": handmade(san(URI), after=b"\x05\x00"),
    "something after an extension": handmade(
        element(SEQUENCE, SAN, element(0x04, element(SEQUENCE, URI)), b"\x05\x00")
    ),
    "critical said to be false": handmade(san(URI, critical=b"\x01\x01\x00")),
    "critical neither true nor false": handmade(san(URI, critical=b"\x01\x01\x01")),
    "unknown kind of name": handmade(san(URI, b"\x89\x01\x00")),
    "URI not in ASCII": handmade(san(element(0x86, b"spiffe://\xc3\xa9"))),
    "constructed URI": handmade(san(element(0xA6, URI))),
    "length not the shortest": handmade(san(b"\x86\x81\x01a")),
    "length that one byte could say": handmade(san(b"\x86\x81\x7f" + b"a" * 127)),
    "length with leading zero": handmade(san(b"\x86\x82\x00\x80" + b"a" * 128)),
    "indefinite length": handmade(san(b"\x86\x80a\x00\x00")),
    "length of four bytes": handmade(san(b"\x86\x84\x00\x00\x00\x01a")),
    "reserved length": handmade(san(b"\x86\xffa")),
    "length beyond the end": handmade(san(b"\x86\x7fa")),
    "length one beyond the end": handmade(san(b"\x86\x02a")),
    "tag of several bytes": handmade(san(b"\xbf\x86\x01a")),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_each_broken_rule_is_refused(broken: str) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(BROKEN[broken])


def test_a_certificate_over_16_kib_is_refused() -> None:
    padding = element(SEQUENCE, element(0x06, b"\x2a"), element(0x04, bytes(MAX_CERTIFICATE_BYTES)))
    with pytest.raises(CertificateError, match="at most 16384"):
        parse_certificate(handmade(padding, san(URI)))


def test_a_number_of_extensions_makes_no_difference() -> None:
    many = (element(SEQUENCE, element(0x06, b"\x2a", bytes((number,))), element(0x04)) for number in range(100))
    assert len(parse_certificate(handmade(*many, san(URI))).uris) == 1
