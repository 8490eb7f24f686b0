"""What systemd is told, where it started us: READY, RELOADING, STOPPING, WATCHDOG, and a line of status.

A datagram to the socket that NOTIFY_SOCKET names; without that variable nothing is sent. Own code, as the protocol is
one `sendto`: the packages for it are unmaintained (sdnotify) or bind a C library (systemd-python).

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

# systemd ends a start that takes longer than it allows, unless it is told to wait on.
EXTEND_S = 30.0

_log = logging.getLogger(__name__)


class ServiceManager:
    """The one that started us, if any. Safe for all threads; nothing here raises.

    Args:
        environ: the variables are taken out, so that no process of ours speaks for us.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "0")
        meant = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        on = bool(self._address) and meant and watchdog_us.isdecimal() and int(watchdog_us) > 0
        self.watchdog_s = int(watchdog_us) / 1e6 if on else 0.0
        self._started = False

    @property
    def listens(self) -> bool:
        """Whether there is one that wants to be told."""
        return bool(self._address)

    def readiness(self, missing: tuple[str, ...]) -> None:
        """Tell what is missing for being ready; the first time that nothing is, the start is over."""
        if missing:
            self._tell(f"STATUS=not ready: {missing[0]}")
            return
        self._started = True
        self._tell("READY=1", "STATUS=ready")

    def alive(self) -> None:
        """Tell that we are, or while we are still starting that it may take longer; often enough for both."""
        if self._started:
            self._tell("WATCHDOG=1")
        else:
            self._tell("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1e6:.0f}")

    def reloading(self) -> None:
        """Tell that a reload begins; `reloaded` must follow. While we are still starting there is none."""
        if self._started:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Tell that it is done."""
        if self._started:
            self._tell("READY=1")

    def stopping(self, status: str, within_s: float) -> None:
        """Tell that the end begins, what happens now, and how long that may take: nobody is to cut it short."""
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={within_s * 1e6:.0f}")

    def _tell(self, *assignments: str) -> None:
        if not self._address:
            return
        # A name in the kernel's own space is written with an @ for its leading zero.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        message = "\n".join(line.replace("\n", " ") for line in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # It must never wait for its reader.
                sender.setblocking(False)
                sender.sendto(message.encode(), address)
        except OSError as exc:
            _log.debug("systemd was not told %s: %s", assignments[0], exc)
