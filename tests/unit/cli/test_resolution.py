"""Where a setting's value comes from, and what is said of one that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hcc.cli.resolution import Given, Sources, resolved, strange_variables
from hcc.cli.settings import shown
from hcc.cli.settings_table import ALL
from hcc.errors import SettingError

Texts = Mapping[str, str]


def found(
    flags: Texts | None = None, environ: Texts | None = None, file: Mapping[str, object] | None = None
) -> dict[str, Given]:
    sources = Sources(flags or {}, environ or {}, file or {}, "hcc.toml", {"state_dir": "/run/hcc"})
    return {given.setting.key: given for given in resolved(ALL, sources)}


def test_flags_beat_our_variables_beat_consul_s_beat_the_file_beat_the_default() -> None:
    flags = {"http_addr": "flag:1"}
    environ = {"HCC_HTTP_ADDR": "ours:1", "CONSUL_HTTP_ADDR": "consul:1"}
    file = {"http_addr": "file:1"}
    consul = {"CONSUL_HTTP_ADDR": "consul:1"}

    order = [
        found(flags, environ, file),
        found(None, environ, file),
        found(None, consul, file),
        found(None, None, file),
        found(),
    ]

    assert [(one["http_addr"].value, one["http_addr"].source) for one in order] == [
        ("flag:1", "--http-addr"),
        ("ours:1", "HCC_HTTP_ADDR"),
        ("consul:1", "CONSUL_HTTP_ADDR"),
        ("file:1", "http_addr in hcc.toml"),
        ("", "default"),
    ]


def test_a_password_in_the_agent_s_address_is_not_shown() -> None:
    given = found(environ={"CONSUL_HTTP_ADDR": "http://u:s3cret@h:8500"})["http_addr"]
    assert shown(given) == "http://...@h:8500"


def test_a_state_directory_is_not_wherever_hcc_was_started() -> None:
    with pytest.raises(SettingError, match="--state-dir: expected a directory, found nothing"):
        found({"state_dir": ""})


def test_every_setting_can_come_from_our_variable_and_from_the_file() -> None:
    samples = {"true|false": "true", "N": "3", "TIME": "3s", "HOST:PORT": ":1", "LEVEL": "warn"}
    samples |= {"direct|dataplane": "direct", "text|json|auto": "json", "TARGET": "stdout", "drain|leave": "leave"}
    samples |= {"enforce|audit|off": "audit"}
    samples |= {"probe|response|both|off": "probe"}
    for setting in ALL:
        text = samples.get(setting.metavar, "x")
        by_variable = found(environ={setting.own_variable: text})[setting.key]
        by_file = found(file={setting.key: text})[setting.key]
        assert by_variable.value == by_file.value == setting.parse(text), setting.key


def test_variables_of_consul_s_own_programs_are_read() -> None:
    environ = {
        "CONSUL_HTTP_TOKEN": "t", "CONSUL_HTTP_AUTH": "user:word", "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "0", "CONSUL_CACERT": "ca.pem", "CONSUL_CAPATH": "ca.d",
        "CONSUL_CLIENT_CERT": "c.pem", "CONSUL_CLIENT_KEY": "k.pem", "CONSUL_TLS_SERVER_NAME": "name",
        "CONSUL_NAMESPACE": "team", "CONSUL_PARTITION": "part",
    }  # fmt: skip
    given = found(environ=environ)

    chosen = {key: one.value for key, one in given.items() if one.source.startswith("CONSUL_")}
    assert chosen == {
        "token": "t", "auth": "user:word", "ssl": True, "ssl_verify": False, "ca_file": "ca.pem", "ca_path": "ca.d",
        "client_cert": "c.pem", "client_key": "k.pem", "tls_server_name": "name", "namespace": "team",
        "partition": "part",
    }  # fmt: skip


def test_the_file_takes_toml_s_own_numbers_and_booleans() -> None:
    given = found(file={"spoe_workers": 4, "drain_maintenance": True, "drain_timeout": 2.5})

    assert [given[key].value for key in ("spoe_workers", "drain_maintenance", "drain_timeout")] == [4, True, 2.5]


def test_an_empty_variable_counts_as_missing_and_an_empty_flag_as_given() -> None:
    file = {"stats_addr": ":1"}

    assert found(environ={"HCC_STATS_ADDR": ""}, file=file)["stats_addr"].source == "stats_addr in hcc.toml"
    assert found({"stats_addr": ""}, file=file)["stats_addr"].value is None


@pytest.mark.parametrize(
    ("flags", "environ", "chosen"),
    [
        ({}, {"CONNECT_SIDECAR_FOR": "a"}, {"sidecar_for": "a"}),
        ({}, {"CONNECT_SIDECAR_FOR": "a", "CONNECT_PROXY_ID": "p"}, {"proxy_id": "p"}),
        ({"sidecar_for": "b"}, {"CONNECT_PROXY_ID": "p"}, {"sidecar_for": "b"}),
        ({"sidecar_for_tag": "t"}, {"CONNECT_SIDECAR_FOR": "a"}, {"sidecar_for_tag": "t"}),
        ({}, {"HCC_SIDECAR_FOR": "b", "CONNECT_PROXY_ID": "p"}, {"sidecar_for": "b"}),
    ],
)
def test_the_strongest_source_chooses_the_proxy_alone(flags: Texts, environ: Texts, chosen: Texts) -> None:
    given = found(flags, environ)

    keys = ("sidecar_for", "proxy_id", "sidecar_for_tag")
    assert {key: given[key].value for key in keys if given[key].value} == chosen


@pytest.mark.parametrize(
    ("flags", "environ", "chosen"),
    [
        ({}, {"CONSUL_HTTP_TOKEN": "e", "CONSUL_HTTP_TOKEN_FILE": "ef"}, ("e", "")),
        ({}, {"CONSUL_HTTP_TOKEN_FILE": "ef"}, ("", "ef")),
        ({"token_file": "ff"}, {"CONSUL_HTTP_TOKEN": "e"}, ("", "ff")),
        ({"token": "f"}, {"HCC_TOKEN_FILE": "ef"}, ("f", "")),
    ],
)
def test_the_strongest_source_gives_the_token_alone(flags: Texts, environ: Texts, chosen: tuple[str, str]) -> None:
    given = found(flags, environ)

    assert (given["token"].value, given["token_file"].value) == chosen


@pytest.mark.parametrize(
    ("environ", "file", "message"),
    [
        ({"HCC_SPOE_WORKERS": "many"}, {}, "HCC_SPOE_WORKERS: expected a whole number from 1 to 64, found 'many'"),
        ({"CONSUL_HTTP_SSL": "yes"}, {}, "CONSUL_HTTP_SSL: expected true or false, found 'yes'"),
        ({}, {"log_level": "loud"}, "log_level in hcc.toml: expected one of trace, .* found 'loud'"),
        ({}, {"stat_addr": ":1"}, r"hcc.toml: unknown key 'stat_addr': did you mean stats_addr\?"),
        ({}, {"zzz": 1}, "hcc.toml: unknown key 'zzz': expected one of proxy_id, "),
        ({}, {"consul": {"token": "x"}}, "hcc.toml: unknown key 'consul'"),
        ({}, {"token": ["s3cret"]}, "token in hcc.toml: expected a text, a number or true/false, found a list"),
        (
            {},
            {"token_file": "/a\0b"},
            "token_file in hcc.toml: expected a text as a flag could be, found one with a NUL",
        ),
        ({"HCC_SIDECAR_FOR": "a", "HCC_PROXY_ID": "b"}, {}, "expected one of --proxy-id and --sidecar-for, found both"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line_with_its_source(
    environ: Texts, file: Mapping[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        found(environ=environ, file=file)

    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_variable_that_looks_like_a_setting_is_told_and_foreign_ones_are_not() -> None:
    environ = {"HCC_STAT_ADDR": ":1", "HCC_SERVICE_PORT_8080_TCP": "x", "HCC_CONFIG_FILE": "f", "HCC_TOKEN": "t"}

    assert strange_variables(environ) == ("HCC_STAT_ADDR is no setting; did you mean HCC_STATS_ADDR?",)
