"""Unix sockets that HAProxy connects to; the main process keeps them, so that a dead worker's queue waits."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from hcc.errors import HccError

# sun_path of Linux, without its final zero.
MAX_PATH_BYTES = 107
BACKLOG = 1024


class ListenerError(HccError):
    """A socket cannot be made where it was asked for."""


class Listener:
    """One listening socket, mode 0600; a stale socket in its place is removed first.

    Args:
        path: of the socket; its directory exists.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ListenerError(f"expected a socket path of at most {MAX_PATH_BYTES} bytes, found {path!r}")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bind()
        except OSError as exc:
            self.sock.close()
            raise ListenerError(f"cannot listen on {path!r}: {exc.strerror or exc}") from exc
        except ListenerError:
            self.sock.close()
            raise
        self._inode = os.lstat(path).st_ino

    def close(self) -> None:
        """Stop listening and remove the path, if it is still ours."""
        self.sock.close()
        try:
            if os.lstat(self.path).st_ino == self._inode:
                Path(self.path).unlink()
        except FileNotFoundError:
            return

    def _bind(self) -> None:
        self._unlink_stale()
        self.sock.bind(self.path)
        # Nobody can connect before listen(), so the mode is right in time.
        Path(self.path).chmod(0o600)
        self.sock.listen(BACKLOG)

    def _unlink_stale(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ListenerError(f"expected a socket or nothing at {self.path!r}, found another kind of file")
        Path(self.path).unlink()
