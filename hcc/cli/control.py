"""The control socket of a running sidecar, from the outside: finding it, and asking it something."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

from hcc.app.state_directory import CONTROL_SOCKET
from hcc.errors import HccError, SettingError

TIMEOUT_S = 30.0


class ControlError(HccError):
    """No running sidecar could be asked, or it refused."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def find_control_socket(base: Path, proxy_id: str, sidecar_for: str) -> Path:
    """The control socket of the one running sidecar below `base` that fits.

    Args:
        base: the --state-dir that `hcc run` was given, or the directory above it.
        proxy_id: the wanted proxy, empty for any.
        sidecar_for: ID of the service it stands for, empty for any.

    Raises:
        ControlError: none or several fit; the text names those there are.
    """
    # Under systemd each unit has a directory of its own below /run/hcc, and the proxy's is in that.
    places = (*base.glob(f"*/{CONTROL_SOCKET}"), *base.glob(f"*/*/{CONTROL_SOCKET}"))
    found = {path.parent.name: path for path in sorted(places)}
    if not found:
        raise ControlError(f"expected a running sidecar below {base}, found none (is --state-dir right?)")
    wanted = [name for name in found if _fits(found[name], proxy_id, sidecar_for)]
    if len(wanted) != 1:
        what = "none that fits" if not wanted else "several"
        names = ", ".join(wanted or found)
        raise ControlError(f"expected one running sidecar, found {what} among: {names}; choose with --proxy-id")
    return found[wanted[0]]


def ask(path: Path, method: str, target: str) -> object:
    """The JSON that the sidecar behind the control socket `path` answers.

    Raises:
        ControlError: nobody listens, or the answer is an error (its text is the sidecar's).
        SettingError: the sidecar does not understand what it is asked.
    """
    return json.loads(fetch_text(path, target, method))


def fetch_text(path: Path, target: str, method: str = "GET") -> str:
    """The text that the sidecar behind the control socket `path` answers; errors as for `ask`."""
    status, text = fetch(path, method, target)
    if status == http.client.BAD_REQUEST:
        raise SettingError(text.strip())
    if status != http.client.OK:
        raise ControlError(text.strip())
    return text


def fetch(path: Path, method: str, target: str) -> tuple[int, str]:
    """HTTP status and text of the answer.

    Raises:
        ControlError: nobody listens.
    """
    connection = _UnixConnection(path)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        raise ControlError(f"no sidecar answers on {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    finally:
        connection.close()


def _fits(path: Path, proxy_id: str, sidecar_for: str) -> bool:
    if not proxy_id and not sidecar_for:
        return True
    try:
        about = ask(path, "GET", "/v1/about")
    except ControlError:
        return False
    assert isinstance(about, dict)  # noqa: S101 (our own program's answer)
    return (proxy_id in ("", about["proxy_id"])) and (sidecar_for in ("", about["service_id"]))
