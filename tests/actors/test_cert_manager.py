import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.actors import cert_manager
from hcc.actors.cert_manager import CertManager
from hcc.actors.messages import (
    ADMIN,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    CredentialsOffered,
    CredentialsReady,
    HAProxyDown,
    Publish,
)
from hcc.actors.readiness import CredentialFacts
from hcc.haproxy.files import write_private
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf, Root, Roots
from hcc.metrics import Metrics
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually
from tests.pki import TRUST_DOMAIN, Authority, IssuedLeaf, service_uri

AUTHORITY = Authority()
ROOTS = Roots(TRUST_DOMAIN, (Root("1", AUTHORITY.pem),))


def offered(issued: IssuedLeaf, roots: Roots = ROOTS) -> CredentialsOffered:
    leaf = Leaf("web", service_uri("web"), issued.cert_pem, Secret(issued.key_pem), "", "")
    return CredentialsOffered(leaf, roots)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    kwargs = {
        "leaf_path": str(tmp_path / "leaf.pem"),
        "roots_path": str(tmp_path / "roots.pem"),
        "metrics": Metrics(),
    }
    with playing(Scene(CERT_MANAGER, CertManager, kwargs, (ADMIN, CONFIG_RECONCILER, CONSUL_WATCHER))) as made:
        yield made


def test_good_credentials_are_on_disk_and_private_before_anybody_hears_of_them(scene: Scene, tmp_path: Path) -> None:
    issued = AUTHORITY.leaf(service_uri("web"))

    scene.tell(offered(issued))

    ready = scene.expect(CONFIG_RECONCILER, CredentialsReady)
    assert ready.certificate.fingerprint == issued.fingerprint
    assert (tmp_path / "leaf.pem").read_text() == ready.certificate.pem.reveal()
    assert (tmp_path / "roots.pem").read_text() == ready.ca.pem
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_new_roots_are_on_disk_before_the_leaf(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def noted(path: str, text: str) -> None:
        written.append(Path(path).name)
        write_private(path, text)

    monkeypatch.setattr(cert_manager, "write_private", noted)
    newer = Authority("Newer CA")
    roots = Roots(TRUST_DOMAIN, (*ROOTS.roots, Root("2", newer.pem)))

    scene.tell(offered(newer.leaf(service_uri("web")), roots))

    ready = scene.expect(CONFIG_RECONCILER, CredentialsReady)
    assert written == ["roots.pem", "leaf.pem"]
    # The old one stays trusted while Consul lists it.
    assert len(ready.ca.fingerprints) == 2


def test_bad_credentials_are_refused_and_the_last_good_ones_stay(scene: Scene, tmp_path: Path) -> None:
    good = AUTHORITY.leaf(service_uri("web"))
    scene.tell(offered(good))
    scene.expect(CONFIG_RECONCILER, CredentialsReady)
    before = (tmp_path / "leaf.pem").read_text()
    bad = offered(AUTHORITY.leaf(service_uri("other")))

    scene.tell(bad)

    eventually(lambda: bool((scene.facts(ADMIN, CredentialFacts) or CredentialFacts()).problem), "the refusal is told")
    facts = scene.facts(ADMIN, CredentialFacts)
    assert facts is not None
    assert facts.leaf
    assert "svc/other" in facts.problem
    assert (tmp_path / "leaf.pem").read_text() == before
    assert len(scene.heard[CONFIG_RECONCILER]) == 1


def test_the_last_good_ones_may_be_those_that_an_earlier_hcc_put_on_disk(scene: Scene, tmp_path: Path) -> None:
    issued = AUTHORITY.leaf(service_uri("web"))
    (tmp_path / "leaf.pem").write_text(issued.cert_pem + issued.key_pem)
    (tmp_path / "roots.pem").write_text(AUTHORITY.pem)

    scene.tell(offered(AUTHORITY.leaf(service_uri("web"), days=-1)))

    ready = scene.expect(CONFIG_RECONCILER, CredentialsReady)
    assert ready.certificate.fingerprint == issued.fingerprint
    assert (tmp_path / "leaf.pem").read_text() == ready.certificate.pem.reveal()
    eventually(lambda: (scene.facts(ADMIN, CredentialFacts) or CredentialFacts()).leaf, "that is told")
    facts = scene.facts(ADMIN, CredentialFacts)
    assert facts is not None
    assert "valid now" in facts.problem


@pytest.mark.parametrize(
    ("leaf", "roots"),
    [
        (AUTHORITY.leaf(service_uri("other")), AUTHORITY),
        (AUTHORITY.leaf(service_uri("web"), days=-1), AUTHORITY),
        (AUTHORITY.leaf(service_uri("web")), Authority("Another CA")),
        (None, AUTHORITY),
    ],
    ids=["another service's", "expired", "of another CA", "damaged"],
)
def test_what_an_earlier_hcc_left_is_checked_before_it_is_used(
    scene: Scene, tmp_path: Path, leaf: IssuedLeaf | None, roots: Authority
) -> None:
    (tmp_path / "leaf.pem").write_text(leaf.cert_pem + leaf.key_pem if leaf else "damaged")
    (tmp_path / "roots.pem").write_text(roots.pem)

    scene.tell(offered(AUTHORITY.leaf(service_uri("web"), days=-1)))

    eventually(lambda: bool((scene.facts(ADMIN, CredentialFacts) or CredentialFacts()).problem), "the refusal is told")
    facts = scene.facts(ADMIN, CredentialFacts)
    assert facts is not None
    assert not facts.leaf
    assert not scene.heard[CONFIG_RECONCILER]


def test_a_refusal_that_lasts_is_logged_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cert_manager, "CHECK_AGAIN_S", 0.4)
    caplog.set_level(logging.DEBUG)

    def told() -> list[str]:
        return [one.levelname for one in caplog.records if "certificate from Consul not used" in one.message]

    scene.tell(offered(AUTHORITY.leaf(service_uri("web"), days=-1)))

    # Over more than a second, so that the time is another one.
    eventually(lambda: len(told()) >= 4, "it is looked at again and again")
    assert told()[:4] == ["WARNING", "DEBUG", "DEBUG", "DEBUG"]


