from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.address import AgentAddress, agent_address, masked
from hcc.errors import SettingError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:8500"),
        ("10.1.2.3:8501", "http://10.1.2.3:8501"),
        ("consul.example", "http://consul.example:80"),
        ("https://consul.example", "https://consul.example:443"),
        ("http://consul.example:8500/some/path/", "http://consul.example:8500/some/path"),
        ("HTTPS://consul.example:8501", "https://consul.example:8501"),
        ("[::1]:8500", "http://[::1]:8500"),
        ("::1", "http://[::1]:80"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
    ],
)
def test_every_form_of_an_address_gives_its_url(text: str, url: str) -> None:
    assert agent_address(text).base_url() == url


def test_a_unix_socket_keeps_its_path_and_says_so() -> None:
    address = agent_address("unix:///run/consul.sock")
    assert address.socket == "/run/consul.sock"
    assert address.label() == "unix:///run/consul.sock"


def test_tls_asked_for_elsewhere_wins_over_http() -> None:
    assert agent_address("http://consul:8501", ssl=True).scheme == "https"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x",
        "http://",
        ":8500",
        "host:0",
        "host:65536",
        "host:abc",
        "host:\u0663\u0664",
        "host:" + "9" * 5000,
        "unix://relative",
        "[::1:8500",
        "a b:1",
        "u@h:1",
        "consul..example:8500",
        f"{'x' * 64}.example",
    ],
)
def test_a_bad_address_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(SettingError, match="expected host:port"):
        agent_address(text)


@pytest.mark.parametrize(
    "text", ["http://u:s3cret@h", "u:s3cret@h:8500", "ftp://u:s3cret@h", "u:s3@cret@h", "s3cret@://h"]
)
def test_a_password_in_an_address_is_not_told(text: str) -> None:
    with pytest.raises(SettingError, match=r"\.\.\.@.*expected host:port") as caught:
        agent_address(text)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "h:1", "https://h/path", "unix:///run/a@b.sock"])
def test_an_address_without_a_password_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_tls_over_a_unix_socket_is_refused() -> None:
    with pytest.raises(SettingError, match="unix socket"):
        agent_address("unix:///run/consul.sock", ssl=True)


def test_the_error_names_the_flag_it_came_from() -> None:
    with pytest.raises(SettingError, match=r"^-http-addr="):
        agent_address("host:x", source="-http-addr")


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_setting_error(text: str) -> None:
    try:
        address = agent_address(text)
    except SettingError:
        return
    assert isinstance(address, AgentAddress)
    assert 0 < address.port < 65536
