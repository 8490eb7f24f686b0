import pytest

from hcc.cli.go_flags import translated, wants_help
from hcc.errors import SettingError


def test_one_dash_and_two_say_the_same() -> None:
    assert translated(["-sidecar-for", "web"]) == translated(["--sidecar-for=web"]) == ("--sidecar-for=web",)


def test_every_flag_of_the_go_program_is_taken() -> None:
    words = (
        "-sidecar-for web -sidecar-for-tag t -http-addr a:1 -token x -log-level INFO -haproxy h -dataplane d "
        "-haproxy-cfg-base-path /d -stats-addr :1 -stats-service-register -enable-intentions -version"
    )

    assert translated(words.split()) == (
        "--sidecar-for=web",
        "--sidecar-for-tag=t",
        "--http-addr=a:1",
        "--token=x",
        "--log-level=INFO",
        "--haproxy=h",
        "--dataplane=d",
        "--state-dir=/d",
        "--stats-addr=:1",
        "--stats-service-register",
        "--intentions=enforce",
        "--version",
    )


def test_an_empty_value_is_as_good_as_none() -> None:
    words = ["-sidecar-for", "web", "-sidecar-for-tag", "", "-token=", "-haproxy-cfg-base-path", ""]
    assert translated(words) == ("--sidecar-for=web",)


def test_a_boolean_takes_its_value_only_behind_an_equals_sign() -> None:
    assert translated(["-enable-intentions=false"]) == ("--intentions=off",)
    with pytest.raises(SettingError, match="found 'false'"):
        translated(["-enable-intentions", "false"])


def test_the_version_may_be_asked_for_or_not() -> None:
    assert translated(["-version=true"]) == translated(["-version"]) == ("--version",)
    assert translated(["-version=false", "-sidecar-for=web"]) == ("--sidecar-for=web",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-version=maybe"], "flag -version: expected true or false, found 'maybe'"),
        (["-enable-intentions=maybe"], "flag -enable-intentions: expected true or false, found 'maybe'"),
        (["-nope"], "unknown flag -nope; expected one of -dataplane"),
        (["-proxy-id", "x"], "flag -proxy-id is not of the Go program: use `hcc run`, or set HCC_PROXY_ID"),
        (["--config-file=x"], "flag -config-file is not of the Go program: use `hcc run`, or set HCC_CONFIG_FILE"),
        (["-haproxy-param", "defaults.retries=1"], "flag -haproxy-param is not taken any more, leave it out"),
        (["web"], "expected a flag such as -sidecar-for, found 'web'"),
        (["-token"], "flag -token expects a value, found none"),
        (["---token", "x"], "expected a flag"),
    ],
)
def test_wrong_words_are_named(words: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        translated(words)


def test_help_is_asked_for_with_one_dash_or_two() -> None:
    assert wants_help(["-h"])
    assert wants_help(["--help"])
    assert not wants_help(["-haproxy", "x"])