def test_credentials_that_cannot_be_written_are_not_used_until_they_can(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cert_manager, "CHECK_AGAIN_S", 0.05)
    full = [True]

    def write(path: str, text: str) -> None:
        if full and path.endswith("leaf.pem"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write_private(path, text)

    monkeypatch.setattr(cert_manager, "write_private", write)
    scene.tell(offered(AUTHORITY.leaf(service_uri("web"))))
    eventually(
        lambda: "No space left" in (scene.facts(ADMIN, CredentialFacts) or CredentialFacts()).problem, "the problem"
    )
    assert not scene.all_of(CONFIG_RECONCILER, CredentialsReady)

    full.clear()

    scene.expect(CONFIG_RECONCILER, CredentialsReady)
    assert scene.generation() == 1


def test_a_restarted_manager_asks_consul_again_and_says_the_same(scene: Scene) -> None:
    issued = AUTHORITY.leaf(service_uri("web"))
    scene.tell(offered(issued))
    first = scene.expect(CONFIG_RECONCILER, CredentialsReady)

    scene.restart()
    scene.expect(CONSUL_WATCHER, Publish)
    scene.tell(offered(issued))

    eventually(lambda: scene.heard[CONFIG_RECONCILER] == [first, first], "the same is told again")


@pytest.mark.parametrize("name", ["leaf.pem", "roots.pem"])
def test_files_that_somebody_damaged_are_put_back_when_haproxy_is_down(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    scene.tell(offered(AUTHORITY.leaf(service_uri("web"))))
    scene.expect(CONFIG_RECONCILER, CredentialsReady)
    scene.tell(HAProxyDown("it died"))
    before = (tmp_path / name).read_text()
    (tmp_path / name).write_text("")

    scene.tell(HAProxyDown("it died"))

    eventually(lambda: (tmp_path / name).read_text() == before, "it is put back")
    eventually(lambda: caplog.text.count("put back") == 1, "that is told")


def test_publish_repeats_what_is_held(scene: Scene) -> None:
    scene.tell(offered(AUTHORITY.leaf(service_uri("web"))))
    first = scene.expect(CONFIG_RECONCILER, CredentialsReady)

    scene.tell(Publish())

    eventually(lambda: scene.heard[CONFIG_RECONCILER] == [first, first], "it is told again")


def test_new_roots_alone_are_news(scene: Scene) -> None:
    issued = AUTHORITY.leaf(service_uri("web"))
    scene.tell(offered(issued))
    scene.expect(CONFIG_RECONCILER, CredentialsReady)
    other = Authority("Next CA")

    more = replace(ROOTS, roots=(*ROOTS.roots, Root("2", other.pem)))
    scene.tell(offered(issued, more))

    scene.expect(CONFIG_RECONCILER, CredentialsReady, lambda ready: other.fingerprint in ready.ca.fingerprints)


def test_what_is_in_use_is_told_with_its_dates(scene: Scene) -> None:
    scene.tell(offered(AUTHORITY.leaf(service_uri("web"))))
    scene.expect(CONFIG_RECONCILER, CredentialsReady)
    eventually(lambda: bool((scene.facts(ADMIN, CredentialFacts) or CredentialFacts()).certificates), "it is told")

    facts = scene.facts(ADMIN, CredentialFacts)

    assert facts is not None
    assert [(one.kind, one.name) for one in facts.certificates] == [("leaf", service_uri("web")), ("root", "Test CA")]
    assert all(one.not_before < time.time() < one.not_after for one in facts.certificates)
