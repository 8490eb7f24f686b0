from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hcc.consul.credentials import TokenSource, read_token
from hcc.consul.environment import consul_settings
from hcc.errors import SettingError
from hcc.mesh.secret import Secret


def test_without_anything_the_local_agent_is_asked_without_a_token() -> None:
    settings = consul_settings()
    assert settings.address.base_url() == "http://127.0.0.1:8500"
    assert settings.token is None
    assert settings.ssl_verify


def test_a_token_wins_over_its_file() -> None:
    settings = consul_settings(token="t", token_file="f")
    assert (settings.token, settings.token_file) == (Secret("t"), "")


def test_a_token_may_have_the_line_end_that_echo_leaves() -> None:
    assert consul_settings(token=" t\n").token == Secret("t")
    settings = consul_settings(token="\n", token_file="f")
    assert (settings.token, settings.token_file) == (None, "f")


@pytest.mark.parametrize(
    ("token", "found"),
    [("s3cret and more", "more"), ("s3cret\nmore", "more"), ("s3cr\u00e9t", "other characters than ASCII")],
)
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str, found: str) -> None:
    with pytest.raises(SettingError, match=f"expected one token, found {found}$") as refused:
        consul_settings(token=token)
    assert "s3c" not in str(refused.value)


def test_a_client_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(SettingError, match="--client-key"):
        consul_settings(client_cert="c.pem")


@pytest.mark.parametrize(
    ("setting", "text"), [("tls_server_name", ".dc1.consul"), ("namespace", "\udcff"), ("partition", "a\nb")]
)
def test_a_name_that_cannot_be_asked_for_is_refused(setting: str, text: str) -> None:
    made: dict[str, Any] = {setting: text}
    with pytest.raises(SettingError, match=f"expected --{setting.replace('_', '-')} to be"):
        consul_settings(**made)


def test_settings_show_neither_token_nor_password() -> None:
    shown = repr(consul_settings(token="s3cret", auth="user:w0rd"))
    assert "s3cret" not in shown
    assert "w0rd" not in shown


def test_a_token_file_is_read_again_on_request_and_the_last_good_token_stays(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    source = TokenSource(consul_settings(token_file=str(file)))
    file.write_text("two\n")
    assert source() == Secret("one")
    assert source.reload()
    assert source() == Secret("two")
    assert not source.reload()
    file.unlink()
    with pytest.raises(SettingError, match=str(file)):
        source.reload()
    assert source() == Secret("two")


@pytest.mark.parametrize("text", ["", "\n", "two tokens", "caf\u00e9", "nul\x00"])
def test_a_token_file_without_one_token_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(SettingError, match="expected"):
        read_token(consul_settings(token_file=str(file)))


def test_a_token_that_was_given_needs_no_file() -> None:
    assert read_token(consul_settings(token="t")) == Secret("t")
    assert read_token(consul_settings()) is None
