"""A stage whose HAProxy is controlled through a real Data Plane API; both are gone at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hcc.haproxy.dataplane import DataplaneControl
from hcc.haproxy.dataplane_process import DataplaneProcess, own_password
from hcc.haproxy.dataplane_program import find_dataplane, without_dropped
from hcc.haproxy.dataplane_text import differences, with_user
from hcc.haproxy.render import Rendered
from tests.binaries import dataplaneapi
from tests.haproxy_stage import BINARIES, Stage


class DataplaneStage(Stage):
    """Its Data Plane API runs already; HAProxy does not."""

    def __init__(self, binary: str) -> None:
        # First: where it is missing, nothing is left behind.
        program = find_dataplane(dataplaneapi())
        super().__init__(binary)
        self.password = own_password(self.layout)
        self.capabilities = without_dropped(self.capabilities, program)
        self.control = DataplaneControl(binary, self.layout, self.capabilities, self.password)
        self.dataplane = DataplaneProcess(program, binary, self.layout, self.password)

    def close(self) -> None:
        self.dataplane.stop()
        super().close()

    @property
    def file(self) -> str:
        return Path(self.layout.config).read_text(encoding="utf-8")

    def file_says(self, rendered: Rendered) -> bool:
        return not differences(with_user(rendered.config, self.password.reveal()), self.file)


@contextlib.contextmanager
def dataplane_stage(version: str) -> Iterator[DataplaneStage]:
    made = DataplaneStage(BINARIES[version]())
    try:
        made.dataplane.launch()
        yield made
    finally:
        made.close()
