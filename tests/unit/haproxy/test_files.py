from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hcc.haproxy.files import is_below, private_directory, read_text, remove, remove_unfinished, write_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old, and longer")
    path.chmod(0o644)
    write_private(str(path), "new\n")
    assert path.read_text() == "new\n"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_while_a_file_is_replaced_has_all_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_private(str(path), "old, and longer")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        write_private(str(path), "new")
        assert reader.read() == b", and longer"
    assert path.read_text() == "new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_private(str(path), "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_leaves_is_told_from_other_files(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "from hcc.haproxy.files import write_private\n"
        "write_private(sys.argv[1], 'half')\n"
    )
    path = tmp_path / "answers.json"
    path.write_text("whole")
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=30)
    assert len(list(tmp_path.iterdir())) == 2

    remove_unfinished(str(tmp_path))

    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_private_even_when_it_was_not(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    private_directory(str(path))
    assert mode(path) == 0o700
    path.chmod(0o755)
    private_directory(str(path))
    assert mode(path) == 0o700


def test_a_path_leads_where_its_links_do_and_a_circle_of_links_nowhere(tmp_path: Path) -> None:
    private, link, circle = tmp_path / "private", tmp_path / "link", tmp_path / "circle"
    private.mkdir()
    link.symlink_to(private)
    circle.symlink_to(circle)
    assert is_below(str(link / "stats.sock"), str(private))
    assert is_below(str(private / "new"), str(link))
    assert not is_below(str(tmp_path / "app.sock"), str(private))
    assert not is_below(str(circle), str(private))
    assert not is_below(str(circle / "app.sock"), str(private))


def test_what_is_not_there_reads_as_none_and_is_removed_without_complaint(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    assert read_text(path) is None
    remove(path)
