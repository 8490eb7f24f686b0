"""Unix sockets that HAProxy connects to; the main process keeps them, so that who waits for a dead worker waits on."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from hcc.errors import HccError

# Of the name that a socket is bound to before it takes its place, which `rename` does in one step.
ASIDE = "~"
# sun_path of Linux, without its final zero.
MAX_PATH_BYTES = 107 - len(ASIDE)
BACKLOG = 1024


class ListenerError(HccError):
    """A socket cannot be made where it was asked for."""


class Listener:
    """One listening socket, mode 0600. Where a socket is already, it stands aside until `take_place`.

    The workers of an earlier main process may still serve there, and go when they see another socket in its place.

    Args:
        path: of the socket; its directory exists.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._aside = path + ASIDE
        self._in_place = False
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ListenerError(f"expected a socket path of at most {MAX_PATH_BYTES} bytes, found {path!r}")
        try:
            self.sock = self._bound()
        except OSError as exc:
            raise ListenerError(f"cannot listen on {path!r}: {exc.strerror or exc}") from exc
        self._inode = inode_of(self._aside)
        if not os.path.lexists(path):
            self.take_place()

    def take_place(self) -> None:
        """Be found from now on by whoever connects; again: nothing, whatever became of the file system."""
        if self._in_place:
            return
        with suppress(FileNotFoundError):
            Path(self._aside).rename(self.path)
        self._in_place = True

    def lost(self) -> bool:
        """Whether somebody removed our socket from its place, or put another there: nobody finds it any more."""
        return self._in_place and inode_of(self.path) != self._inode

    def close(self) -> None:
        """Stop listening and remove the path, if it is still ours."""
        self.sock.close()
        for path in (self._aside, self.path):
            with suppress(FileNotFoundError):
                if inode_of(path) == self._inode:
                    Path(path).unlink()

    def _bound(self) -> socket.socket:
        for path in (self.path, self._aside):
            _check_kind(path)
        with suppress(FileNotFoundError):
            Path(self._aside).unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(self._aside)
            # Nobody can connect before listen(), so the mode is right in time.
            Path(self._aside).chmod(0o600)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock


class Place:
    """The place of a listening socket of ours, as a worker sees that another socket has taken it.

    Args:
        listener: of a `Listener`; not yet replaced.
    """

    def __init__(self, listener: socket.socket) -> None:
        aside = str(listener.getsockname())
        self._path = aside.removesuffix(ASIDE)
        self._inode = inode_of(aside) or inode_of(self._path)

    def taken(self) -> bool:
        """Whether our socket is not there any more."""
        return inode_of(self._path) != self._inode


def inode_of(path: str) -> tuple[int, int] | None:
    """Which file that is, by its file system and number, None for none. No other gets it while its socket is open."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_kind(path: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ListenerError(f"expected a socket or nothing at {path!r}, found another kind of file")
