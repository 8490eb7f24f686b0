"""HAProxy's two sockets, the worker's and the master's: one connection per exchange, each bounded.

Source: HAProxy management.txt section 9.3 and 9.4; reference/haproxy.md section 4.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hcc.haproxy.capabilities import SMALL_PAYLOAD_BYTES
from hcc.haproxy.control import ControlError
from hcc.haproxy.replies import (
    Info,
    Processes,
    ReloadAnswer,
    ReplyError,
    parse_info,
    parse_processes,
    parse_reload,
)

CHUNK_BYTES = 256 * 1024
# `show servers state` of 10,000 servers is 0.65 MB; nothing we ask for comes near this.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
# To the master: pass the command on to the worker that serves; each of several on a line needs it. And its answer when
# there is none.
CURRENT_WORKER = "@1"
# Commands are joined into lines of at most so many bytes, of the 16 KiB that HAProxy takes.
JOINED_BYTES = 12_000
LOST_FILE_TIMEOUT_S = 0.5
# While nothing comes.
LOOK_S = 0.5
# Between tries to connect to a process that is behind with taking connections.
FULL_POLL_S = 0.01
# What is left of a time that is just over: 0 would mean not to wait at all, which is another error.
LEAST_S = 0.001
# What such commands answer ends with a blank line, the only one where there is nothing to say; of 2.6 not every other.
LISTS = "show "
NO_WORKER = ("Can't find the target", "Can't connect to the target")


class RuntimeSocketError(ControlError):
    """A socket of HAProxy cannot be reached, or did not answer in time."""


class NotListeningError(RuntimeSocketError):
    """Nobody listens on a socket of HAProxy: it does not run."""


class SilentError(RuntimeSocketError):
    """Somebody listens on a socket of HAProxy, and did not answer in time."""


class BrokenOffError(RuntimeSocketError):
    """The end of an answer did not come: the worker died, or waited longer for us than its `stats timeout`."""


class PayloadError(ControlError):
    """A command is longer than HAProxy takes; sent, it would be dropped without a word."""


class RuntimeSocket:
    """The runtime (stats) socket of the current worker.

    Args:
        payload_bytes: longest command with payload, `Capabilities.payload_bytes`.
        timeout_s: for one whole exchange; a certificate used by thousands takes seconds.
        master: the master's socket; it passes commands on to the worker when nobody listens on the worker's own.
            So it is on 3.2 and 3.4 after a second failed reload, until one succeeds, while traffic goes on.
    """

    def __init__(
        self, path: str, payload_bytes: int = SMALL_PAYLOAD_BYTES, timeout_s: float = 30.0, master: str = ""
    ) -> None:
        self._path = path
        self._payload_bytes = payload_bytes
        self._timeout_s = timeout_s
        self._master = master
        self._through_master = False

    @property
    def through_master(self) -> bool:
        """Whether the last command had to go through the master."""
        return self._through_master

    def send(self, *commands: str) -> str:
        """The joined answer to several commands, each one line, sent as few lines as hold them.

        Raises:
            PayloadError: one of them is too long.
            RuntimeSocketError: no answer.
        """
        return "".join(self._exchange(part) for part in _parts(commands, f"{CURRENT_WORKER} "))

    def send_payload(self, command: str, payload: str) -> str:
        """The answer to a command with a payload such as PEM; blank lines, which would end it, are left out.

        Raises:
            PayloadError: it is too long.
            RuntimeSocketError: no answer.
        """
        lines = "\n".join(line.strip() for line in payload.splitlines() if line.strip())
        return self._exchange((f"{command} <<\n{lines}\n",))

    def info(self) -> Info:
        """What `show info` says.

        Raises:
            RuntimeSocketError: no answer, or one that makes no sense.
        """
        text = self.send("show info")
        try:
            return parse_info(text)
        except ReplyError as exc:
            raise RuntimeSocketError(str(exc)) from exc

    def _exchange(self, commands: tuple[str, ...]) -> str:
        try:
            answer = exchange(self._path, self._line(commands), self._timeout_s)
        except NotListeningError:
            if not self._master or not (Path(self._path).exists() or self._file_is_lost()):
                raise
            answer = self._by_master(commands)
            self._through_master = True
        else:
            self._through_master = False
        if commands[-1].startswith(LISTS) and not _is_whole(answer):
            raise BrokenOffError(f"HAProxy broke off its answer on {self._path} after {len(answer)} characters")
        return answer

    def _file_is_lost(self) -> bool:
        """Whether a worker runs although its socket has no file: somebody removed it, and no reload brings it back.

        Mostly HAProxy is about to start, and its master would let us wait.
        """
        try:
            answer = exchange(self._master, f"{CURRENT_WORKER} show info\n".encode(), LOST_FILE_TIMEOUT_S)
        except RuntimeSocketError:
            return False
        return not answer.startswith(NO_WORKER)

    def _by_master(self, commands: tuple[str, ...]) -> str:
        """The worker's answer, fetched by the master. Raises NotListeningError when there is no worker either."""
        line = self._line(tuple(f"{CURRENT_WORKER} {command}" for command in commands))
        answer = exchange(self._master, line, self._timeout_s)
        if answer.startswith(NO_WORKER):
            raise NotListeningError(f"nobody listens on {self._path}, and the master has no worker")
        return answer

    def _line(self, commands: tuple[str, ...]) -> bytes:
        data = "; ".join(commands).encode() + b"\n"
        if len(data) > self._payload_bytes:
            raise PayloadError(f"expected a command of at most {self._payload_bytes} bytes, found {len(data)}")
        return data


