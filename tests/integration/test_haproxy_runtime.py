"""The socket client against a fake HAProxy that misbehaves, which the real one will not do on demand."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.haproxy import commands, takeover
from hcc.haproxy.control import ApplyError
from hcc.haproxy.layout import layout
from hcc.haproxy.listeners import taken_binds
from hcc.haproxy.model import CertificateFile, TcpBind, UnixBind
from hcc.haproxy.plan import DeleteServer, Operation, SetCertificate, SetServerAddress, SetServerWeight
from hcc.haproxy.process import record_pid
from hcc.haproxy.runtime import (
    MasterSocket,
    NotListeningError,
    PayloadError,
    RuntimeSocket,
    RuntimeSocketError,
    SilentError,
    exchange,
)
from hcc.haproxy.takeover import MASTER_TIMEOUT_S, TakeOver
from hcc.mesh.secret import Secret
from tests.builders import V2_6
from tests.haproxy_stage import DEADLINE_S
from tests.ports import free_port

pytestmark = pytest.mark.integration
# No process has that id: they end at 2^22.
NOBODY = 2**22 + 1


class Fake:
    """Answers each connection by a function of what it received; keeps all that was received."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.received: list[str] = []
        self.answer: Callable[[str], bytes | None] = lambda _: b"\n"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        for held in (self._listener, *self._held):
            held.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._one(connection)

    def _one(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE_S)
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        self.received.append(text)
        answer = self.answer(text)
        if answer is None:
            self._held.append(connection)
            return
        with connection:
            connection.sendall(answer)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path / "s")
    try:
        yield made
    finally:
        made.close()


def runtime(fake: Fake, timeout_s: float = DEADLINE_S) -> RuntimeSocket:
    return RuntimeSocket(fake.path, timeout_s=timeout_s)


def closed(directory: Path) -> str:
    """A socket that was listened on."""
    path = str(directory / "closed")
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(path)
    return path


def test_commands_go_on_one_line_and_a_payload_ends_with_one_blank_line(fake: Fake) -> None:
    runtime(fake).send("show info", "show stat")
    runtime(fake).send_payload("set ssl cert x", "one\n\n  two\r\n\n\n")
    assert fake.received == ["show info; show stat\n", "set ssl cert x <<\none\ntwo\n\n"]


def test_more_commands_than_a_line_holds_go_on_several_in_order(fake: Fake) -> None:
    fake.answer = lambda text: text.upper().encode() + b"\n"
    commands = [f"set server {'b' * 200}/{number} state ready" for number in range(80)]

    answer = runtime(fake).send(*commands)

    assert [len(fake.received), max(map(len, fake.received)) <= 12_000] == [2, True]
    assert [one for line in fake.received for one in line.strip().split("; ")] == commands
    assert answer == "".join(f"{line}\n" for line in fake.received).upper()


def test_a_command_that_is_too_long_is_not_sent(fake: Fake) -> None:
    with pytest.raises(PayloadError, match="at most 15360 bytes, found"):
        runtime(fake).send_payload("set ssl cert x", "y" * 15_360)
    assert not fake.received


def test_an_answer_that_does_not_come_is_given_up_in_time(fake: Fake) -> None:
    fake.answer = lambda _: None
    start = time.monotonic()
    with pytest.raises(RuntimeSocketError, match="does not answer"):
        runtime(fake, timeout_s=0.2).send("show info")
    assert time.monotonic() - start < DEADLINE_S


@pytest.mark.parametrize("answer", [b"", b"1\n# be_id be_name srv_id\n3 up", b"1\n# be_id be_name srv_id\n3 up 1\n"])
def test_a_part_of_an_answer_is_not_taken_for_all_of_it(fake: Fake, answer: bytes) -> None:
    fake.answer = lambda _: answer
    with pytest.raises(RuntimeSocketError, match="broke off its answer"):
        runtime(fake).send("show servers state")


