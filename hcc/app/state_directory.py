"""The private directory of one proxy: made, locked against a second hcc, emptied at a clean end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from hcc.errors import HccError, SettingError
from hcc.haproxy.files import PRIVATE_DIRECTORY, PRIVATE_FILE, private_directory, remove_unfinished
from hcc.haproxy.layout import Layout, layout

LOCK = "lock"
CONTROL_SOCKET = "control.sock"
ROOT = 0
# What the directory's name may take of a socket's path; a longer proxy ID is cut and gets a digest.
MAX_NAME_BYTES = 40
# Something else has the lock's place: a directory, a link to itself, a socket, a file that may not be written.
_NO_LOCK = (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM)


class LockedError(HccError):
    """Another hcc runs this proxy."""


class StateDirectory:
    """The directory while it is ours.

    Raises (when made):
        SettingError: it cannot be made, belongs to somebody else, or its path is too long for sockets.
        LockedError: another hcc has it.
    """

    def __init__(self, base: str, proxy_id: str) -> None:
        self.path = _absolute(base) / directory_name(proxy_id)
        self.layout: Layout = layout(str(self.path))
        self._lock = self._locked()
        # They may hold a key.
        remove_unfinished(str(self.path))

    @property
    def control_socket(self) -> Path:
        """Where operators ask this sidecar."""
        return self.path / CONTROL_SOCKET

    def keep(self) -> bool:
        """Make it anew, locked, where somebody removed it or its lock; whether that was to be done.

        Raises:
            SettingError, LockedError: as when made; it is no longer ours.
        """
        if self._is_current(self._lock):
            return False
        before, self._lock = self._lock, self._locked()
        os.close(before)
        return True

    def remove(self) -> None:
        """Leave nothing behind: the directory goes, with all that is in it; not one that another hcc made by now."""
        if self._is_current(self._lock):
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the directory; what is in it stays for a later hcc."""
        os.close(self._lock)

    def _locked(self) -> int:
        while True:
            _make(self.path)
            lock = _opened(self.path / LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                os.close(lock)
                raise LockedError(f"another hcc runs this proxy: it holds {self.path / LOCK}") from exc
            if self._is_current(lock):
                return lock
            # Its last owner removed the directory between our open and our lock.
            os.close(lock)

    def _is_current(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), (self.path / LOCK).stat())
        return False


def directory_name(proxy_id: str) -> str:
    """The proxy ID as a directory's name: short, and different for different IDs."""
    # On a command line it may be no UTF-8.
    name = quote(proxy_id, safe="", errors="surrogatepass")
    if len(name) <= MAX_NAME_BYTES and not name.startswith("."):
        return name
    digest = hashlib.sha256(proxy_id.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{name.lstrip('.')[: MAX_NAME_BYTES - 13]}-{digest}"


def _absolute(base: str) -> Path:
    try:
        return Path(base).absolute()
    except FileNotFoundError as exc:
        msg = f"expected an absolute state directory, as the working directory is gone, found {base!r}"
        raise SettingError(msg) from exc


def check_place(path: Path, user_id: int) -> None:
    """Nothing, when that user's hcc would take `path` for a proxy's directory, or what is there now is no hindrance.

    Raises:
        SettingError: as of `StateDirectory`.
        OSError: it may not be looked at.
    """
    layout(str(path))
    if path.parent.exists():
        _refuse_base_of_others(path.parent, user_id)
    if os.path.lexists(path):
        _refuse_of_others(path, user_id)


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as exc:
        if exc.errno not in _NO_LOCK:
            raise
        raise SettingError(
            f"expected {lock} to be a file that can be written, found {exc.strerror}; remove it"
        ) from exc


def _make(path: Path) -> None:
    user_id = os.geteuid()
    try:
        # Each is looked at once it is there: in /tmp another user may be quicker, and nobody can replace what is ours.
        path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        _refuse_base_of_others(path.parent, user_id)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=PRIVATE_DIRECTORY)
        _refuse_of_others(path, user_id)
        private_directory(str(path))
    except OSError as exc:
        raise SettingError(f"state directory {path}: expected one that can be made, found {exc.strerror}") from exc


def _refuse_base_of_others(base: Path, user_id: int) -> None:
    """Raises SettingError where who owns it may put another directory in the place of ours."""
    _refuse_unless_of(base, (user_id, ROOT))


def _refuse_of_others(path: Path, user_id: int) -> None:
    """Raises SettingError where it is somebody else's, OSError where it is not there."""
    if path.is_symlink():
        raise SettingError(f"expected {path} to be a directory, found a link; remove it")
    _refuse_unless_of(path, (user_id,))


def _refuse_unless_of(path: Path, owners: Collection[int]) -> None:
    """Raises SettingError unless it is a directory of one of these, and no link that somebody else may turn."""
    for found in (path.lstat(), path.stat()):
        if found.st_uid not in owners:
            told = f"expected {path} to be a directory of our own, found it is of the user with the ID {found.st_uid}"
            raise SettingError(f"{told}; remove it, or choose another one by --state-dir")
