from __future__ import annotations

from pathlib import Path

import pytest

from hcc.consul.credentials import TokenSource, read_token
from hcc.consul.environment import ConsulSettings, consul_settings
from hcc.errors import SettingError
from hcc.mesh.secret import Secret


def test_without_anything_the_local_agent_is_asked_without_a_token() -> None:
    settings = consul_settings({})
    assert settings.address.base_url() == "http://127.0.0.1:8500"
    assert settings.token is None
    assert settings.ssl_verify


def test_every_variable_is_read() -> None:
    settings = consul_settings(
        {
            "CONSUL_HTTP_ADDR": "consul:8501",
            "CONSUL_HTTP_TOKEN": "t",
            "CONSUL_HTTP_AUTH": "user:word",
            "CONSUL_HTTP_SSL": "true",
            "CONSUL_HTTP_SSL_VERIFY": "0",
            "CONSUL_CACERT": "ca.pem",
            "CONSUL_CAPATH": "ca.d",
            "CONSUL_CLIENT_CERT": "c.pem",
            "CONSUL_CLIENT_KEY": "k.pem",
            "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
            "CONSUL_NAMESPACE": "team",
            "CONSUL_PARTITION": "part",
        }
    )
    assert settings == ConsulSettings(
        address=settings.address,
        token=Secret("t"),
        token_file="",
        auth=Secret("user:word"),
        ssl_verify=False,
        ca_file="ca.pem",
        ca_path="ca.d",
        client_cert="c.pem",
        client_key="k.pem",
        tls_server_name="server.dc1.consul",
        namespace="team",
        partition="part",
    )
    assert settings.address.base_url() == "https://consul:8501"


def test_flags_win_over_variables() -> None:
    settings = consul_settings(
        {"CONSUL_HTTP_ADDR": "consul:8501", "CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": "theirs"},
        http_addr="other:1",
        ssl=False,
        ca_file="ours",
    )
    assert settings.address.base_url() == "http://other:1"
    assert settings.ca_file == "ours"


@pytest.mark.parametrize(
    ("environ", "flags", "token", "file"),
    [
        ({"CONSUL_HTTP_TOKEN": "e", "CONSUL_HTTP_TOKEN_FILE": "ef"}, {}, Secret("e"), ""),
        ({"CONSUL_HTTP_TOKEN_FILE": "ef"}, {}, None, "ef"),
        ({"CONSUL_HTTP_TOKEN": "e"}, {"token_file": "ff"}, None, "ff"),
        ({"CONSUL_HTTP_TOKEN": "e"}, {"token": "f", "token_file": "ff"}, Secret("f"), ""),
    ],
)
def test_the_nearest_token_wins(
    environ: dict[str, str], flags: dict[str, str], token: Secret | None, file: str
) -> None:
    settings = consul_settings(environ, token=flags.get("token"), token_file=flags.get("token_file"))
    assert (settings.token, settings.token_file) == (token, file)


def test_a_bad_boolean_names_variable_expectation_and_value() -> None:
    with pytest.raises(SettingError, match="CONSUL_HTTP_SSL_VERIFY: expected true or false, found 'yes'"):
        consul_settings({"CONSUL_HTTP_SSL_VERIFY": "yes"})


def test_a_client_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(SettingError, match="CONSUL_CLIENT_KEY"):
        consul_settings({"CONSUL_CLIENT_CERT": "c.pem"})


def test_settings_show_neither_token_nor_password() -> None:
    shown = repr(consul_settings({"CONSUL_HTTP_TOKEN": "s3cret", "CONSUL_HTTP_AUTH": "user:w0rd"}))
    assert "s3cret" not in shown
    assert "w0rd" not in shown


def test_a_token_file_is_read_again_on_request_and_the_last_good_token_stays(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    source = TokenSource(consul_settings({}, token_file=str(file)))
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
        read_token(consul_settings({}, token_file=str(file)))


def test_a_token_that_was_given_needs_no_file() -> None:
    assert read_token(consul_settings({}, token="t")) == Secret("t")
    assert read_token(consul_settings({})) is None
