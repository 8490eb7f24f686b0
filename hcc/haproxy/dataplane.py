"""Control of HAProxy through the Data Plane API: it checks, writes and reloads the text, and nothing else.

What can be done at run time goes over HAProxy's own sockets, as in `direct`; then the text is posted, and our
reload command answers without a reload. Why, and its traps: reference/dataplane-api.md.
"""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from pathlib import Path

from hcc.errors import HccError
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import ApplyError
from hcc.haproxy.dataplane_client import READY_TIMEOUT_S, AnswerLostError, DataplaneClient, DataplaneError
from hcc.haproxy.dataplane_process import is_starting
from hcc.haproxy.dataplane_text import bare, differences, version_of, versioned, with_user
from hcc.haproxy.description import structure_of
from hcc.haproxy.direct import check
from hcc.haproxy.execution import SocketControl
from hcc.haproxy.files import read_text, remove, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.plan import Install, Reload, WriteConfig
from hcc.haproxy.reload_helper import Purpose, settle, want
from hcc.haproxy.render import Rendered
from hcc.haproxy.runtime import RuntimeSocket
from hcc.haproxy.side_files import remove_old_side_files, write_side_files
from hcc.mesh.secret import Secret

# For a moment the old worker may still accept on the stats socket beside the new one.
CONFIRM_TIMEOUT_S = 5.0
BACK_TIMEOUT_S = 2.0
# So long our reload command may go on after the Data Plane API that began it.
LATE_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class DataplaneControl(SocketControl):
    """Implements `hcc.haproxy.control.Control`; somebody else keeps the Data Plane API running."""

    def __init__(self, binary: str, layout: Layout, capabilities: Capabilities, password: Secret) -> None:
        super().__init__(layout, capabilities, DataplaneStore(binary, layout, password))


class DataplaneStore:
    """Implements `hcc.haproxy.execution.Store`."""

    def __init__(self, binary: str, layout: Layout, password: Secret) -> None:
        self._binary = binary
        self._layout = layout
        self._password = password
        starting = partial(is_starting, layout, READY_TIMEOUT_S)
        self._client = DataplaneClient(layout.dataplane_socket, password, starting)
        self._runtime = RuntimeSocket(layout.stats_socket, master=layout.master_socket)
        self._reported: frozenset[str] = frozenset()

    def config(self, rendered: Rendered) -> str | None:
        found = read_text(self._layout.config)
        if found is None or differences(self._text(rendered), found):
            return found
        return rendered.config

    def install(self, operation: Install) -> None:
        if self._apply(operation, Purpose.KEEP):
            # What the Data Plane API let HAProxy check was not what is there now.
            check(self._binary, self._layout, operation.rendered.config, operation.describe())

    def write(self, operation: WriteConfig) -> None:
        self._apply(operation, Purpose.KEEP)

    def reload(self, operation: Reload) -> None:
        self._apply(operation, Purpose.RELOAD, replaces=self._runtime.info().pid)
        wanted, deadline = operation.rendered.structure, time.monotonic() + CONFIRM_TIMEOUT_S
        while (running := self._runtime.info().structure) != wanted:
            if time.monotonic() > deadline:
                found = running or "something else"
                why = f"the Data Plane API says it reloaded, but {found} runs"
                raise ApplyError(why, operation.describe())
            time.sleep(0.01)

    def _text(self, rendered: Rendered) -> str:
        return with_user(rendered.config, self._password.reveal())

    def _apply(self, operation: Install | WriteConfig | Reload, purpose: Purpose, *, replaces: int = 0) -> bool:
        """Whether the text had to be repaired.

        Args:
            operation: with the text.
            purpose: what it is posted for.
            replaces: process id of the worker from which another one is to take over, 0 for none.
        """
        rendered = operation.rendered
        write_side_files(rendered)
        last_good = read_text(self._layout.config) or ""
        try:
            repaired = self._send(self._text(rendered), purpose, replaces=replaces)
        except (HccError, OSError) as exc:
            self._back_to(last_good)
            # Asked by ourselves, HAProxy names lines of our text, not of the Data Plane API's.
            check(self._binary, self._layout, rendered.config, operation.describe())
            raise ApplyError(str(exc), operation.describe()) from exc
        remove_old_side_files(rendered)
        return repaired

    def _send(self, text: str, purpose: Purpose, *, replaces: int = 0) -> bool:
        layout = self._layout
        remove(layout.repaired)
        want(layout, purpose, text)
        before = read_text(layout.config)
        if before is None:
            # Somebody removed it: without a file it takes no text, and an empty one will do.
            write_private(layout.config, "")
        try:
            self._post(text, version_of(before or ""), replaces)
            if differences(text, read_text(layout.config) or ""):
                # Damaged after our reload command saw it, or that never ran.
                settle(layout)
            return self._report()
        finally:
            # It keeps each text that was refused, with the password, and one that is refused is tried again and again.
            refused = Path(layout.dataplane_transactions, "failed").glob("*")
            remove(layout.wanted, *map(str, refused))

    def _post(self, text: str, version: int, replaces: int) -> None:
        """Post it. It failed only if no other worker has taken over, whatever the Data Plane API says."""
        try:
            self._client.post(text, version)
        except DataplaneError as exc:
            late_s = LATE_TIMEOUT_S if isinstance(exc, AnswerLostError) else 0.0
            if not replaces or not self._is_replaced(replaces, structure_of(text), late_s):
                raise
            _log.warning("HAProxy was reloaded, although: %s", exc)

    def _is_replaced(self, worker: int, structure: str, timeout_s: float) -> bool:
        """Whether, within the time, another worker than that one runs the structure."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(HccError):
                info = self._runtime.info()
                if info.structure == structure and info.pid != worker:
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)

    def _report(self) -> bool:
        """Whether something was repaired; said once for each line."""
        lines = frozenset((read_text(self._layout.repaired) or "").splitlines())
        for line in sorted(lines - self._reported):
            _log.warning("the Data Plane API changed the configuration, it was put right: %s", line)
        self._reported |= lines
        remove(self._layout.repaired)
        return bool(lines)

    def _back_to(self, last_good: str) -> None:
        """The last good text on disk, and in the Data Plane API's mind if it listens."""
        found = read_text(self._layout.config) or ""
        if not last_good or not differences(last_good, found):
            return
        try:
            # One that hung before is not waited for again: the text can be written without it.
            self._client.generation(BACK_TIMEOUT_S)
            self._send(bare(last_good), Purpose.KEEP)
        except HccError as exc:
            _log.warning("the last good configuration is written without the Data Plane API: %s", exc)
            write_private(self._layout.config, versioned(last_good, version_of(found)))
