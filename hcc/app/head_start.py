"""What takes its time in processes of its own, begun before the rest of `hcc run` is imported, which takes as long."""

from __future__ import annotations

import sys

from hcc.haproxy.binary import Probe, Program, find_haproxy
from hcc.spoe.spawner import Spawner


class HeadStart:
    """HAProxy tells what it is, and the zygote of the SPOE workers starts, while we go on.

    Args:
        haproxy: path or name of the program; empty: look for it.

    Raises:
        SettingError: there is no such program. SpawnError: the interpreter cannot be run.
    """

    def __init__(self, haproxy: str) -> None:
        self.found = find_haproxy(haproxy)
        self._probe = Probe(self.found.binary)
        self.zygote = Spawner(sys.executable)

    def program(self) -> Program:
        """HAProxy, which has said what it is.

        Raises:
            SettingError: as of `Probe.build`.
        """
        return self._probe.program()