def _is_whole(answer: str) -> bool:
    """Whether a list has its end: a part of it would look like a shorter list."""
    return answer.endswith("\n") and (not answer.strip("\n") or answer.endswith("\n\n"))


def _parts(commands: Iterable[str], prefix: str) -> Iterator[tuple[str, ...]]:
    """The commands in order, as many together as may be joined, though each may have to be given that prefix."""
    part: list[str] = []
    size = 0
    for command in commands:
        if part and size + len(command) > JOINED_BYTES:
            yield tuple(part)
            part, size = [], 0
        part.append(command)
        size += len(f"; {prefix}{command}")
    if part:
        yield tuple(part)


class MasterSocket:
    """The socket of the master process."""

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def send(self, command: str, over: Callable[[], bool] = lambda: False) -> str:
        """The master's answer to one command; `over` is asked whether none is waited for any more."""
        return exchange(self._path, command.encode() + b"\n", self._timeout_s, over)

    def of_worker(self, pid: int, *commands: str, over: Callable[[], bool] = lambda: False) -> str:
        """The joined answer of one worker, also an old one, to commands; empty when it ends meanwhile.

        The master of 3.2.26 now and then never answers when it passes a command on to one that just ends.
        """
        return "".join(self.say(pid, line, over) for line in self.lines(pid, *commands))

    def lines(self, pid: int, *commands: str) -> Iterator[tuple[str, ...]]:
        """The commands in order, those together that go to the worker at once; to be said one after the other."""
        return _parts(commands, f"@!{pid} ")

    def say(self, pid: int, commands: tuple[str, ...], over: Callable[[], bool] = lambda: False) -> str:
        """As `of_worker`, for one of its `lines`."""
        line = "; ".join(f"@!{pid} {command}" for command in commands)
        answer = self.send(line, lambda: not lives(pid) or over())
        if answer.startswith(NO_WORKER):
            raise NotListeningError(f"the master has no worker {pid}")
        # A master that starts anew for a reload closes without an answer.
        if commands[-1].startswith(LISTS) and not _is_whole(answer) and (answer or lives(pid)):
            raise BrokenOffError(f"worker {pid} broke off its answer after {len(answer)} characters")
        return answer

    def processes(self) -> Processes:
        """What `show proc` says."""
        return parse_processes(self.send("show proc"))

    def reload(self, seen: Callable[[], bool] = lambda: False) -> ReloadAnswer:
        """Start a reload; its outcome as HAProxy tells it, which it does from 2.7 on.

        On 2.6 and older the master answers nothing and starts anew; see `reloaded`. One that starts anew as 2.6, as
        its program was exchanged, keeps the connection and never answers: `seen` is asked whether it is over.
        """
        return parse_reload(exchange(self._path, b"reload\n", self._timeout_s, seen))


def lives(pid: int) -> bool:
    """Whether there is a process with that id which has not ended; one that has may wait for its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def exchange(path: str, data: bytes, timeout_s: float, over: Callable[[], bool] = lambda: False) -> str:
    """Everything a unix socket's server says to `data` until it closes; our sending side is closed at once.

    Args:
        path: of the socket.
        data: what is said.
        timeout_s: for all of it.
        over: asked now and then while nothing comes; whether nothing needs to come any more.

    Raises:
        RuntimeSocketError: not reachable, too slow, or too much.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            if not _connected(client, path, deadline, over):
                return ""
            client.settimeout(max(deadline - time.monotonic(), LEAST_S))
            client.sendall(data)
            # The master never closes by itself; with our side closed it does, right after the answer.
            client.shutdown(socket.SHUT_WR)
            return _read_all(client, deadline, over)
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NotListeningError(f"nobody listens on {path}") from exc
    except TimeoutError as exc:
        raise SilentError(f"HAProxy does not answer on {path} within {timeout_s:g} s") from exc
    except OSError as exc:
        # A lack of descriptors on our side, too.
        raise RuntimeSocketError(f"HAProxy does not answer on {path}: {exc}") from exc


def _connected(client: socket.socket, path: str, deadline: float, over: Callable[[], bool]) -> bool:
    """Whether there is a connection by then; False when none needs to be any more.

    Ten or a hundred connections wait for a process that takes none, such as those of whoever asked before and gave up.
    The next one is refused at once with EAGAIN, which says the same as an answer that does not come.
    """
    client.setblocking(False)
    while True:
        try:
            client.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
        else:
            return True
        if over():
            return False
        time.sleep(FULL_POLL_S)


def _read_all(client: socket.socket, deadline: float, over: Callable[[], bool]) -> str:
    received = bytearray()
    while True:
        client.settimeout(min(max(deadline - time.monotonic(), LEAST_S), LOOK_S))
        try:
            chunk = client.recv(CHUNK_BYTES)
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise
            if not over():
                continue
            chunk = b""
        if not chunk:
            return received.decode("utf-8", errors="replace")
        received += chunk
        if len(received) > MAX_ANSWER_BYTES:
            raise RuntimeSocketError(f"HAProxy answered more than {MAX_ANSWER_BYTES} bytes")
