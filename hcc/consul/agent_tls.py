"""The TLS context for the agent as its files are now: certificates are renewed while we run, some every few hours."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from hcc.consul.environment import ConsulSettings
from hcc.consul.sockets import tls_context
from hcc.errors import SettingError
from hcc.log import LastingProblem

log = logging.getLogger(__name__)

# How each file looks: its path, and its inode, size and times.
_Look = tuple[str, int, int, int, int]
_Seen = tuple[_Look, ...]


class AgentTls:
    """Gives every new connection the context of the newest good files. Safe for all threads.

    Connections that are open keep the certificates that they began with, as the agent's other clients do.

    Raises (when made):
        SettingError: a certificate or key file that cannot be used.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        # Before they are read, so that what is written meanwhile is seen the next time.
        self._seen = _seen(settings)
        self._context = tls_context(settings)
        self._problem = LastingProblem(log, logging.WARNING)

    def __call__(self) -> ssl.SSLContext | None:
        """None for plain HTTP. Files that changed are read again; the last good ones stay where that fails."""
        with self._lock:
            seen = _seen(self._settings)
            if seen == self._seen:
                self._problem.over()
            else:
                self._read_again(seen)
            return self._context

    def _read_again(self, seen: _Seen) -> None:
        """Files that cannot be read are tried again: what they look like may not change when that is put right."""
        try:
            self._context = tls_context(self._settings)
        except SettingError as exc:
            self._problem.say(f"the certificates of before stay: {exc}")
            if not _is_unread(exc):
                self._seen = seen
            return
        self._seen = seen
        self._problem.over()
        log.info("TLS to Consul: the certificate files changed and were read again")


def _is_unread(exc: SettingError) -> bool:
    """Whether it is not what is in a file that was wrong, which another file alone can put right."""
    return isinstance(exc.__cause__, OSError) and not isinstance(exc.__cause__, ssl.SSLError)


def _seen(settings: ConsulSettings) -> _Seen:
    """What tells that a file was replaced or written."""
    if settings.address.scheme != "https":
        return ()
    return tuple(_looks(path) for path in _files(settings))


def _files(settings: ConsulSettings) -> Iterator[Path]:
    yield from (Path(name) for name in (settings.ca_file, settings.client_cert, settings.client_key) if name)
    if settings.ca_path and not settings.ca_file:
        yield from sorted(Path(settings.ca_path).rglob("*"))


def _looks(path: Path) -> _Look:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0, 0
    # The second time tells of a copy that kept the first, and of other rights.
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
