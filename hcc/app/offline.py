"""The configuration of a sidecar made and checked without it: from a file of `hcc snapshot`, with a HAProxy at hand."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from pathlib import Path, PurePosixPath

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hcc.errors import SettingError
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import ApplyError
from hcc.haproxy.desired import Result, desired
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.direct import check
from hcc.haproxy.files import write_private
from hcc.haproxy.layout import Layout, layout
from hcc.haproxy.model import CaFile, CertificateFile
from hcc.haproxy.origin import origin
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.review import Review, ReviewError
from hcc.haproxy.side_files import write_side_files
from hcc.mesh.peer_book import Peer, Vetted
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf, Roots

STAND_IN_DAYS = 1


def made_offline(review: Review) -> Result:
    """What the sidecar would want HAProxy to do, and what falls short.

    Raises:
        ReviewError: a certificate in it is none.
    """
    directory = Layout(str(PurePosixPath(review.options.process.stats_socket).parent))
    admitted = None if review.admitted is None else frozenset(Peer(*one) for one in review.admitted)
    silent = tuple(Peer(*one) for one in review.silent)
    certificates = _certificates(review, directory)
    return desired(review.snapshot, review.options, certificates, review.callers, Vetted(admitted, silent))


def checked_offline(review: Review, binary: str, capabilities: Capabilities) -> Rendered:
    """The configuration of a review, once that HAProxy has taken it.

    What HAProxy looks at is the same text with other paths: its files, and certificates that stand in for the secrets
    that a review lacks, are in a directory that is gone afterwards.

    Raises:
        ApplyError: HAProxy refuses it; line and reason, and what in Consul it comes from.
        SettingError: there is nowhere to put the files that HAProxy looks at.
    """
    rendered = render(made_offline(review).desired, capabilities)
    with _temporary_directory() as name:
        place = layout(name)
        elsewhere = replace(review, options=_moved(review.options, place))
        # Its structure has other paths in it; nothing else differs, line by line.
        tried = render(made_offline(elsewhere).desired, capabilities)
        _write_stand_ins(place)
        write_side_files(tried)
        try:
            check(binary, place, tried.config, "check the configuration")
        except ApplyError as exc:
            found = origin(tried.config, exc.line, review.snapshot)
            text = str(exc).replace(f"{name}/", f"{_directory(review.options)}/")
            behind = f"; it comes from {found}" if found else ""
            raise ApplyError(f"{text}{behind}", exc.operation, exc.line, exc.excerpt) from exc
    return rendered


@contextlib.contextmanager
def _temporary_directory() -> Iterator[str]:
    try:
        made = tempfile.TemporaryDirectory(prefix="hcc-")
    except OSError as exc:
        # As in a container whose root is read-only.
        msg = "expected a directory for temporary files, found none that can be written; name one with TMPDIR"
        raise SettingError(msg) from exc
    with made as name:
        yield name


def _directory(options: Options) -> str:
    return str(PurePosixPath(options.process.stats_socket).parent)


def _moved(options: Options, place: Layout) -> Options:
    """The same with all files in another directory."""
    return replace(
        options,
        process=replace(options.process, stats_socket=place.stats_socket, state_directory=place.directory),
        agent_sockets=tuple(place.agent_socket(number) for number in range(1, len(options.agent_sockets) + 1)),
        identities=place.identities,
        verdicts=place.verdicts,
        rules=place.rules,
        ticket_keys=place.ticket_keys,
        leaves=place.leaves if options.leaves else "",
    )


def _certificates(review: Review, place: Layout) -> Certificates:
    """By name and fingerprint, as the sidecar has them; the key is not there and not looked at."""
    leaf, roots = review.snapshot.leaf, review.snapshot.roots
    return Certificates(_leaf(leaf, place) if leaf else None, _roots(roots, place) if roots else None)


def _leaf(leaf: Leaf, place: Layout) -> CertificateFile:
    return CertificateFile(place.leaf, _fingerprint(leaf.cert_pem), Secret(""), leaf.uri)


def _roots(roots: Roots, place: Layout) -> CaFile:
    pems = tuple(root.cert_pem for root in roots.roots)
    return CaFile(place.roots, frozenset(_fingerprint(pem) for pem in pems), "".join(pems))


def _fingerprint(pem: str) -> str:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as exc:
        raise ReviewError(f"expected a certificate in PEM, found {pem[:40]!r}") from exc
    # As HAProxy names a certificate; nothing is trusted by it.
    return sha1(certificate.public_bytes(serialization.Encoding.DER), usedforsecurity=False).hexdigest().upper()


def _write_stand_ins(place: Layout) -> None:
    """Files that HAProxy wants to read before it takes a configuration."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stands in for a certificate of Consul")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=STAND_IN_DAYS))
        .not_valid_after(now + timedelta(days=STAND_IN_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(place.leaf, pem + private.decode())
    write_private(place.roots, pem)
    for path in (place.identities, place.verdicts, place.rules, place.leaves):
        Path(path).touch(mode=0o600)
