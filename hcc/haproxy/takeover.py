"""A new HAProxy worker takes over from the old one, over the master socket, and is seen to do so."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from hcc.haproxy.control import ApplyError, ControlError
from hcc.haproxy.files import read_since, size_of
from hcc.haproxy.layout import Layout
from hcc.haproxy.process import lost_program, recorded_pid
from hcc.haproxy.replies import Message, Processes, ReloadAnswer, ReplyError, alerts, parse_info
from hcc.haproxy.runtime import MasterSocket, RuntimeSocket, RuntimeSocketError, lives

RELOAD_TIMEOUT_S = 60.0
MASTER_TIMEOUT_S = 10.0
# A question that comes as the master starts anew may never be answered: it is asked again.
ASK_TIMEOUT_S = 2.0


class TakeOver:
    """Reloads one HAProxy."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # Where somebody removed the worker's socket, no reload brings it back: a new worker inherits it (2.6 to 3.4).
        self._runtime = RuntimeSocket(layout.stats_socket, timeout_s=ASK_TIMEOUT_S, master=layout.master_socket)
        self._master = MasterSocket(layout.master_socket)
        self._asked = MasterSocket(layout.master_socket, ASK_TIMEOUT_S)

    def run(self, structure: str, config: str, operation: str) -> None:
        """Reload with the file on disk; returns when a new worker runs that structure.

        Args:
            structure: digest of what the new worker has to run.
            config: the text, to quote the line that HAProxy complains about.
            operation: in words, for the error.

        Raises:
            ApplyError: no new worker runs it; HAProxy's reason is in the message.
            ControlError: the master does not answer, or ended.
        """
        master = recorded_pid(self._layout.pid_file)
        if program := lost_program(self._layout.pid_file):
            # The master would end, or listen to nobody any more.
            text = f"HAProxy cannot be reloaded: its program {program} is gone; put it back, or end process {master}"
            raise ApplyError(f"{text}: hcc then starts HAProxy anew", operation)
        before = self._processes()
        logged = size_of(self._layout.log)
        answer = self._reload(structure, before)
        if answer.success is False:
            raise refusal("HAProxy's new worker did not start", answer.log, config, operation)
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while not self._new_worker_runs(structure, before):
            failed = answer.success is None and self._failed_since(before)
            if failed or time.monotonic() > deadline:
                said = read_since(self._layout.log, logged)
                raise refusal("HAProxy's new worker did not start", said, config, operation)
            if recorded_pid(self._layout.pid_file) != master:
                raise ControlError("HAProxy ended during the reload")
            time.sleep(0.01)
        self._let_go(before.serving)

    def _reload(self, structure: str, before: Processes) -> ReloadAnswer:
        """The master's answer; one that somebody else made it begin is waited for."""
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while True:
            answer = self._master.reload(lambda: self._new_worker_runs(structure, before))
            if not answer.busy or time.monotonic() > deadline:
                return answer
            time.sleep(0.01)

    def _let_go(self, worker: int) -> None:
        """Wait until the old worker no longer accepts: until then a call or a command may still reach it.

        Bounded, and no error: the new worker runs, whatever the old one does.
        """
        deadline = time.monotonic() + MASTER_TIMEOUT_S
        while lives(worker) and not self._stopping(worker, deadline) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _stopping(self, worker: int, deadline: float) -> bool:
        try:
            said = self._master.of_worker(worker, "show info", over=lambda: time.monotonic() >= deadline)
            return parse_info(said).stopping
        except (RuntimeSocketError, ReplyError):
            # The master starts anew during a reload and knows nothing for a moment.
            return False

    def _processes(self) -> Processes:
        """What the master says; after a start or reload it starts anew and cannot be asked for a moment."""
        deadline = time.monotonic() + MASTER_TIMEOUT_S
        signalled = False
        while True:
            try:
                return self._asked.processes()
            except (RuntimeSocketError, ReplyError):
                # Without a record it ended, but for a full disk; then it is asked again at the next try.
                if recorded_pid(self._layout.pid_file) is None or time.monotonic() > deadline:
                    raise
            if not signalled and not Path(self._layout.master_socket).exists():
                signalled = True
                deadline = time.monotonic() + RELOAD_TIMEOUT_S
                self._bring_socket_back()
            time.sleep(0.01)

    def _bring_socket_back(self) -> None:
        """Somebody removed the master's socket: it makes it anew in a reload, for which it is asked by signal.

        One whose worker does not answer may be starting, and the signal would end it. Source: HAProxy management.txt
        section 4.
        """
        master = recorded_pid(self._layout.pid_file)
        with contextlib.suppress(RuntimeSocketError, OSError):
            self._runtime.info()
            if master is not None:
                os.kill(master, signal.SIGUSR2)

    def _new_worker_runs(self, structure: str, before: Processes) -> bool:
        try:
            info = self._runtime.info()
        except RuntimeSocketError:
            return False
        return info.structure == structure and info.pid != before.serving

    def _failed_since(self, before: Processes) -> bool:
        """Whether the master counts one more failed reload, or, before 2.5, came back from it without a new worker.

        While it starts anew it may not answer.
        """
        try:
            now = self._asked.processes()
        except (RuntimeSocketError, ReplyError):
            return False
        return now.failed > before.failed or (now.reloads > before.reloads and not now.current)


def refusal(what: str, said: str, config: str, operation: str) -> ApplyError:
    """The error for what HAProxy said: its first alerts, and the line of `config` that they name."""
    found: tuple[Message, ...] = alerts(said)
    line = next((message.line for message in found if message.line), 0)
    lines = config.splitlines()
    excerpt = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    reason = "; ".join(str(message) for message in found[:3]) or said.strip()[-300:] or "it gives no reason"
    quoted = f" (line {line} is: {excerpt})" if excerpt else ""
    return ApplyError(f"{what}: {reason}{quoted}", operation, line, excerpt)
