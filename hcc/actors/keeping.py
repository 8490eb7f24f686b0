"""Keeping what Consul said where the next hcc finds it, however slow the disk is, and whether it takes it at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hcc.consul.assembly import State

# What the disk did not take is tried again after this.
AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class Keeper:
    """Stores the newest answers that it was given, in a thread of its own; a disk that hangs holds up nobody.

    One is stored after the other, and of those that come meanwhile only the newest, so never an older one over a newer.
    What was not stored is tried again. Any thread may call this.

    Args:
        store: puts answers where the next hcc finds them; whether it could.
        kept: those that are there.

    Attributes:
        busy_s: how long it last kept the processor from others.
    """

    def __init__(self, store: Callable[[State], bool], kept: State) -> None:
        self.busy_s = 0.0
        self._store = store
        self._changed = threading.Condition()
        self._kept = self._wanted = kept
        self._finishing = False
        self._thread: threading.Thread | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is there yet, nor on its way."""
        return not self._wanted.values

    def has(self, state: State) -> bool:
        """Whether these answers are there, or on their way."""
        return state is self._wanted

    def keep(self, state: State) -> None:
        """Have these stored; returns at once, unless no thread is left."""
        with self._changed:
            self._wanted = state
            # Without a thread its owner waits for the disk.
            if self._thread is None and not self._started() and self._stored(state):
                self._kept = state
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Wait until the newest are stored, or could not be, which is not tried again then; or as long as that."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._wanted is self._kept, timeout_s)
            self._finishing = False

    def _started(self) -> bool:
        thread = threading.Thread(target=self._run, name="answers-keeper", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not self._kept)
                state = self._wanted
            is_stored = self._stored(state)
            with self._changed:
                if is_stored:
                    self._kept = state
                elif self._finishing and state is self._wanted:
                    self._wanted = self._kept
                self._changed.notify_all()
                if not is_stored:
                    self._changed.wait_for(lambda: self._finishing, AGAIN_S)

    def _stored(self, state: State) -> bool:
        began_s = time.thread_time()
        try:
            return self._store(state)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the thread unseen: nothing would be kept any more
            _log.exception("Consul's answers cannot be kept")
            return False
        finally:
            self.busy_s = time.thread_time() - began_s
