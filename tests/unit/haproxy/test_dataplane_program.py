"""Which Data Plane API is used, with which flags, and which HAProxy it cannot serve."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hcc.errors import SettingError
from hcc.haproxy.capabilities import Feature, Version, capabilities
from hcc.haproxy.dataplane_program import (
    DataplaneProgram,
    command_line,
    find_dataplane,
    known_flags,
    looked_at_again,
    without_dropped,
)
from hcc.haproxy.layout import layout

V1 = """
  -c, --config-file=      Path
      --socket-path=      the unix socket
      --scheme=           the listeners
  -u, --userlist=         Userlist
  -b, --haproxy-bin=      Path
  -r, --reload-cmd=       Reload command
  -s, --restart-cmd=      Restart command
  -t, --transaction-dir=  Path
"""
V2 = f"{V1}  -f=  Path to the YAML file\n  --spoe-dir=\n  --disable-inotify\n  --reload-strategy=\n  --backups-dir=\n"
V3 = f"{V2}  --dataplane-storage-dir=\n"


def program(text: str) -> DataplaneProgram:
    return DataplaneProgram("/bin/dataplaneapi", "here", known_flags(text))


@pytest.mark.parametrize(("text", "generation"), [(V1, 1), (V2, 2), (V3, 3)])
def test_flags_tell_the_generation(text: str, generation: int) -> None:
    assert program(text).generation == generation


@pytest.mark.parametrize("text", [V1, V2, V3])
def test_a_program_gets_only_flags_that_it_knows(text: str) -> None:
    made = program(text)
    words = command_line(made, "/bin/haproxy", layout("/run/hcc/web"))[1:]
    flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= made.flags
    assert ("-f" in words) is (made.generation > 1)
    assert "--config-file=/run/hcc/web/haproxy.cfg" in words
    # Defaults of directories lie in /etc and /tmp: each is ours.
    assert all("/run/hcc/web" in word for word in words if "-dir=" in word)


def test_a_directory_with_a_space_is_refused_by_name() -> None:
    made = layout("/run/hcc/web")
    object.__setattr__(made, "directory", "/run/a b")
    with pytest.raises(SettingError, match="'/run/a b'"):
        command_line(program(V1), "/bin/haproxy", made)


def test_some_other_program_is_refused() -> None:
    with pytest.raises(SettingError, match="without its flags"):
        known_flags("usage: cat --help\n")


def test_1_2_does_without_what_it_drops_where_that_is_possible() -> None:
    able = without_dropped(capabilities(Version(2, 8)), program(V1))
    assert not able.has(Feature.POOL_LOW_CONN)
    assert able.has(Feature.DYNAMIC_SERVERS)
    assert without_dropped(capabilities(Version(2, 8)), program(V3)).has(Feature.POOL_LOW_CONN)


def test_1_2_is_refused_for_a_haproxy_that_needs_what_it_drops() -> None:
    with pytest.raises(SettingError, match=r"3\.4\.0 needs no-sni-auto.*--control direct"):
        without_dropped(capabilities(Version(3, 4)), program(V1))
    assert without_dropped(capabilities(Version(3, 4)), program(V2)).has(Feature.NO_SNI_AUTO)


def test_the_flag_comes_before_the_variable_and_that_before_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in ("flag", "variable", "dataplaneapi"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'E'\n{V1}\nE\n", encoding="utf-8")
        path.chmod(stat.S_IRWXU)
        paths.append(str(path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DATAPLANEAPI_BIN", paths[1])
    assert find_dataplane(paths[0]).binary == paths[0]
    assert find_dataplane().origin == "DATAPLANEAPI_BIN"
    monkeypatch.delenv("DATAPLANEAPI_BIN")
    assert find_dataplane().binary == paths[2]
    monkeypatch.chdir(tmp_path)
    assert find_dataplane("./flag").binary == paths[0]  # it is run in the state directory
    with pytest.raises(SettingError, match="--dataplane"):
        find_dataplane(str(tmp_path / "none"))


def test_a_program_in_whose_place_an_upgrade_put_another_is_asked_for_its_flags_again(tmp_path: Path) -> None:
    path = tmp_path / "dataplaneapi"

    def put(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\n", encoding="utf-8")
        new.chmod(stat.S_IRWXU)
        new.rename(path)

    put(V1)
    before = find_dataplane(str(path))
    assert looked_at_again(before) is before
    put(V3)
    after = looked_at_again(before)
    assert (before.generation, after.generation) == (1, 3)
    assert looked_at_again(after) is after
    # Whoever starts what is none sees that.
    put("another program")
    assert looked_at_again(after) is after
    path.unlink()
    assert looked_at_again(after) is after
