"""What the sidecar needs of the machine: ports, file descriptors, its state directory. Reads /proc."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hcc.app.state_directory import check_place
from hcc.diagnosis.finding import Finding, failed, ok, warning
from hcc.errors import SettingError
from hcc.haproxy.files import PRIVATE_DIRECTORY

_LISTENING = "0A"
_FEW_CONNECTIONS = 500


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that the sidecar listens on, and what for."""

    purpose: str
    address: str
    port: int

    def label(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def check_port(listener: Listener, directory: Path | None, sidecar_pid: int) -> Finding:
    """Whether the address can be listened on, or is held by our own sidecar.

    Args:
        listener: the address.
        directory: the proxy's state directory, whose name stands in the command line of its HAProxy.
        sidecar_pid: of the running hcc, 0 when none runs.
    """
    subject = f"{listener.purpose} {listener.label()}"
    problem = _bind_problem(listener)
    if problem is None:
        if sidecar_pid:
            return failed(subject, "free, although the sidecar runs", "look at `hcc status` for what it lacks")
        return ok(subject, "free")
    if problem.errno == errno.EADDRINUSE:
        return _taken(subject, listener.port, directory, sidecar_pid)
    if problem.errno == errno.EADDRNOTAVAIL:
        return failed(subject, "no address of this machine", "register another address for the sidecar")
    if problem.errno == errno.EACCES:
        return failed(subject, "needs a privilege", "use a port from 1024 up, or give hcc CAP_NET_BIND_SERVICE")
    return failed(subject, problem.strerror or str(problem), "choose another address")


def check_access_log(path: str) -> Finding:
    """Whether somebody takes HAProxy's lines at that socket; where nobody does, HAProxy drops them without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as exc:
            remedy = "HAProxy drops its lines meanwhile: start the syslog there, or name another one with --access-log"
            return warning("access log", f"{path}: {exc.strerror or exc}", remedy)
    return ok("access log", f"{path} takes lines")


def _taken(subject: str, port: int, directory: Path | None, sidecar_pid: int) -> Finding:
    owners = tuple(sorted(set(_owners(port))))
    if any(_is_ours(pid, directory, sidecar_pid) for pid in owners):
        return ok(subject, "held by this sidecar")
    if not owners:
        return failed(subject, "taken by a process that we may not see", "run hcc doctor as root to see it")
    names = ", ".join(f"{_command(pid)} (process {pid})" for pid in owners)
    return failed(subject, f"taken by {names}", "stop it, or register another port")


def check_file_descriptors(pid: int, wanted: int, per_connection: int, spare: int, haproxy: int = 0) -> Finding:
    """Whether the limit leaves room for connections.

    Args:
        pid: of a running hcc, 0 for ourselves.
        wanted: connections that hcc makes room for where it can.
        per_connection: file descriptors that one takes.
        spare: file descriptors besides.
        haproxy: the master that runs, 0 for none; it keeps the limit that it was started with.
    """
    ours = _hard_limit(pid)
    hard = min(ours, _hard_limit(haproxy)) if haproxy else ours
    room = max(0, (hard - spare) // per_connection)
    text = f"limit {hard}: room for {min(wanted, room)} connections at once"
    remedy = f"for {wanted}, raise LimitNOFILE= or `ulimit -Hn` to {wanted * per_connection + spare}"
    if hard < ours:
        remedy = f"HAProxy, process {haproxy}, keeps what it was started with, hcc has {ours}: stop both, and start hcc"
    if room < _FEW_CONNECTIONS:
        return failed("file descriptors", text, remedy)
    return warning("file descriptors", text, remedy) if room < wanted else ok("file descriptors", text)


def check_state_directory(base: Path, directory: Path | None, sidecar_pid: int = 0) -> Iterator[Finding]:
    """Whether `hcc run` would take the private directory, and it is private; or whether it can be made.

    Args:
        base: of all proxies.
        directory: of this proxy, None when it is not known which.
        sidecar_pid: of the running hcc, whose user counts; 0 when none runs.
    """
    as_that_user = "if hcc runs as another user, run hcc doctor as that one; else choose another --state-dir"
    try:
        # Any proxy's has a name of at least one letter.
        check_place(directory or base.absolute() / "x", _user_of(sidecar_pid))
        yield from _found_there(base, directory)
    except SettingError as exc:
        yield failed("state directory", str(exc), as_that_user)
    except OSError as exc:
        yield failed("state directory", f"{exc.filename or base}: {exc.strerror}", as_that_user)


def _user_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid if pid else os.geteuid()
    return os.geteuid()


def _found_there(base: Path, directory: Path | None) -> Iterator[Finding]:
    if directory is None or not directory.exists():
        yield _can_be_made(base)
        return
    about = directory.lstat()
    subject = "state directory"
    if not stat.S_ISDIR(about.st_mode):
        yield failed(subject, f"{directory}: not a directory", "remove it")
        return
    mode = stat.S_IMODE(about.st_mode)
    if mode != PRIVATE_DIRECTORY:
        yield failed(subject, f"{directory}: mode {mode:04o}, expected 0700", f"chmod 0700 {directory}")
    open_to_others = [
        f"{path.relative_to(directory)} ({_mode(path):04o})"
        for path in sorted(directory.rglob("*"))
        if _mode(path) & 0o077
    ]
    if open_to_others:
        shown = ", ".join(open_to_others[:5])
        yield failed(
            subject, f"{directory}: open to others: {shown}", f"chmod -R go= {directory}; find out who changed it"
        )
    elif mode == PRIVATE_DIRECTORY:
        yield ok(subject, f"{directory}: for its owner alone, and so is all in it")
    space = os.statvfs(directory)
    if space.f_bavail * space.f_frsize < 1024 * 1024:
        yield failed(subject, f"{directory}: less than 1 MB free", "make room: configuration and certificates are here")


def socket_owner(path: Path) -> int:
    """The process that listens on a unix socket, 0 when nobody does."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(str(path))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little", signed=True)
    return 0


