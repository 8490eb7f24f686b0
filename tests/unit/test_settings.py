import pytest

from hcc.errors import SettingError
from hcc.settings import (
    ListenAddress,
    parse_access_log,
    parse_boolean,
    parse_duration,
    parse_listen_address,
    parse_log_level,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15", 15.0),
        ("15s", 15.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("0", 0.0),
        ("1h30m", 5400.0),
        ("1m1.5s", 61.5),
    ],
)
def test_a_duration_takes_go_style_units_and_plain_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1d", "1s2", "one", "1h 30m", "\uff19s", "9" * 400 + "s", "9" * 5000, "99999h"]
)
def test_a_bad_duration_says_what_was_expected_and_found(text: str) -> None:
    with pytest.raises(SettingError, match=r"expected a duration such as 15s.*, 10 years at most, found"):
        parse_duration(text)


def test_booleans_are_those_of_go() -> None:
    assert parse_boolean("true")
    assert not parse_boolean("0")
    with pytest.raises(SettingError, match="expected true or false"):
        parse_boolean("yes")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:20200", ListenAddress("127.0.0.1", 20200)),
        (":9102", ListenAddress("", 9102)),
        ("[::1]:80", ListenAddress("::1", 80)),
        ("localhost:1", ListenAddress("localhost", 1)),
    ],
)
def test_a_listen_address_is_host_and_port(text: str, address: ListenAddress) -> None:
    assert parse_listen_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:", "x:0", "x:65536", "::1:80", "x:8o", "x:\u0663\u0664", "x: 8", "x:" + "9" * 5000],
)
def test_a_bad_listen_address_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="expected HOST:PORT"):
        parse_listen_address(text)


@pytest.mark.parametrize("host", ["\u00fc..b", "a..b", "x" * 64, "a\0b"])
def test_a_listen_address_whose_host_cannot_be_looked_up_is_refused(host: str) -> None:
    with pytest.raises(SettingError, match="expected HOST:PORT with a host name or an IP address"):
        parse_listen_address(f"{host}:80")


def test_log_levels_of_the_go_program_are_taken() -> None:
    assert [parse_log_level(name) for name in ("INFO", "trace", "warn", "fatal")] == [
        "info",
        "debug",
        "warning",
        "critical",
    ]
    with pytest.raises(SettingError, match="expected one of trace"):
        parse_log_level("loud")


@pytest.mark.parametrize("text", ["stderr", "syslog", "localhost:514", "dev/log", "127.0.0.1:\u0663\u0664"])
def test_a_bad_access_log_says_all_that_it_may_be(text: str) -> None:
    said = f"expected off, stdout, the path of a syslog socket or IP:PORT of a syslog server, found '{text}'"
    with pytest.raises(SettingError, match=said):
        parse_access_log(text)
