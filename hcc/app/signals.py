"""What the operating system tells us, for the main thread."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Signals:
    """Each as an event; `any` is set with every one of them."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self.reload = threading.Event()
        self.any = threading.Event()

    def install(self) -> None:
        """SIGTERM and SIGINT stop, the second one at once; SIGHUP reads the token file again."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        (self.hurry if self.stop.is_set() else self.stop).set()
        self.any.set()

    def _on_reload(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.reload.set()
        self.any.set()
