"""A plugin of pytest (`-p tests.e2e.faults.recorder`) that records how the tests named by `references` ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e.faults.references import REFERENCES
from tests.e2e.faults.table import RECORDS


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append one line for each call of a test that is named."""
    found = next((one for one in REFERENCES if report.nodeid.startswith(one.test)), None)
    if found is None or report.when != "call":
        return
    with Path(os.environ[RECORDS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"test": found.test, "good": report.passed}) + "\n")
