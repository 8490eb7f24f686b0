"""The example's cases on every HAProxy driven over its own sockets, with every Consul."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.cases import cases
from tests.e2e.mesh import Mesh
from tests.e2e.versions import DIRECT, on_combinations

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(300)
@on_combinations(DIRECT)
def test_the_example_s_cases_hold(mesh: Mesh, haproxy_version: str, tmp_path: Path) -> None:
    cases(mesh, haproxy_version, tmp_path).run()
