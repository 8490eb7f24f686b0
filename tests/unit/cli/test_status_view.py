"""What `hcc status` shows, as plain text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hcc.actors.status import ServerState, Status
from hcc.cli.status_view import MAX_ENDPOINTS, duration, view
from hcc.cli.terminal import show
from tests.status_builders import endpoint_status, status, upstream_status


def shown(value: Status, capsys: pytest.CaptureFixture[str]) -> str:
    show(view(value))
    return capsys.readouterr().out


def test_each_part_of_a_status_is_shown_without_colours_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(status(), capsys)

    assert text.startswith("web-proxy  ready\n")
    assert "exposed  10.0.0.9:22900/up\n" in text
    for part in ("api (http)", "10.0.0.2:21000", "1 of 2 up", "not known yet", "shop", "deny", "2d 0h", "RuntimeError"):
        assert part in text
    assert "failing for 11m 40s: HTTP 500: no path to datacenter" in text
    assert "\x1b" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("columns", "whole"),
    [(80, ("127.0.0.1:9191", "10.0.0.2:21000", "not known yet", "1m 1s ago")), (40, ("api", "boom"))],
)
def test_in_a_usual_window_no_address_is_folded_and_in_a_narrow_one_nothing_is_cut(
    columns: int, whole: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))

    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(status(), capsys))

    assert all(len(line) <= columns for line in text.splitlines())
    assert [part for part in whole if part not in text] == []


def test_what_is_missing_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lacking = replace(status().readiness, ready=False, missing=("leaf: no usable certificate yet",))

    text = shown(replace(status(), readiness=lacking), capsys)

    assert text.startswith("web-proxy  not ready\n")
    assert text.index("missing  leaf") < text.index("UPSTREAM")


def test_of_many_endpoints_those_without_traffic_are_shown_and_the_rest_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = tuple(endpoint_status(number) for number in range(1, 1000))
    down = endpoint_status(1000, ServerState.DOWN)

    text = shown(replace(status(), upstreams=(upstream_status("big", (*many, down)),)), capsys)

    assert f"{down.address}:{down.port}" in text
    assert f"and {1000 - MAX_ENDPOINTS} more" in text
    assert len(text.splitlines()) < 60


def test_those_that_stand_by_are_told_apart_and_not_missed(capsys: pytest.CaptureFixture[str]) -> None:
    standing_by = endpoint_status(2, ServerState.MAINTENANCE, standby=True)

    text = shown(replace(status(), upstreams=(upstream_status("api", (standing_by, endpoint_status(1))),)), capsys)

    assert "1 of 1 up, 1 standby" in text
    assert text.index("10.0.0.1:21000") < text.index("10.0.0.2:21000")
    (line,) = (line for line in text.splitlines() if "10.0.0.2:21000" in line)
    assert "standby" in line
    assert "maintenance" not in line


def test_one_that_does_not_answer_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    silent = endpoint_status(2, ServerState.MAINTENANCE, silence="cannot be connected to within 3 s")

    text = shown(replace(status(), upstreams=(upstream_status("api", (silent, endpoint_status(1))),)), capsys)

    (line,) = (line for line in text.splitlines() if "10.0.0.2:21000" in line)
    assert "maintenance, silent" in line


def test_a_name_cannot_move_the_cursor_or_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(replace(status(), upstreams=(upstream_status("a\x1b[2J\nready"),)), capsys)

    assert "a\\x1b[2J\\nready" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12ms"), (59.9, "59s"), (61, "1m 1s"), (3661, "1h 1m"), (90_000, "1d 1h"), (-61, "-1m 1s")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
