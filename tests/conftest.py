"""For all tests: how Hypothesis looks for examples, and which files begin first."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# What takes longest begins first. pytest-xdist hands files out in this order (Makefile: not by their number of tests);
# a file of one long test would otherwise be the last, with the other workers idle.
BEGIN = ("tests/e2e/test_soak.py", "tests/e2e/", "tests/integration/", "tests/")

# On a machine that others use, too, any example may take long: by itself that says nothing.
settings.register_profile("hcc", deadline=None, suppress_health_check=(HealthCheck.too_slow,))
settings.load_profile("hcc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files, and leave the tests of each in their order."""
    items.sort(key=lambda item: next(at for at, part in enumerate(BEGIN) if item.nodeid.startswith(part)))
