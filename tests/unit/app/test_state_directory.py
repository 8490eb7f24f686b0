import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.app.state_directory import MAX_NAME_BYTES, LockedError, StateDirectory, directory_name
from hcc.errors import SettingError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_is_private_and_named_after_the_proxy(tmp_path: Path) -> None:
    directory = StateDirectory(str(tmp_path), "web-sidecar-proxy")

    assert directory.path == tmp_path / "web-sidecar-proxy"
    assert mode(directory.path) == 0o700
    directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_hcc_is_told_who_has_the_directory(tmp_path: Path) -> None:
    first = StateDirectory(str(tmp_path), "web")

    with pytest.raises(LockedError, match="another hcc runs this proxy"):
        StateDirectory(str(tmp_path), "web")
    first.release()
    StateDirectory(str(tmp_path), "web").remove()


def test_what_an_earlier_hcc_left_is_kept_for_the_next(tmp_path: Path) -> None:
    first = StateDirectory(str(tmp_path), "web")
    (first.path / "haproxy.cfg").write_text("global\n")
    first.release()

    second = StateDirectory(str(tmp_path), "web")

    assert (second.path / "haproxy.cfg").exists()
    second.remove()


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "web").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SettingError, match="somebody else's"):
        StateDirectory(str(tmp_path), "web")


def test_a_base_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingError, match="expected to make the state directory"):
        StateDirectory(str(tmp_path / "file"), "web")


def test_a_base_too_deep_for_sockets_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="shorter path"):
        StateDirectory(str(tmp_path / ("d" * 100)), "web")


@given(st.text(min_size=1, max_size=80))
def test_any_proxy_id_makes_one_short_path_component(proxy_id: str) -> None:
    name = directory_name(proxy_id)

    assert 0 < len(os.fsencode(name)) <= MAX_NAME_BYTES
    assert "/" not in name
    assert not name.startswith(".")


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_two_proxies_never_share_a_directory(one: str, other: str) -> None:
    assert one == other or directory_name(one) != directory_name(other)
