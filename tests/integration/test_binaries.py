"""Every program the suite runs is there and is what its name says."""

from __future__ import annotations

import subprocess

import pytest

from tests.binaries import (
    CONSUL_LINES,
    HAPROXY_BRANCHES,
    chromium,
    consul,
    dataplaneapi,
    haproxy,
    prometheus,
    promtool,
)

pytestmark = pytest.mark.integration


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_each_haproxy_is_of_its_branch(branch: str) -> None:
    assert f"version {branch}." in output(haproxy(branch), "-v")


@pytest.mark.parametrize("line", CONSUL_LINES)
def test_each_consul_is_of_its_line(line: str) -> None:
    assert f"Consul v{line}." in output(consul(line), "version")


def test_the_data_plane_api_runs() -> None:
    assert "Data Plane API" in output(dataplaneapi(), "--version")


def test_prometheus_and_its_tool_run() -> None:
    assert "prometheus, version" in output(prometheus(), "--version")
    assert "promtool, version" in output(promtool(), "--version")


def test_the_browser_runs() -> None:
    assert "Chromium" in output(chromium(), "--version")
