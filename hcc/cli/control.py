"""The control socket of a running sidecar, from the outside: finding it, and asking it something."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hcc.app.state_directory import CONTROL_SOCKET, directory_name
from hcc.errors import HccError, SettingError
from hcc.haproxy.layout import Layout

TIMEOUT_S = 30.0
# Who a sidecar is it says at once, unless it hangs.
ABOUT_TIMEOUT_S = 5.0
# However little is left of somebody's time, so that who is well can answer.
MIN_TIMEOUT_S = 1.0
# So begins what a sidecar says that does not know a path; it lists those it knows.
_NO_SUCH_PATH = "expected one of /"


class ControlError(HccError):
    """No running sidecar could be asked, or it refused."""


class SilentError(ControlError):
    """A sidecar is there, but does not answer."""


class EndedError(ControlError):
    """The hcc of the proxy that was asked for ended without taking its HAProxy along, which may go on."""


class BarredError(ControlError):
    """None was found, and there are directories that we may not look into: it may run there."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def find_control_socket(base: Path, proxy_id: str, sidecar_for: str, timeout_s: float = TIMEOUT_S) -> Path:
    """The control socket of the one running sidecar below `base` that fits.

    Args:
        base: the --state-dir that `hcc run` was given, or the directory above it.
        proxy_id: the wanted proxy, empty for any.
        sidecar_for: ID of the service it stands for, empty for any; asked of each, all at once.
        timeout_s: for all of them together.

    Raises:
        ControlError: none or several fit; the text says what there is. SilentError when it may be one that hangs,
            EndedError when it is the wanted proxy's own that ended, BarredError when it may be where we may not look.
    """
    places, barred = _control_sockets(base)
    # A proxy's directory has its name: one that hangs is found all the same.
    found = {name: path for name, path in places.items() if not proxy_id or name == directory_name(proxy_id)}
    ended = [name for name, path in places.items() if _is_refused(path)]
    fits, silent = [name for name in found if name not in ended], list[str]()
    if sidecar_for:
        fits, silent = _standing_for(sidecar_for, {name: found[name] for name in fits}, timeout_s)
    if len(fits) == 1:
        return found[fits[0]]
    asked = f" with --proxy-id {proxy_id}" if proxy_id else f" with --sidecar-for {sidecar_for}" if sidecar_for else ""
    text = f"expected one running sidecar{asked} below {base}, found {', '.join(fits) or 'none'}"
    if fits:
        raise ControlError(f"{text}; choose with --sidecar-for or --proxy-id")
    if silent:
        raise SilentError(f"{text}; no answer from: {', '.join(silent)}, which may hang")
    others = [name for name in places if name not in ended]
    told = [
        f"hcc does not run for: {', '.join(ended)} (its HAProxy may go on)" if ended else "",
        f"there are: {', '.join(others)}" if others else "",
        f"may not look into: {', '.join(barred)} (ask as root, or as the user that runs hcc)" if barred else "",
    ]
    has_ended = proxy_id and directory_name(proxy_id) in ended
    kind = EndedError if has_ended else BarredError if barred else ControlError
    raise kind("; ".join([text, *(each for each in told if each)]) if any(told) else f"{text}, see --state-dir")


def _control_sockets(base: Path) -> tuple[dict[str, Path], list[str]]:
    """Those there are, by their directory's name, and the directories that may not be looked into."""
    found: dict[str, Path] = {}
    barred: list[str] = []
    # Under systemd each unit has a directory of its own below /run/hcc, and the proxy's is in that.
    level = [base]
    for _ in range(2):
        level = [inner for directory in level for inner in _directories(directory, barred)]
        found |= {one.name: one / CONTROL_SOCKET for one in level if _is_of_a_sidecar(one)}
    return dict(sorted(found.items())), barred


def _is_of_a_sidecar(directory: Path) -> bool:
    """Whether an hcc runs there, or has left its HAProxy behind: one that was told to leave took its socket along."""
    marks = (directory / CONTROL_SOCKET, Layout(str(directory)).pid_file)
    return any(os.path.exists(mark) for mark in marks)  # noqa: PTH110 (Path's raises where it may not look)


def _directories(parent: Path, barred: list[str]) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except PermissionError:
        barred.append(str(parent))
        return []
    except OSError:
        return []


def _is_refused(path: Path) -> bool:
    """Whether nobody listens there: that hcc was killed, or left its HAProxy behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            # Any other answer is somebody's, or it is for who asks to say what it is.
            return probe.connect_ex(str(path)) in (errno.ECONNREFUSED, errno.ENOENT)
        except OSError:
            # So is that its path is too long for a socket's, as from outside of a container.
            return False


def ask(path: Path, method: str, target: str, timeout_s: float = TIMEOUT_S) -> object:
    """The JSON that the sidecar behind the control socket `path` answers.

    Raises:
        ControlError: nobody listens, or the answer is an error (its text is the sidecar's).
        SettingError: the sidecar does not understand what it is asked.
    """
    status, text = fetch(path, method, target, timeout_s)
    return json.loads(_good(status, text))


def fetch_text(path: Path, target: str, method: str = "GET") -> str:
    """The text that the sidecar behind the control socket `path` answers; errors as for `ask`."""
    return _good(*fetch(path, method, target))


def fetch(path: Path, method: str, target: str, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
    """HTTP status and text of the answer.

    Raises:
        ControlError: nobody listens. SilentError: somebody does, but does not answer.
    """
    connection = _UnixConnection(path, max(timeout_s, MIN_TIMEOUT_S))
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        # So many wait already that the socket takes nobody else.
        full = isinstance(exc, OSError) and exc.errno == errno.EAGAIN
        if full or isinstance(exc, TimeoutError):
            raise SilentError(f"the sidecar on {path} runs but does not answer; it may hang") from exc
        raise ControlError(f"no sidecar answers on {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    finally:
        connection.close()


def _good(status: int, text: str) -> str:
    if status == http.client.BAD_REQUEST:
        raise SettingError(text.strip())
    if status == http.client.NOT_FOUND and text.startswith(_NO_SUCH_PATH):
        # Every path that this hcc asks for is there in a sidecar of this hcc.
        raise ControlError(
            "the sidecar runs another hcc than this one, which cannot do this; restart it to have this hcc"
        )
    if status != http.client.OK:
        raise ControlError(text.strip())
    return text


def _standing_for(service_id: str, places: dict[str, Path], timeout_s: float) -> tuple[list[str], list[str]]:
    """The sidecars of that service, and those that did not say whose they are; all are asked at once."""
    fits: list[str] = []
    silent: list[str] = []
    with ThreadPoolExecutor(max(len(places), 1)) as pool:
        asked = [pool.submit(ask, one, "GET", "/v1/about", min(timeout_s, ABOUT_TIMEOUT_S)) for one in places.values()]
    for name, told in zip(places, asked, strict=True):
        try:
            about = told.result()
        except SilentError:
            silent.append(name)
        except ControlError:
            continue
        else:
            assert isinstance(about, dict)  # noqa: S101 (our own program's answer)
            fits += [name] if about["service_id"] == service_id else []
    return fits, silent
