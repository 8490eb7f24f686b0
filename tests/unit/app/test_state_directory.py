import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.app.state_directory import MAX_NAME_BYTES, LockedError, StateDirectory, directory_name
from hcc.errors import SettingError


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, as sockets go below it: pytest's own names are long under xdist."""
    with tempfile.TemporaryDirectory(prefix="hcc-t-") as made:
        yield Path(made)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_is_private_and_named_after_the_proxy(base: Path) -> None:
    directory = StateDirectory(str(base), "web-sidecar-proxy")

    assert directory.path == base / "web-sidecar-proxy"
    assert mode(directory.path) == 0o700
    directory.remove()
    assert list(base.iterdir()) == []


def test_a_second_hcc_is_told_who_has_the_directory(base: Path) -> None:
    first = StateDirectory(str(base), "web")

    with pytest.raises(LockedError, match="another hcc runs this proxy"):
        StateDirectory(str(base), "web")
    first.release()
    StateDirectory(str(base), "web").remove()


def test_a_directory_that_somebody_removed_is_made_anew_and_stays_locked(base: Path) -> None:
    directory = StateDirectory(str(base), "web")
    assert not directory.keep()
    shutil.rmtree(directory.path)

    assert directory.keep()

    assert mode(directory.path) == 0o700
    with pytest.raises(LockedError):
        StateDirectory(str(base), "web")
    directory.remove()


def test_a_directory_that_another_hcc_has_by_now_is_not_taken_from_it(base: Path) -> None:
    directory = StateDirectory(str(base), "web")
    shutil.rmtree(directory.path)
    another = StateDirectory(str(base), "web")

    with pytest.raises(LockedError):
        directory.keep()

    directory.remove()
    assert another.path.exists()
    another.remove()
    assert list(base.iterdir()) == []


def test_what_an_earlier_hcc_left_is_kept_for_the_next(base: Path) -> None:
    first = StateDirectory(str(base), "web")
    (first.path / "haproxy.cfg").write_text("global\n")
    first.release()

    second = StateDirectory(str(base), "web")

    assert (second.path / "haproxy.cfg").exists()
    second.remove()


def test_what_a_killed_hcc_had_not_finished_writing_is_removed(base: Path) -> None:
    first = StateDirectory(str(base), "web")
    for name in (".answers.json.k1ll3d_b", ".haproxy.cfg.abcdefgh"):
        (first.path / name).write_text("with a key")
    kept = {"answers.json", ".answers.json", ".answers.json.UPPERCAS", ".answers.json.ninechars", "x.json.abcdefgh"}
    for name in kept:
        (first.path / name).write_text("")
    (first.path / ".directory.abcdefgh").mkdir()
    first.release()

    second = StateDirectory(str(base), "web")

    assert {path.name for path in second.path.iterdir()} == kept | {"lock", ".directory.abcdefgh"}
    second.remove()


def test_a_link_in_place_of_the_directory_is_refused(base: Path) -> None:
    (base / "elsewhere").mkdir(mode=0o755)
    before = mode(base / "elsewhere")
    (base / "web").symlink_to(base / "elsewhere")

    with pytest.raises(SettingError, match="found a link"):
        StateDirectory(str(base), "web")
    # Nor was anything done to what it leads to.
    assert mode(base / "elsewhere") == before


def test_a_link_that_somebody_is_quick_to_put_there_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "elsewhere").mkdir(mode=0o755)
    before, real = mode(base / "elsewhere"), Path.mkdir

    def mkdir(path: Path, mode: int, *, parents: bool = False, exist_ok: bool = False) -> None:
        if path == base / "web" and not path.is_symlink():
            path.symlink_to(base / "elsewhere")
        real(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)

    with pytest.raises(SettingError, match="found a link"):
        StateDirectory(str(base), "web")
    assert mode(base / "elsewhere") == before
    assert not list((base / "elsewhere").iterdir())


def test_a_base_that_is_gone_when_it_is_looked_at_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where another user made it in /tmp, moves it out of sight, and back.
    real, asked = Path.mkdir, [base / "hcc"]

    def mkdir(path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        if path in asked:
            asked.remove(path)
            return
        real(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)

    with pytest.raises(SettingError, match="No such file"):
        StateDirectory(str(base / "hcc"), "web")


@pytest.mark.parametrize("which", ["base", "directory", "link to the base"])
def test_a_place_of_somebody_else_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    ours, theirs = os.geteuid(), 54_001
    (base / "hcc" / "web").mkdir(parents=True)
    (base / "link").symlink_to(base / "hcc")
    place = base / ("link" if which == "link to the base" else "hcc")
    # As the system would say it, had another user made them.
    owned = {"base": place, "directory": place / "web", "link to the base": place}[which]
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        found = real(path)
        return os.stat_result((*found[:4], theirs if path == owned else ours, *found[5:10]))

    monkeypatch.setattr(Path, "lstat", lstat)

    with pytest.raises(SettingError, match=f"the user with the ID {theirs}.*--state-dir"):
        StateDirectory(str(place), "web")


def test_a_base_of_ours_may_be_a_link(base: Path) -> None:
    (base / "hcc").mkdir()
    (base / "link").symlink_to(base / "hcc")

    StateDirectory(str(base / "link"), "web").remove()


def test_a_base_that_is_a_file_is_a_clear_error(base: Path) -> None:
    (base / "file").write_text("")

    with pytest.raises(SettingError, match="expected one that can be made, found"):
        StateDirectory(str(base / "file"), "web")


@pytest.mark.parametrize("found", ["Is a directory", "Too many levels of symbolic links", "No such device or address"])
def test_what_is_in_the_place_of_the_lock_is_a_clear_error(base: Path, found: str) -> None:
    (base / "web").mkdir(mode=0o700)
    lock = base / "web" / "lock"
    if found == "Is a directory":
        lock.mkdir()
    elif found == "Too many levels of symbolic links":
        lock.symlink_to(lock)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(lock))

    with pytest.raises(SettingError, match=f"^expected {lock} to be a file that can be written, found {found}; remove"):
        StateDirectory(str(base), "web")


def test_a_base_too_deep_for_sockets_is_a_clear_error(base: Path) -> None:
    with pytest.raises(SettingError, match="shorter path"):
        StateDirectory(str(base / ("d" * 100)), "web")


@given(st.text(min_size=1, max_size=80))
def test_any_proxy_id_makes_one_short_path_component(proxy_id: str) -> None:
    name = directory_name(proxy_id)

    assert 0 < len(os.fsencode(name)) <= MAX_NAME_BYTES
    assert "/" not in name
    assert not name.startswith(".")


def test_a_proxy_id_that_is_no_utf_8_has_a_name_of_its_own() -> None:
    ids = [f"{word}\udcff" for word in ("web", "api", "web" * 30, "api" * 30)]

    assert len({directory_name(one) for one in ids}) == len(ids)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_two_proxies_never_share_a_directory(one: str, other: str) -> None:
    assert one == other or directory_name(one) != directory_name(other)


def test_a_relative_directory_in_a_working_directory_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(SettingError, match=r"expected an absolute state directory, .* found 'below'"):
        StateDirectory("below", "web-sidecar-proxy")
