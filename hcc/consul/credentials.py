"""The token as it is now: given once, or read from a file that may change while we run."""

from __future__ import annotations

import threading
from pathlib import Path

from hcc.consul.environment import ConsulSettings, checked_token
from hcc.errors import SettingError
from hcc.mesh.secret import Secret

_MAX_TOKEN_BYTES = 64 * 1024


def read_token(settings: ConsulSettings) -> Secret | None:
    """The token of the settings, read from its file if that is where it is; None without one.

    Raises:
        SettingError: the file cannot be read, is empty or holds no token.
    """
    if settings.token is not None or not settings.token_file:
        return settings.token
    try:
        with Path(settings.token_file).open("rb") as file:
            text = file.read(_MAX_TOKEN_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as exc:
        found = exc.strerror if isinstance(exc, OSError) else "other characters than ASCII"
        msg = f"token file {settings.token_file}: expected a readable file with a token, found {found}"
        raise SettingError(msg) from exc
    return checked_token(text, f"token file {settings.token_file}")


class TokenSource:
    """Gives every request the newest good token. Safe for all threads.

    Raises (when made):
        SettingError: the token file cannot be used.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._token = read_token(settings)

    def __call__(self) -> Secret | None:
        """The token read last."""
        with self._lock:
            return self._token

    def reload(self) -> bool:
        """Read the file again; whether the token changed. The last good token stays on failure.

        Raises:
            SettingError: the file cannot be used now.
        """
        token = read_token(self._settings)
        with self._lock:
            changed = token != self._token
            self._token = token
        return changed
