"""The serial number and the URIs of an X.509 certificate, by a strict walk over its DER.

HAProxy has verified the certificate before we see it; this walk must find exactly what a verifier means, and
refuse everything it does not fully understand on the way there. Parts that say nothing about identity (names,
keys, signatures) are stepped over by their lengths.

Source: RFC 5280 sections 4.1, 4.2.1.6; X.690 sections 8.1, 10, 11.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcc.errors import PeerError

MAX_CERTIFICATE_BYTES = 16_384
# RFC 5280 section 4.1.2.2: twenty octets; one more may be a leading zero.
_MAX_SERIAL_BYTES = 21
_BOOLEAN, _INTEGER, _BIT_STRING, _OCTET_STRING, _OID, _SEQUENCE = 0x01, 0x02, 0x03, 0x04, 0x06, 0x30
_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS = 0xA0, 0x81, 0x82, 0xA3
_VERSION_3 = b"\x02"
_TRUE = b"\xff"
_SAN_OID = b"\x55\x1d\x11"  # 2.5.29.17
_URI = 0x86
# Other, mail, DNS, directory, URI, IP address, registered; X.400 and EDI names do not occur, and are refused.
_GENERAL_NAMES = frozenset((0xA0, 0x81, 0x82, 0xA4, _URI, 0x87, 0x88))
# Low five bits all set: the tag goes on in further bytes, which nothing in a certificate does.
_LONG_TAG = 0x1F
_LONG_LENGTH = 0x80
_MAX_LENGTH_BYTES = 2


class CertificateError(PeerError):
    """The bytes are no certificate that we fully understand."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of its holder; `uris` are those of the subject alternative name, in order."""

    serial: int
    uris: tuple[str, ...]


def parse_certificate(der: bytes) -> Certificate:
    """The serial number and URIs of one certificate that fills `der`.

    Raises:
        CertificateError: anything but strict DER of an X.509 version 3 certificate, at most 16 KiB.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError(f"expected a certificate of at most {MAX_CERTIFICATE_BYTES} bytes, found {len(der)}")
    outer = _Reader(der)
    certificate = _Reader(outer.take(_SEQUENCE, "a certificate"))
    outer.end("the certificate")
    body = _Reader(certificate.take(_SEQUENCE, "the body of the certificate"))
    certificate.take(_SEQUENCE, "the signature's algorithm")
    certificate.take(_BIT_STRING, "the signature")
    certificate.end("the signature")
    return _body(body)


def _body(body: _Reader) -> Certificate:
    version = _Reader(body.take(_VERSION, "a version"))
    if version.take(_INTEGER, "a version number") != _VERSION_3:
        raise CertificateError("expected an X.509 certificate of version 3")
    version.end("the version")
    serial = _serial(body.take(_INTEGER, "a serial number"))
    for what in ("the signature's algorithm", "the issuer", "the validity", "the subject", "the public key"):
        body.take(_SEQUENCE, what)
    for tag in (_ISSUER_ID, _SUBJECT_ID):
        if body.next_tag() == tag:
            body.take(tag, "a unique identifier")
    if body.at_end():
        return Certificate(serial, ())
    wrapped = _Reader(body.take(_EXTENSIONS, "extensions"))
    body.end("the extensions")
    extensions = _Reader(wrapped.take(_SEQUENCE, "a list of extensions"))
    wrapped.end("the list of extensions")
    return Certificate(serial, _uris(extensions))


def _serial(content: bytes) -> int:
    if not 0 < len(content) <= _MAX_SERIAL_BYTES:
        raise CertificateError(f"expected a serial number of 1 to 20 bytes, found {len(content)}")
    if content[0] & 0x80 or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
        raise CertificateError("expected a serial number that is not negative and has no needless zero")
    return int.from_bytes(content, "big")


def _uris(extensions: _Reader) -> tuple[str, ...]:
    seen: set[bytes] = set()
    uris: tuple[str, ...] = ()
    if extensions.at_end():
        raise CertificateError("expected at least one extension in the list")
    while not extensions.at_end():
        name, content = _extension(_Reader(extensions.take(_SEQUENCE, "an extension")))
        if name in seen:
            raise CertificateError(f"expected each extension once, found {name.hex()} twice")
        seen.add(name)
        if name == _SAN_OID:
            uris = _alternative_names(content)
    return uris


def _extension(extension: _Reader) -> tuple[bytes, bytes]:
    name = extension.take(_OID, "an extension's identifier")
    if extension.next_tag() == _BOOLEAN and extension.take(_BOOLEAN, "critical") != _TRUE:
        raise CertificateError("expected the default of an extension's `critical` to be left out")
    content = extension.take(_OCTET_STRING, "an extension's content")
    extension.end("the extension")
    return name, content


def _alternative_names(content: bytes) -> tuple[str, ...]:
    outer = _Reader(content)
    names = _Reader(outer.take(_SEQUENCE, "alternative names"))
    outer.end("the alternative names")
    if names.at_end():
        raise CertificateError("expected at least one alternative name")
    uris: list[str] = []
    while not names.at_end():
        tag = names.next_tag()
        if tag not in _GENERAL_NAMES:
            raise CertificateError(f"expected a kind of alternative name, found tag 0x{tag:02x}")
        value = names.take(tag, "an alternative name")
        if tag == _URI:
            uris.append(_ascii(value))
    return tuple(uris)


def _ascii(value: bytes) -> str:
    if not value.isascii():
        raise CertificateError("expected a URI in ASCII")
    return value.decode("ascii")


class _Reader:
    """Elements of one constructed value, one after the other; each length is checked before it is used."""

    __slots__ = ("_data", "_pos")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def at_end(self) -> bool:
        return self._pos == len(self._data)

    def next_tag(self) -> int:
        """The tag of the next element; -1 at the end."""
        return -1 if self.at_end() else self._data[self._pos]

    def take(self, tag: int, what: str) -> bytes:
        """The content of the next element, which must have this tag."""
        found = self.next_tag()
        if found != tag or found & _LONG_TAG == _LONG_TAG:
            shown = "the end" if found < 0 else f"tag 0x{found:02x}"
            raise CertificateError(f"expected {what} (tag 0x{tag:02x}), found {shown}")
        start, length = self._length(what)
        if length > len(self._data) - start:
            raise CertificateError(f"expected {length} bytes of {what}, found {len(self._data) - start}")
        self._pos = start + length
        return self._data[start : self._pos]

    def end(self, what: str) -> None:
        if not self.at_end():
            raise CertificateError(f"expected nothing after {what}, found {len(self._data) - self._pos} bytes")

    def _length(self, what: str) -> tuple[int, int]:
        """Where the content starts and how long it is: definite, and in the shortest form."""
        pos = self._pos + 1
        first = self._data[pos] if pos < len(self._data) else -1
        if 0 <= first < _LONG_LENGTH:
            return pos + 1, first
        count = first - _LONG_LENGTH
        octets = self._data[pos + 1 : pos + 1 + max(count, 0)]
        if not 1 <= count <= _MAX_LENGTH_BYTES or len(octets) != count:
            raise CertificateError(f"expected a length of one to three bytes for {what}")
        length = int.from_bytes(octets, "big")
        if octets[0] == 0 or length < _LONG_LENGTH:
            raise CertificateError(f"expected the shortest form of the length of {what}")
        return pos + 1 + count, length
