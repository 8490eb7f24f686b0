"""What to do when a descriptor is ready: one epoll set, its handlers, and a way to wake whoever waits."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress


class Readiness:
    """Handlers by descriptor. `wait` may run in one thread while another changes the set; nothing else is safe.

    A handler may be called without need, for a descriptor that had the same number: it must not block on that.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake_fd, self._awake)

    def fileno(self) -> int:
        """Of the epoll set: readable when a handler is due."""
        return self._epoll.fileno()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call the handler whenever the descriptor is readable."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def want_write(self, fd: int, wanted: bool) -> None:
        """Call the handler when the descriptor is writable too, or not any more."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def unwatch(self, fd: int) -> None:
        """Forget the descriptor, if it is watched; before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """What became ready within this time (None: for ever)."""
        return self._epoll.poll(timeout_s)

    def handle(self, ready: list[tuple[int, int]]) -> None:
        """Call the handlers of what became ready."""
        for fd, _ in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

    def wake(self) -> None:
        """Make `wait` return; nothing after `close`."""
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Give the descriptors back; nobody may be waiting."""
        os.close(self._wake_fd)
        self._wake_fd = -1
        self._epoll.close()

    def _awake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)


def is_readable(fd: int, timeout_s: float) -> bool:
    """Whether the descriptor is readable, or at its end, within this time."""
    one = select.poll()
    one.register(fd, select.POLLIN)
    return bool(one.poll(timeout_s * 1000))
