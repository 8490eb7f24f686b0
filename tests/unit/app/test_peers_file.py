from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hcc.app.peers_file import NAME, PeersFile, register_of
from hcc.mesh.peer_book import Kept, KnownLeaf, Peer

KEPT = Kept((Peer("10.0.0.1", 21000, "spiffe://d/web"),), (KnownLeaf("A" * 64, "spiffe://d/web", 4_000_000_000),))


def test_what_is_stored_is_private_and_comes_back(tmp_path: Path) -> None:
    assert PeersFile(tmp_path).store(KEPT)

    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert PeersFile(tmp_path).load() == KEPT


def test_without_a_file_nothing_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PeersFile(tmp_path).load() == Kept()
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "{", "[]", '{"admitted": 3}', '{"other": []}', '{"admitted": [["10.0.0.1"]]}'])
def test_a_damaged_file_is_said_and_not_used(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_text(text)

    assert PeersFile(tmp_path).load() == Kept()

    assert "all endpoints are probed" in caplog.text


def test_a_disk_that_does_not_take_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = PeersFile(tmp_path / "gone")

    with caplog.at_level(logging.ERROR):
        assert not file.store(KEPT)
        assert not file.store(KEPT)

    assert len(caplog.records) == 1


def test_what_was_kept_counts_only_beside_a_haproxy_that_runs(tmp_path: Path) -> None:
    file = PeersFile(tmp_path)
    file.store(KEPT)

    assert register_of(file, running=True).book.kept() == KEPT
    assert register_of(file, running=False).book.kept() == Kept()
