"""Where one HAProxy keeps its files and sockets, all in one private directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from hcc.errors import SettingError
from hcc.haproxy import words
from hcc.haproxy.words import MAX_SOCKET_PATH_BYTES

# Sockets of SPOE workers that there may be.
MOST_AGENTS = 99


@dataclass(frozen=True, slots=True)
class Layout:
    """Names under the directory that belongs to one proxy. Made by `layout`, which checks them."""

    directory: str

    @property
    def config(self) -> str:
        return self._path("haproxy.cfg")

    @property
    def candidate(self) -> str:
        """The text being checked before it becomes `config`."""
        return self._path("haproxy.cfg.candidate")

    @property
    def stats_socket(self) -> str:
        return self._path("stats.sock")

    @property
    def master_socket(self) -> str:
        return self._path("master.sock")

    @property
    def pid_file(self) -> str:
        """Process id and start time of the master that hcc started."""
        return self._path("haproxy.pid")

    @property
    def log(self) -> str:
        """What HAProxy itself says on its standard error."""
        return self._path("haproxy.log")

    @property
    def leaf(self) -> str:
        """Certificates and key, written by whoever holds them."""
        return self._path("leaf.pem")

    @property
    def roots(self) -> str:
        return self._path("roots.pem")

    @property
    def ticket_keys(self) -> str:
        """Keys of TLS sessions, derived from leaf and roots."""
        return self._path("tickets.keys")

    @property
    def identities(self) -> str:
        """HAProxy's map of remembered callers, by the digest of their certificate."""
        return self._path("identities.map")

    @property
    def verdicts(self) -> str:
        """HAProxy's map of verdicts, by the URI of a caller (`caller_key`)."""
        return self._path("verdicts.map")

    @property
    def rules(self) -> str:
        """HAProxy's map of the rules of layer-7 intentions."""
        return self._path("rules.map")

    @property
    def leaves(self) -> str:
        """HAProxy's map of upstreams' leaf certificates, by their digest."""
        return self._path("leaves.map")

    @property
    def dataplane_socket(self) -> str:
        return self._path("dataplane.sock")

    @property
    def dataplane_pid_file(self) -> str:
        """Process id and start time of the Data Plane API that hcc started."""
        return self._path("dataplane.pid")

    @property
    def dataplane_log(self) -> str:
        return self._path("dataplane.log")

    @property
    def dataplane_password(self) -> str:
        return self._path("dataplane.password")

    @property
    def dataplane_directory(self) -> str:
        """Its working directory; emptied before each start."""
        return self._path("dataplane")

    @property
    def dataplane_transactions(self) -> str:
        """Where it keeps a copy of each text that it could not bring about, below `failed`."""
        return self._path("dataplane/tx")

    @property
    def wanted(self) -> str:
        """What is being posted to the Data Plane API, for our reload command."""
        return self._path("dataplane.wanted")

    @property
    def repaired(self) -> str:
        """What our reload command found damaged by the Data Plane API."""
        return self._path("dataplane.repaired")

    @property
    def token_socket(self) -> str:
        """Where HAProxy asks about tokens."""
        return self._path("tokens.sock")

    def agent_socket(self, number: int) -> str:
        """The socket of SPOE worker `number`, counted from 1."""
        return self._path(f"spoe-{number}.sock")

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self.directory) / name)


def layout(directory: str) -> Layout:
    """The layout under an absolute directory.

    Raises:
        SettingError: it is not absolute, has blanks or quotes, or is too long for sockets in it.
    """
    if not directory.startswith("/"):
        raise SettingError(f"expected an absolute state directory, found {directory!r}")
    try:
        words.directory(directory)
    except words.WordError as exc:
        raise SettingError(f"the state directory cannot stand in HAProxy's configuration: {exc}") from exc
    found = Layout(directory)
    check_socket_path(found.master_socket)
    check_socket_path(found.agent_socket(MOST_AGENTS))
    return found


def check_socket_path(path: str) -> None:
    """Nothing, when HAProxy can listen on a unix socket of that path.

    Raises:
        SettingError: it is too long.
    """
    size = len(path.encode(errors="surrogateescape"))
    if size > MAX_SOCKET_PATH_BYTES:
        raise SettingError(
            f"expected a socket path of at most {MAX_SOCKET_PATH_BYTES} bytes, found {size} in {path}; "
            "choose a state directory with a shorter path"
        )
