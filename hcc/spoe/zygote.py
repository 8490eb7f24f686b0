"""The process that forks workers: tiny, single-threaded, and started by exec, so that restarting it is starting it.

    python -m hcc.spoe.zygote --control-fd N

N is one end of a SOCK_SEQPACKET pair. One packet in, one or two out, all JSON:

    in   {"index", "start"} with descriptors: control socket, counters, its listener, those of the other workers
    out  {"index", "start", "pid"} with a pidfd, or {"index", "start", "reason"} if there can be no fork
    out  {"index", "start", "pid", "status"} when that worker has ended; a status of -N is signal N

The end of the stream means that the main process is gone: the zygote leaves. The workers see it on their own, and
tell from a pidfd of the main process, which they inherit, that it is gone and not merely done with them.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from hcc.spoe.worker import serve

PACKET_BYTES = 4096
# Linux takes no more with one packet (SCM_MAX_FD).
MAX_DESCRIPTORS = 253
_FORK = multiprocessing.get_context("fork")


class Zygote:
    """The loop over requests and dead children.

    Args:
        control: the socket to the main process.
        main_pidfd: readable when the main process is gone.
    """

    def __init__(self, control: socket.socket, main_pidfd: int) -> None:
        self._control = control
        self._main_pidfd = main_pidfd
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        # By sentinel.
        self._workers: dict[int, tuple[dict[str, Any], BaseProcess]] = {}

    def run(self) -> None:
        """Fork and reap until the main process is gone."""
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._control.fileno():
                    self._reap(fd)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET_BYTES, MAX_DESCRIPTORS)
        except ConnectionResetError:
            # It went without reading what we told it.
            return False
        if not packet:
            return False
        try:
            self._spawn(json.loads(packet), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _spawn(self, request: dict[str, Any], descriptors: list[int]) -> None:
        worker = _FORK.Process(target=_be_worker, args=(self._control, self._main_pidfd, descriptors, request["index"]))
        try:
            worker.start()
            pidfd = os.pidfd_open(worker.pid or 0)
        except OSError as exc:
            self._tell({**request, "reason": f"cannot fork a worker: {exc.strerror}"})
            return
        self._workers[worker.sentinel] = (request, worker)
        self._poll.register(worker.sentinel, select.POLLIN)
        self._tell({**request, "pid": worker.pid}, pidfd)
        os.close(pidfd)

    def _reap(self, sentinel: int) -> None:
        self._poll.unregister(sentinel)
        request, worker = self._workers.pop(sentinel)
        worker.join()
        self._tell({**request, "pid": worker.pid, "status": worker.exitcode})
        worker.close()

    def _tell(self, report: dict[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(report).encode("ascii")], descriptors)
        except OSError:
            # The main process is gone; the next poll says so.
            return


def _be_worker(
    zygote_control: socket.socket,
    main_pidfd: int,
    descriptors: list[int],
    index: int,
) -> NoReturn:
    # Else the main process would not see the end of the zygote while this worker lives.
    zygote_control.close()
    control_fd, counters_fd, *listener_fds = descriptors
    listener, *others = (socket.socket(fileno=fd) for fd in listener_fds)
    serve(listener, others, socket.socket(fileno=control_fd), counters_fd, index, main_pidfd)


def main(arguments: list[str]) -> NoReturn:
    """Be the zygote until the end of the process."""
    if len(arguments) != 2 or arguments[0] != "--control-fd" or not arguments[1].isdigit():  # noqa: PLR2004 (one flag, one value)
        sys.stderr.write("hcc.spoe.zygote: expected --control-fd NUMBER; this program is started by hcc\n")
        sys.exit(2)
    # Our end and our workers' end is the main process's business: it drains them first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What lives now is shared by all workers for good: no collection may touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    try:
        main_pidfd = os.pidfd_open(os.getppid())
    except ProcessLookupError:
        os._exit(0)
    Zygote(socket.socket(fileno=int(arguments[1])), main_pidfd).run()
    # Not sys.exit: multiprocessing would wait for the workers.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
