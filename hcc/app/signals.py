"""What the operating system tells us, for the main thread.

A handler of Python's runs in the main thread between any two steps, also while that thread has the lock of an event: to
set the event there would wait for itself, for ever. So handlers do nothing. The interpreter writes the numbers of
signals into a pipe, whichever thread the system gave them to, and a thread that reads it sets the events.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Each as an event; `any` is set with every one of them."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self.reload = threading.Event()
        self.any = threading.Event()

    def install(self) -> None:
        """SIGTERM and SIGINT stop, the second one at once; SIGHUP reads the token file again."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        for number in (*_STOP, signal.SIGHUP):
            signal.signal(number, _noted_by_the_interpreter)

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                self._happened(number)

    def _happened(self, number: int) -> None:
        if number in _STOP:
            (self.hurry if self.stop.is_set() else self.stop).set()
        elif number == signal.SIGHUP:
            self.reload.set()
        self.any.set()


def _noted_by_the_interpreter(number: int, frame: FrameType | None) -> None:
    del number, frame
