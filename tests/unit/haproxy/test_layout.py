from __future__ import annotations

import pytest

from hcc.errors import SettingError
from hcc.haproxy.layout import layout


def test_everything_lies_in_one_directory() -> None:
    found = layout("/run/hcc")
    names = (found.config, found.stats_socket, found.master_socket, found.pid_file, found.log, found.leaf)
    assert all(name.startswith("/run/hcc/") for name in names)
    assert found.agent_socket(2) == "/run/hcc/spoe-2.sock"


@pytest.mark.parametrize(
    ("directory", "why"),
    [
        ("run/hcc", "expected an absolute state directory"),
        ("/run/my hcc", "blanks"),
        ("/run/a,b", "commas and brackets"),
        ("/run/a(b)", "commas and brackets"),
        ("/run/a[1]", "commas and brackets"),
        ("/" + "d" * 90, "choose a state directory with a shorter path"),
        ("/" + "\u00e9" * 45, "choose a state directory with a shorter path"),
    ],
)
def test_a_directory_that_cannot_work_is_refused(directory: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        layout(directory)
