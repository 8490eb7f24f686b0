from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hcc.app.answers_file import NAME, AnswersFile, StaleAnswersError, kept_choice, kept_ledger, unkept_ledger
from hcc.app.selection import Chosen
from hcc.consul.answers import IntentionList, Registration
from hcc.consul.assembly import State
from hcc.consul.keys import EndpointsWatch, IntentionsWatch, LeafWatch, ProxyWatch, RootsWatch
from hcc.settings import Selection
from tests import builders
from tests.pki import Authority

SELECTION = Selection(sidecar_for_tag="blue")
CHOSEN = Chosen("server-sidecar-proxy", "server", "server")


def now() -> datetime:
    """Not a constant of the module: much later in a long run, a leaf made then would begin after it."""
    return datetime.now(UTC)


def state() -> State:
    authority = Authority()
    issued = authority.leaf(builders.service_uri("server"))
    leaf = builders.leaf("server", cert_pem=issued.cert_pem, key_pem=issued.key_pem)
    return State(
        CHOSEN.proxy_id,
        (
            (ProxyWatch(CHOSEN.proxy_id), Registration(builders.proxy(), "dc1")),
            (RootsWatch(), builders.roots(authority.pem)),
            (LeafWatch("server"), leaf),
            (IntentionsWatch("server", builders.TRUST_DOMAIN, "dc1"), IntentionList((), True)),
            (EndpointsWatch("gone", "dc1"), ()),
        ),
        3,
    )


@pytest.fixture
def file(tmp_path: Path) -> AnswersFile:
    (tmp_path / "server").mkdir()
    return AnswersFile(tmp_path / "server", SELECTION, CHOSEN)


def test_what_was_kept_is_read_back_and_is_private(file: AnswersFile, tmp_path: Path) -> None:
    kept = state()
    assert file.store(kept)
    assert file.load(now()) == kept
    assert stat.S_IMODE((tmp_path / "server" / NAME).stat().st_mode) == 0o600


def test_nothing_kept_is_no_error(file: AnswersFile) -> None:
    assert file.load(now()) is None
    assert kept_ledger(file, State(CHOSEN.proxy_id)).page.unconfirmed == frozenset()


def test_an_expired_leaf_is_not_served_from(file: AnswersFile) -> None:
    file.store(state())
    with pytest.raises(StaleAnswersError, match="valid"):
        file.load(now() + timedelta(days=400))


@pytest.mark.parametrize("missing", [ProxyWatch, RootsWatch, LeafWatch])
def test_answers_without_leaf_or_roots_are_not_served_from_and_the_start_goes_on(
    file: AnswersFile, missing: type[object]
) -> None:
    # A killed hcc may have heard no more than that.
    kept = state()
    file.store(replace(kept, values=tuple((key, value) for key, value in kept.values if not isinstance(key, missing))))
    with pytest.raises(StaleAnswersError, match="no leaf certificate and roots"):
        file.load(now())
    assert kept_ledger(file, State(CHOSEN.proxy_id)).page.state == State(CHOSEN.proxy_id)


def test_a_file_that_is_too_large_is_not_read(file: AnswersFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.store(state())
    monkeypatch.setattr("hcc.app.answers_file.MAX_BYTES", 10)
    with pytest.raises(StaleAnswersError, match="at most 10 bytes"):
        file.load(now())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": 1}', "[" * 100_000, '{"selection":{"nothing":1}}'])
def test_a_damaged_file_is_not_served_from_and_the_start_goes_on(
    file: AnswersFile, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server" / NAME).write_text(text)
    with pytest.raises(StaleAnswersError, match="damaged"):
        file.load(now())
    assert kept_ledger(file, State(CHOSEN.proxy_id)).page.state == State(CHOSEN.proxy_id)
    assert "not used" in caplog.text
    assert kept_choice(tmp_path, SELECTION) is None


def test_answers_with_a_field_that_is_no_more_are_not_served_from_and_the_start_goes_on(
    file: AnswersFile, tmp_path: Path
) -> None:
    kept = tmp_path / "server" / NAME
    file.store(state())
    kept.write_text(kept.read_text().replace('"trust_domain":', '"active_id":"1","trust_domain":', 1))
    with pytest.raises(StaleAnswersError, match=r"of another hcc: .*unknown are .'active_id'."):
        file.load(now())
    assert kept_ledger(file, State(CHOSEN.proxy_id)).page.state == State(CHOSEN.proxy_id)


def test_answers_about_another_instance_are_not_served_from(file: AnswersFile, tmp_path: Path) -> None:
    file.store(state())
    other = AnswersFile(tmp_path / "server", SELECTION, Chosen(CHOSEN.proxy_id, "another", "server"))
    with pytest.raises(StaleAnswersError, match="of server"):
        other.load(now())


def test_the_same_choice_finds_the_proxy_without_the_agent(file: AnswersFile, tmp_path: Path) -> None:
    file.store(state())
    assert kept_choice(tmp_path, SELECTION) == CHOSEN
    assert kept_choice(tmp_path, Selection(sidecar_for_tag="green")) is None
    assert kept_choice(tmp_path / "nowhere", SELECTION) is None


def test_every_kept_answer_that_is_still_asked_for_waits_to_be_confirmed(file: AnswersFile) -> None:
    kept = state()
    file.store(kept)
    ledger = kept_ledger(file, State(CHOSEN.proxy_id))
    assert ledger.page.state == kept
    assert ledger.page.unconfirmed == {key for key, _ in kept.values if not isinstance(key, EndpointsWatch)}


def test_a_disk_that_does_not_take_them_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = AnswersFile(tmp_path / "missing", SELECTION, CHOSEN)
    for _ in range(3):
        assert not file.store(state())
    assert caplog.text.count("cannot be kept") == 1
    assert "PRIVATE KEY" not in caplog.text


@pytest.mark.parametrize("restarted", [False, True])
def test_answers_with_an_older_policy_do_not_stay_where_the_disk_does_not_take_the_newer(
    file: AnswersFile, tmp_path: Path, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = state()
    file.store(kept)
    if restarted:
        file = AnswersFile(tmp_path / "server", SELECTION, CHOSEN)
        assert file.load(now()) == kept

    with monkeypatch.context() as full:
        full.setattr(tempfile, "mkstemp", _no_space)
        assert not file.store(replace(kept, values=kept.values[:-1]))
        assert file.load(now()) == kept

        assert not file.store(replace(kept, policy_version=4))
        assert not file.store(replace(kept, policy_version=4))
        assert file.load(now()) is None

    assert file.store(replace(kept, policy_version=4))
    assert file.load(now()) == replace(kept, policy_version=4)


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_start_that_is_to_keep_nothing_leaves_no_answers_of_before(file: AnswersFile, tmp_path: Path) -> None:
    file.store(state())
    ledger = unkept_ledger(file, State(CHOSEN.proxy_id))
    assert (ledger.page.state, ledger.keeper) == (State(CHOSEN.proxy_id), None)
    assert not (tmp_path / "server" / NAME).exists()


def test_answers_that_cannot_be_removed_are_told(
    file: AnswersFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server" / NAME).mkdir()
    for _ in range(3):
        file.forget()
    assert caplog.text.count("cannot be removed") == 1


def test_no_secret_is_lost_and_the_file_is_json(file: AnswersFile, tmp_path: Path) -> None:
    file.store(state())
    form = json.loads((tmp_path / "server" / NAME).read_text())
    assert form["chosen"]["proxy_id"] == CHOSEN.proxy_id