def test_who_takes_no_more_questions_is_asked_until_the_time_is_over_or_nobody_waits_any_more(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        began = time.monotonic()
        with pytest.raises(SilentError, match="does not answer"):
            exchange(path, b"show info\n", 0.2)
        assert 0.2 <= time.monotonic() - began < DEADLINE_S
        assert exchange(path, b"show info\n", DEADLINE_S, lambda: True) == ""

        def take() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as asked:
                said = b"".join(iter(lambda: asked.recv(100), b""))
                asked.sendall(said.upper())

        # As soon as there is room, it is said.
        taking = threading.Timer(0.1, take)
        taking.start()
        assert exchange(path, b"show info\n", DEADLINE_S) == "SHOW INFO\n"
        taking.join()


def test_nobody_listening_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotListeningError):
        RuntimeSocket(str(tmp_path / "none")).send("show info")
    with pytest.raises(NotListeningError):
        MasterSocket(str(tmp_path / "none")).processes()


def test_where_nobody_listens_the_master_is_asked_to_pass_every_command_on(fake: Fake, tmp_path: Path) -> None:
    through = RuntimeSocket(closed(tmp_path), master=fake.path)
    through.send("show info", "show stat")
    through.send_payload("set ssl cert x", "one\ntwo")
    assert fake.received == ["@1 show info; @1 show stat\n", "@1 set ssl cert x <<\none\ntwo\n\n"]
    assert through.through_master


def test_a_master_without_a_worker_is_nobody_listening(fake: Fake, tmp_path: Path) -> None:
    fake.answer = lambda _: b"Can't find the target PID matching the prefix '@1'\n"
    with pytest.raises(NotListeningError):
        RuntimeSocket(closed(tmp_path), master=fake.path).send("show info")


def test_without_the_socket_s_file_nothing_runs_if_the_master_has_no_worker(fake: Fake, tmp_path: Path) -> None:
    fake.answer = lambda _: b"Can't find the target PID matching the prefix '@1'.\n"
    with pytest.raises(NotListeningError):
        RuntimeSocket(str(tmp_path / "none"), master=fake.path).send("disable server b/s")
    assert fake.received == ["@1 show info\n"]


def test_a_worker_that_hangs_is_not_asked_twice(fake: Fake) -> None:
    fake.answer = lambda _: None
    with pytest.raises(RuntimeSocketError, match="does not answer"):
        RuntimeSocket(fake.path, timeout_s=0.2, master=fake.path).send("add server b/s")
    assert fake.received == ["add server b/s\n"]


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        (SetServerWeight("b", "s", 1), b"No such server.\n\n"),
        (SetServerAddress("b", "s", "::1", 1), b"Invalid address\n\n"),
        (DeleteServer("b", "s"), b"Permission denied\n\n"),
        (SetCertificate(CertificateFile("/x", "A", Secret("pem"))), b"unable to load certificate\n\n"),
        (SetCertificate(CertificateFile("/x", "A", Secret("pem"))), b"\n"),
    ],
)
def test_an_unexpected_answer_is_an_error_that_shows_it(fake: Fake, operation: Operation, answer: bytes) -> None:
    fake.answer = lambda _: answer
    with pytest.raises(ApplyError) as caught:
        _carry_out(runtime(fake), operation)
    assert (answer.decode().strip() or "nothing") in str(caught.value)
    assert caught.value.operation == operation.describe()


def _carry_out(socket_: RuntimeSocket, operation: Operation) -> None:
    if isinstance(operation, DeleteServer):
        commands.delete(socket_, operation)
    else:
        commands.run(socket_, (operation,), V2_6)


def test_in_a_batch_the_operation_that_failed_is_found(fake: Fake) -> None:
    operations = tuple(SetServerWeight("b", name, 1) for name in ("one", "two", "three"))
    fake.answer = lambda text: b"No such server.\n\n" if "b/two " in text else b"\n"
    with pytest.raises(ApplyError, match="set server b/two weight 1"):
        commands.run(runtime(fake), operations, V2_6)


def test_a_commit_that_fails_is_aborted(fake: Fake) -> None:
    fake.answer = lambda text: b"Transaction created for certificate /x!\n\n" if " <<" in text else b"Error!\n\n"
    with pytest.raises(ApplyError, match="Error!"):
        commands.run(runtime(fake), (SetCertificate(CertificateFile("/x", "A", Secret("pem"))),), V2_6)
    assert [text.split()[0] for text in fake.received] == ["set", "commit", "abort"]


