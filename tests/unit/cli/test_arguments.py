import os

import pytest

from hcc.cli.arguments import parse, parser
from hcc.cli.commands import COMMANDS
from hcc.cli.instance import settle
from hcc.cli.run import run_settings
from hcc.errors import SettingError
from hcc.settings import Enforcement, ListenAddress, RunSettings, Selection


def settings(*words: str) -> RunSettings:
    options = parse(parser(COMMANDS), ["run", *words])
    settle(options)
    return run_settings(options)


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("HCC_", "CONSUL_", "CONNECT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HCC_CONFIG_FILE", "/dev/null")


def test_defaults_are_safe_intentions_on_and_no_open_port() -> None:
    chosen = settings("--sidecar-for", "web")

    assert chosen.selection == Selection(sidecar_for="web")
    assert chosen.intentions is Enforcement.ENFORCE
    assert chosen.stats_addr is None
    assert chosen.spoe_workers == 2


def test_intentions_can_be_audited_or_switched_off() -> None:
    assert settings("--sidecar-for", "web", "--intentions", "audit").intentions is Enforcement.AUDIT
    assert settings("--sidecar-for", "web", "--intentions=off").intentions is Enforcement.OFF


def test_the_stats_address_is_read_and_empty_means_none() -> None:
    assert settings("--sidecar-for", "web", "--stats-addr", ":20200").stats_addr == ListenAddress("", 20200)
    assert settings("--sidecar-for", "web", "--stats-addr=").stats_addr is None


def test_haproxy_is_driven_directly_unless_a_data_plane_api_is_asked_for_or_named() -> None:
    assert settings("--sidecar-for", "web").control == "direct"
    assert settings("--sidecar-for", "web", "--control", "dataplane").control == "dataplane"
    named = settings("--sidecar-for", "web", "--dataplane", "/opt/dataplaneapi")
    assert (named.control, named.dataplane) == ("dataplane", "/opt/dataplaneapi")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sidecar-for", "a", "--control", "direct", "--dataplane", "d"), "contradict each other"),
        (("--sidecar-for", "a", "--control", "other"), "--control: expected direct or dataplane, found 'other'"),
        ((), "expected one of --sidecar-for, --proxy-id, --sidecar-for-tag, found none"),
        (("--sidecar-for", "a", "--proxy-id", "b"), "found both"),
        (
            ("--sidecar-for", "a", "--htp-addr", "x"),
            r"unknown argument '--htp-addr': did you mean --http-addr\?",
        ),
        (("--sidecar-for", "a", "--tokne=secret"), r"unknown argument '--tokne': did you mean --token\?"),
        (("--sidecar-for", "a", "stray"), "unknown argument 'stray'"),
        (("--sidecar-for", "a", "--log-level", "loud"), "--log-level: expected one of trace"),
        (("--sidecar-for", "a", "--spoe-workers", "0"), "expected a whole number from 1 to 64, found '0'"),
        (("--sidecar-for", "a", "--spoe-workers", "\u0663"), "expected a whole number from 1 to 64, found"),
        (("--sidecar-for", "a", "--spoe-workers", "9" * 5000), "expected a whole number from 1 to 64, found"),
        (("--sidecar-for", "a", "--stats-addr", "x"), "expected HOST:PORT"),
        (("--sidecar-for", "a", "--stats-service-register"), "expects --stats-addr"),
        (
            ("--sidecar-for", "a", "--access-log", "/dev/l og"),
            "^--access-log cannot stand in HAProxy.s configuration: .*without blanks",
        ),
        (("--sidecar-for", "a", "--access-log", f"/{'x' * 97}"), "^--access-log .*a socket path of at most 97 bytes"),
        (("--sidecar-for", "a", "--access-log", "[fe80::1%lo]:514"), "^--access-log .*an IP address without a zone"),
        (("--sidecar-for", "a", "--intentions=maybe"), "expected enforce, audit or off, found 'maybe'"),
        (("--sidecar-for",), "expected one argument"),
    ],
)
def test_a_wrong_flag_or_value_says_in_one_line_what_was_expected(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        settings(*words)

    assert "\n" not in str(caught.value)


def test_no_command_names_the_commands_there_are() -> None:
    with pytest.raises(SettingError, match=r"expected a command: run, .*actors"):
        parse(parser(COMMANDS), [])


@pytest.mark.parametrize(("word", "hint"), [("statsu", r"did you mean status\?"), ("zzz", "expected one of run, ")])
def test_an_unknown_command_is_answered_with_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(SettingError, match=f"unknown command '{word}': {hint}"):
        parse(parser(COMMANDS), [word])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("restart", ""), "expected the name of an actor, found nothing"),
        (("status", "--json", "--watch"), "argument --watch: not allowed with argument --json"),
    ],
)
def test_what_would_do_something_else_than_was_meant_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ran(*words)


def ran(*words: str) -> object:
    options = parse(parser(COMMANDS), words)
    settle(options)
    return options.run(options)
