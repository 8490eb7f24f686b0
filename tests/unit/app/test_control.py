from __future__ import annotations

from pathlib import Path

import pytest

from hcc.app.control import Choice, driven
from hcc.haproxy.dataplane_program import DataplaneProgram
from hcc.haproxy.layout import layout
from tests.builders import V2_6

PROGRAMS = {"direct": None, "dataplane": DataplaneProgram("/bin/false", "here", frozenset())}


@pytest.mark.parametrize("control", sorted(PROGRAMS))
def test_what_a_killed_hcc_was_posting_to_the_data_plane_api_is_removed_by_the_next(
    tmp_path: Path, control: str
) -> None:
    where = layout(str(tmp_path))
    Path(where.wanted).write_text("reload\nglobal\n", encoding="utf-8")

    driven(Choice(V2_6, PROGRAMS[control], "as wanted"), "/bin/true", where, shares_stdout=False)

    assert not Path(where.wanted).exists()
