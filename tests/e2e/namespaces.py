"""Network namespaces as the "servers" of the end-to-end tests.

The test process keeps its own network; a socket made through `Namespace.connect` lives in the namespace from
its birth (network namespaces belong to threads, and a socket stays where it was made). Names carry the pid of
the test process, so that what a killed run left behind is known to be nobody's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

CLONE_NEWNET = 0x40000000
PREFIX = "hcc"
NAMES = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """Network namespaces cannot be used here."""


def require_namespaces() -> None:
    """Nothing, or NamespaceError with what is missing: root's rights or the program ip."""
    if os.geteuid() != 0:
        raise NamespaceError("the end-to-end tests make network namespaces: expected to run as root")
    if shutil.which("ip") is None:
        raise NamespaceError("the end-to-end tests need the program `ip`: install iproute2")


@dataclass(frozen=True)
class Namespace:
    """One network namespace. `address` is its end of the veth pair, empty for one that stands alone."""

    name: str
    address: str = ""
    _handle: int = field(default=-1, repr=False)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread inside the namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._handle)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def tcp_socket(self) -> socket.socket:
        """A TCP socket of this namespace."""
        with self.entered():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def connect(self, host: str, port: int, timeout_s: float = 10.0) -> socket.socket:
        """A TCP connection from this namespace."""
        sock = self.tcp_socket()
        try:
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def http(self, port: int, host: str = "127.0.0.1", timeout_s: float = 10.0) -> HTTPConnection:
        """An HTTP connection that will be opened from this namespace."""
        return _Connection(self, host, port, timeout_s)

    def command(self, *words: str) -> list[str]:
        """The command line that runs the words inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def pids(self) -> frozenset[int]:
        """Processes that run inside."""
        return _pids(self.name)

    def listening(self, port: int, host: str = "127.0.0.1") -> bool:
        """Whether somebody accepts connections there."""
        try:
            self.connect(host, port, timeout_s=1.0).close()
        except OSError:
            return False
        return True


class _Connection(HTTPConnection):
    def __init__(self, namespace: Namespace, host: str, port: int, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._namespace = namespace
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = self._namespace.connect(self.host, self.port, self._timeout_s)


@contextlib.contextmanager
def joined_pair(suffixes: tuple[str, str] = ("a", "b")) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a veth pair; everything in them is ended and both are gone afterwards."""
    with namespace(suffixes[0], "10.231.0.1") as one, namespace(suffixes[1], "10.231.0.2") as two:
        _ip(
            "link",
            "add",
            "veth0",
            "netns",
            one.name,
            "type",
            "veth",
            "peer",
            "name",
            "veth0",
            "netns",
            two.name,
        )
        for each in (one, two):
            _ip("-n", each.name, "address", "add", f"{each.address}/24", "dev", "veth0")
            _ip("-n", each.name, "link", "set", "veth0", "up")
        yield one, two


@contextlib.contextmanager
def namespace(suffix: str, address: str = "") -> Iterator[Namespace]:
    """One namespace with a loopback interface; everything in it is ended and it is gone afterwards."""
    require_namespaces()
    name = f"{PREFIX}-{os.getpid()}-{suffix}"
    _ip("netns", "add", name)
    handle = -1
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        handle = os.open(NAMES / name, os.O_RDONLY | os.O_CLOEXEC)
        yield Namespace(name, address, handle)
    finally:
        if handle >= 0:
            os.close(handle)
        _remove(name)


def sweep() -> tuple[str, ...]:
    """The namespaces removed because the test process that made them is gone; its directory goes with them."""
    found = NAMES.glob(f"{PREFIX}-*-*") if NAMES.is_dir() else ()
    gone = tuple(path.name for path in found if _is_abandoned(path.name))
    for name in gone:
        # Another test process may be at it, too.
        with contextlib.suppress(NamespaceError):
            _remove(name)
        assert not (NAMES / name).exists(), f"the namespace {name} cannot be removed"
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-e2e-*-*"):
        owner = path.name.split("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _unmount_below(path)
            shutil.rmtree(path, ignore_errors=True)
    return gone


def _unmount_below(directory: Path) -> None:
    """Let go of the file systems that a test mounted there."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in places:
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", place], timeout=10, check=False)


def end(pids: frozenset[int], grace_s: float = 2.0) -> None:
    """End these processes: politely, and after grace_s seconds for certain."""
    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        limit = time.monotonic() + limit_s
        while time.monotonic() < limit and any(is_running(pid) for pid in pids):
            time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether the process is there and not merely waiting for its parent to notice its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def _is_abandoned(name: str) -> bool:
    match = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


def _remove(name: str) -> None:
    end(_pids(name), grace_s=0.5)
    _ip("netns", "delete", name)


def _pids(name: str) -> frozenset[int]:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=10, check=False)
    return frozenset(int(word) for word in done.stdout.split())


def _enter(handle: int) -> None:
    if _libc.setns(handle, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise NamespaceError(f"ip {' '.join(words)}: {done.stderr.strip()}")