def test_binds_that_cannot_be_are_found_with_the_reason(fake: Fake, tmp_path: Path) -> None:
    left_over = tmp_path / "left-over"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left_over))
    precious, private, link = tmp_path / "precious", tmp_path / "private", tmp_path / "link"
    precious.write_text("somebody's")
    private.mkdir()
    link.symlink_to(private)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as foreign:
        port = int(foreign.getsockname()[1])
        found = taken_binds(
            [
                TcpBind("::1", port),
                TcpBind("203.0.113.1", 1),
                UnixBind(fake.path),
                UnixBind("/nonexistent/x.sock"),
                UnixBind(str(left_over)),
                UnixBind(str(tmp_path / "new")),
                UnixBind(str(precious)),
                UnixBind(str(private)),
                UnixBind(str(private / "stats.sock")),
                UnixBind(str(link / "stats.sock")),
            ],
            owners=(),
            private=str(private),
        )
    assert [(str(taken.bind), taken.reason) for taken in found] == [
        (f"[::1]:{port}", "Address already in use"),
        ("203.0.113.1:1", "Cannot assign requested address"),
        (fake.path, f"another process listens on {fake.path}"),
        ("/nonexistent/x.sock", "the directory /nonexistent is missing or cannot be written"),
        (str(precious), f"{precious} is there and no socket"),
        (str(private), f"{private} is there and no socket"),
        (str(private / "stats.sock"), f"{private} is for files of hcc alone"),
        (str(link / "stats.sock"), f"{private} is for files of hcc alone"),
    ]


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the kernel make no IPv6 socket any more, for that reason."""
    real = socket.socket

    def fail_with(number: int) -> None:
        def made(family: int, kind: int) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(number, os.strerror(number))
            return real(family, kind)

        monkeypatch.setattr(socket, "socket", made)

    return fail_with


def test_an_address_of_a_family_that_the_kernel_lacks_cannot_be_bound(no_socket: Callable[[int], None]) -> None:
    binds = [TcpBind("127.0.0.1", free_port()), TcpBind("::1", 1)]
    no_socket(errno.EAFNOSUPPORT)
    assert [str(taken) for taken in taken_binds(binds, owners=())] == [
        "cannot listen on [::1]:1: Address family not supported by protocol"
    ]


def test_a_lack_of_descriptors_says_nothing_of_an_address(no_socket: Callable[[int], None]) -> None:
    no_socket(errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        taken_binds([TcpBind("::1", 1)], owners=())


def test_nothing_is_said_to_be_taken_when_it_cannot_be_seen_what_is_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody_s:
        port = int(somebody_s.getsockname()[1])
        assert taken_binds([TcpBind("127.0.0.1", port)], owners=(NOBODY,)) == ()


def test_a_master_that_says_nothing_of_a_worker_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    where = layout(str(tmp_path))
    master = Fake(Path(where.master_socket))
    master.answer = lambda _: None
    worker = subprocess.Popen(["sleep", "1"])
    reaping = threading.Thread(target=worker.wait)
    reaping.start()
    try:
        began = time.monotonic()
        TakeOver(where)._let_go(worker.pid)
        assert master.received == [f"@!{worker.pid} show info\n"]
        assert time.monotonic() - began < MASTER_TIMEOUT_S / 2
        assert not MasterSocket(where.master_socket).of_worker(worker.pid, "show sess")
    finally:
        worker.kill()
        reaping.join()
        master.close()


def test_a_master_that_loses_a_question_as_it_starts_anew_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "ASK_TIMEOUT_S", 0.1)
    where = layout(str(tmp_path))
    record_pid(where.pid_file, os.getpid())
    processes = b"1 master 1 [failed: 1] 0d00h00m02s 2.2.9\n# workers\n# old workers\n2 worker 1 0d00h00m05s 2.2.9\n"
    master = Fake(Path(where.master_socket))
    master.answer = lambda _: processes if len(master.received) > 1 else None
    try:
        found = TakeOver(where)._processes()
        assert (found.serving, master.received) == (2, ["show proc\n"] * 2)
        master.received.clear()
        began = time.monotonic()
        assert not TakeOver(where)._failed_since(replace(found, failed=0))
        assert time.monotonic() - began < MASTER_TIMEOUT_S / 2
        assert TakeOver(where)._failed_since(replace(found, failed=0))
    finally:
        master.close()
