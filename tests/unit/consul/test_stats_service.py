"""What Consul is told of where our metrics are: the address that they are served on."""

from __future__ import annotations

import pytest

from hcc.consul.stats_service import stats_definition
from hcc.settings import parse_listen_address


@pytest.mark.parametrize(
    ("listen", "sidecar", "told", "checked"),
    [
        # Anywhere: where the sidecar is registered, or the node's address.
        (":20200", "", "", "http://localhost:20200/metrics"),
        ("0.0.0.0:20200", "10.0.0.2", "10.0.0.2", "http://10.0.0.2:20200/metrics"),
        # On one address: there, wherever the sidecar and the node are.
        ("10.9.9.9:20200", "", "10.9.9.9", "http://10.9.9.9:20200/metrics"),
        ("10.9.9.9:20200", "10.0.0.2", "10.9.9.9", "http://10.9.9.9:20200/metrics"),
        ("[fd00::9]:20200", "", "fd00::9", "http://[fd00::9]:20200/metrics"),
    ],
)
def test_consul_is_told_the_address_that_metrics_are_served_on(
    listen: str, sidecar: str, told: str, checked: str
) -> None:
    found = stats_definition("web-1", "web", sidecar, parse_listen_address(listen))
    assert (found["ID"], found["Name"]) == ("web-1-connect-stats", "web-connect-stats")
    assert (found["Address"], found["Port"]) == (told, 20200)
    checks = found["Checks"]
    assert isinstance(checks, list)
    assert [check["HTTP"] for check in checks] == [checked]
