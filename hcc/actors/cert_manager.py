"""CertManager: no certificate reaches HAProxy that was not checked, and none expires unnoticed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from hcc.actors.actor import Actor
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    VERIFIER,
    CredentialsOffered,
    CredentialsReady,
    FactsReported,
    HAProxyDown,
    Publish,
)
from hcc.actors.readiness import CredentialFacts, Validity
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.model import CaFile, CertificateFile
from hcc.mesh.certificate import (
    CertificateError,
    Credentials,
    checked_credentials,
    stored_credentials,
    warning_time,
)
from hcc.metrics import Metrics

CHECK_AGAIN_S = 5.0
EXPIRY_CHECK_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _CheckAgain:
    """To itself: the refused credentials may have become good (a clock that was behind)."""


@dataclass(frozen=True, slots=True)
class _CheckExpiry:
    """To itself: look at the time left."""


class CertManager(Actor):
    """Owns the files of leaf and roots, and whether they may be used."""

    def init(self, *, leaf_path: str, roots_path: str, metrics: Metrics) -> None:
        self._leaf_path = leaf_path
        self._roots_path = roots_path
        self._metrics = metrics
        self._offered: CredentialsOffered | None = None
        self._held: Credentials | None = None
        self._problem = ""

    def setup(self) -> None:
        if self.context.generation > 1:
            self.tell(CONSUL_WATCHER, Publish())
        self.after(EXPIRY_CHECK_S, _CheckExpiry(), key="expiry")

    def handle(self, message: object) -> None:
        match message:
            case CredentialsOffered():
                self._offered = message
                self._check()
            case _CheckAgain():
                self._check()
            case HAProxyDown():
                self._put_back()
            case _CheckExpiry():
                self._put_back()
                self._warn_of_expiry()
                self.after(EXPIRY_CHECK_S, _CheckExpiry(), key="expiry")
            case Publish():
                self._publish()

    def teardown(self, reason: StopReason) -> None:
        """Nothing: the files are the successor's."""

    def _check(self) -> None:
        if self._offered is None:
            return
        try:
            credentials = checked_credentials(self._offered.leaf, self._offered.roots, datetime.now(UTC))
        except CertificateError as exc:
            self._refuse(str(exc))
            return
        if credentials != self._held:
            try:
                self._store(credentials)
            except OSError as exc:
                # HAProxy could not start anew with what is not on disk.
                self._refuse(f"it cannot be written: {exc}")
                return
        self.cancel("again")
        self._problem = ""
        self._publish()

    def _refuse(self, problem: str) -> None:
        # During a CA rotation leaf and roots change one after the other, so one refusal in between is normal.
        level = logging.DEBUG if problem == self._problem else logging.WARNING
        _log.log(level, "certificate from Consul not used, the last good one stays: %s", problem)
        self._problem = problem
        self._metrics.certificate_rejects.inc()
        self.after(CHECK_AGAIN_S, _CheckAgain(), key="again")
        found = self._stored() if self._held is None else None
        if found is None:
            self._report()
            return
        _log.warning("going on with leaf and roots of an earlier run")
        self._hold(found)
        self._publish()

    def _stored(self) -> Credentials | None:
        """The last good ones may be an earlier hcc's: they are on disk, and HAProxy may serve with them."""
        try:
            leaf_pem, roots_pem = read_text(self._leaf_path), read_text(self._roots_path)
            if self._offered is None or leaf_pem is None or roots_pem is None:
                return None
            return stored_credentials(leaf_pem, roots_pem, self._offered.leaf.uri, datetime.now(UTC))
        except (CertificateError, OSError) as exc:
            _log.debug("what an earlier hcc left as leaf and roots is of no use: %s", exc)
            return None

    def _store(self, credentials: Credentials) -> None:
        self._write(credentials)
        self._hold(credentials)

    def _hold(self, credentials: Credentials) -> None:
        self._held = credentials
        self._metrics.leaf_start.set(credentials.not_before.timestamp())
        self._metrics.leaf_expiry.set(credentials.not_after.timestamp())
        self._metrics.root_expiry.set(min(root.not_after.timestamp() for root in credentials.roots))
        _log.info(
            "leaf %s for %s, valid until %s, %d trusted roots",
            credentials.leaf_serial,
            credentials.uri,
            f"{credentials.not_after:%FT%TZ}",
            len(credentials.roots_sha1),
        )

    def _write(self, credentials: Credentials) -> bool:
        """Bring them on disk; whether they were not there. Raises OSError."""
        # Roots before the leaf: whoever reads in between can verify the old leaf as well as the new one.
        texts = ((self._roots_path, credentials.roots_pem), (self._leaf_path, credentials.leaf_pem.reveal()))
        missing = tuple((path, text) for path, text in texts if read_text(path) != text)
        for path, text in missing:
            write_private(path, text)
        return bool(missing)

    def _put_back(self) -> None:
        """HAProxy reads the files when it starts: somebody else may have damaged them."""
        if self._held is None:
            return
        try:
            if self._write(self._held):
                _log.warning("leaf or roots were not on disk as they had been written: put back")
        except OSError as exc:
            _log.error("leaf and roots cannot be written for HAProxy's next start: %s", exc)

    def _publish(self) -> None:
        if self._held is not None:
            certificate = CertificateFile(self._leaf_path, self._held.leaf_sha1, self._held.leaf_pem, self._held.uri)
            ca = CaFile(self._roots_path, self._held.roots_sha1, self._held.roots_pem)
            for hearer in (VERIFIER, CONFIG_RECONCILER):
                self.tell(hearer, CredentialsReady(certificate, ca))
        self._report()

    def _report(self) -> None:
        held = self._held is not None
        certificates = _validities(self._held) if self._held else ()
        self.tell(ADMIN, FactsReported(CredentialFacts(held, held, self._problem, certificates)))

    def _warn_of_expiry(self) -> None:
        now = datetime.now(UTC)
        if self._held is not None and now >= warning_time(self._held):
            left = max(0.0, (self._held.not_after - now).total_seconds())
            _log.warning("the leaf certificate was not renewed and expires in %.0f s", left)


def _validities(held: Credentials) -> tuple[Validity, ...]:
    leaf = Validity("leaf", held.uri, held.not_before.timestamp(), held.not_after.timestamp())
    roots = (
        Validity("root", root.name, root.not_before.timestamp(), root.not_after.timestamp()) for root in held.roots
    )
    return (leaf, *roots)
