"""`promtool check metrics` on everything that /metrics can show."""

from __future__ import annotations

import subprocess

import pytest

from tests import binaries
from tests.every_metric import everything

pytestmark = pytest.mark.integration


def test_names_units_and_help_follow_prometheus_conventions() -> None:
    body, _ = everything().exposition("")
    done = subprocess.run(
        [binaries.promtool(), "check", "metrics"], input=body, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.decode(), done.stdout.decode()) == (0, "", "")
