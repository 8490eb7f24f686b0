"""Writing down what was done, while more is done at run time.

A text of 100 upstreams takes the Data Plane API half a second; endpoints that come and go meanwhile do not wait for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from hcc.actors.address import Address
from hcc.haproxy.control import Applied, Control
from hcc.haproxy.plan import Plan


@dataclass(frozen=True, slots=True)
class Written:
    """To the actor whose text it is.

    Args:
        steps: a plan that only writes.
        applied: what came of it.
        error: what a `Control` is not known to raise.
    """

    steps: Plan
    applied: Applied
    took_s: float
    error: Exception | None = None


class Writer:
    """Carries out plans that only write, in a thread of its own; the owner starts one when the last is `over`."""

    def __init__(self, control: Control, owner: Address) -> None:
        self._control = control
        self._owner = owner
        self._thread: threading.Thread | None = None
        self._busy = False

    @property
    def busy(self) -> bool:
        """From `start` until the owner has heard `Written` and says `over`."""
        return self._busy

    def start(self, steps: Plan) -> None:
        self._busy = True
        thread = threading.Thread(target=self._write, args=(steps,), name="config-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread is left: its owner waits for the disk.
            self._write(steps)
        else:
            self._thread = thread

    def over(self) -> None:
        self._thread, self._busy = None, False

    def finish(self) -> None:
        """Wait for what is being written; nobody asks what came of it."""
        if self._thread is not None:
            self._thread.join()
        self.over()

    def _write(self, steps: Plan) -> None:
        began_s = time.monotonic()
        applied, error = Applied(()), None
        try:
            applied = self._control.apply(steps)
        except Exception as exc:  # noqa: BLE001 - the owner's to deal with
            error = exc
        self._owner.tell(Written(steps, applied, time.monotonic() - began_s, error))