def file_owner(path: Path) -> int:
    """A process that has the file open, as far as we may see; 0 when there is none.

    A process in a container may have a file of the same name open, which is another one.
    """
    name = str(path.resolve())
    return next((pid for pid, opened in _open_files() if name in opened and _has_open(pid, path)), 0)


def _can_be_made(base: Path) -> Finding:
    nearest = next(parent for parent in (base.absolute(), *base.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        return failed("state directory", f"{base}: {nearest} is no directory", "choose another --state-dir")
    if os.access(nearest, os.W_OK | os.X_OK):
        return ok("state directory", f"{base}: {'writable' if nearest == base.absolute() else 'will be made'}")
    return failed("state directory", f"{base}: {nearest} is not writable for us", "choose another --state-dir")


def _mode(path: Path) -> int:
    with contextlib.suppress(OSError):
        about = path.lstat()
        return 0 if stat.S_ISLNK(about.st_mode) else stat.S_IMODE(about.st_mode)
    return 0


def _hard_limit(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/limits").read_text(encoding="utf-8").splitlines():
            if line.startswith("Max open files"):
                hard = line.split()[4]
                return 2**30 if hard == "unlimited" else int(hard)
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _bind_problem(listener: Listener) -> OSError | None:
    """Why nobody can listen there, also that its name has no address."""
    family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((listener.address, listener.port))
            sock.listen(1)
    except OSError as exc:
        return exc
    return None


def _owners(port: int) -> Iterator[int]:
    """Processes that listen on a TCP port, as far as we may see."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    yield from (pid for pid, opened in _open_files() if opened & sockets)


def _open_files() -> Iterator[tuple[int, set[str]]]:
    """Each process that we may look at, and the names of what it has open."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(process.name), set(_targets(process / "fd"))


def _targets(links: Path) -> Iterator[str]:
    for link in links.iterdir():
        # What was closed meanwhile, such as by ourselves.
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def _has_open(pid: int, path: Path) -> bool:
    """Whether one of the process's open files is this very file."""
    with contextlib.suppress(OSError):
        ours = path.stat()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), ours):
                    return True
    return False


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _is_ours(pid: int, directory: Path | None, sidecar_pid: int) -> bool:
    return pid == sidecar_pid != 0 or (directory is not None and str(directory) in _command_line(pid))


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return "a process"
