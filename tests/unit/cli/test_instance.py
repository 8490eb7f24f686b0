"""The settings file: which one, and what is said of one that cannot be read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from hcc.cli import instance
from hcc.cli.instance import add_instance, default_state_dir, settle
from hcc.errors import SettingError


def settled(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_instance(parser)
    options = parser.parse_args(words)
    settle(options)
    return options


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HCC_CONFIG_FILE", "HCC_SIDECAR_FOR", "HCC_PROXY_ID", "CONNECT_SIDECAR_FOR", "CONNECT_PROXY_ID"):
        monkeypatch.delenv(name, raising=False)


def test_the_usual_file_need_not_be_there_but_one_that_is_named_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "DEFAULT_CONFIG_FILE", str(tmp_path / "hcc.toml"))
    assert settled().sidecar_for == ""
    with pytest.raises(SettingError, match="expected a readable TOML file, found No such file"):
        settled("--config-file", str(tmp_path / "hcc.toml"))
    (tmp_path / "hcc.toml").write_text('sidecar_for = "web"\n')
    assert settled().sidecar_for == "web"


def test_an_empty_variable_counts_as_missing_and_an_empty_flag_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hcc.toml").write_text('sidecar_for = "web"\n')
    monkeypatch.setattr(instance, "DEFAULT_CONFIG_FILE", str(tmp_path / "hcc.toml"))
    monkeypatch.setenv("HCC_CONFIG_FILE", "")

    assert settled().sidecar_for == "web"
    assert settled("--config-file", "").sidecar_for == ""


def test_a_usual_file_that_may_not_be_looked_at_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any error will do that Path.exists() does not take for absence; no permission is none to root.
    monkeypatch.setattr(instance, "DEFAULT_CONFIG_FILE", str(tmp_path / ("x" * 300)))
    with pytest.raises(SettingError, match="x: expected a readable TOML file, found File name too long"):
        settled()


def test_a_file_that_nests_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "hcc.toml").write_text(f"x = {'[' * 100_000}")
    with pytest.raises(SettingError, match="expected TOML, found"):
        settled("--config-file", str(tmp_path / "hcc.toml"))


def test_state_is_the_systems_for_root_and_the_users_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"XDG_RUNTIME_DIR": "/run/user/7"}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_dir(login) == "/run/hcc"
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert default_state_dir(login) == "/run/user/7/hcc"
    assert default_state_dir({}) == "/tmp/hcc-7"
