"""Control of HAProxy by its own means: file, `haproxy -c`, master socket, runtime socket."""

from __future__ import annotations

import subprocess

from hcc.children import child_environment
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import ApplyError, ControlError
from hcc.haproxy.execution import SocketControl
from hcc.haproxy.files import read_text, remove, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.plan import Install, Reload, WriteConfig
from hcc.haproxy.render import Rendered
from hcc.haproxy.replies import ReplyError
from hcc.haproxy.side_files import remove_old_side_files, write_side_files
from hcc.haproxy.takeover import TakeOver, refusal

CHECK_TIMEOUT_S = 60.0


class DirectControl(SocketControl):
    """Implements `hcc.haproxy.control.Control`."""

    def __init__(self, binary: str, layout: Layout, capabilities: Capabilities) -> None:
        super().__init__(layout, capabilities, DirectStore(binary, layout))


class DirectStore:
    """Implements `hcc.haproxy.execution.Store`."""

    def __init__(self, binary: str, layout: Layout) -> None:
        self._binary = binary
        self._layout = layout
        self._take_over = TakeOver(layout)

    def config(self, rendered: Rendered) -> str | None:  # noqa: ARG002 - the file is what was written
        return read_text(self._layout.config)

    def install(self, operation: Install) -> None:
        self._check(operation.rendered, operation.describe())
        self._write(operation.rendered)

    def write(self, operation: WriteConfig) -> None:
        self._write(operation.rendered)

    def reload(self, operation: Reload) -> None:
        rendered = operation.rendered
        self._check(rendered, operation.describe())
        last_good = read_text(self._layout.config)
        write_private(self._layout.config, rendered.config)
        try:
            self._take_over.run(rendered.structure, rendered.config, operation.describe())
        except (ControlError, ReplyError):
            if last_good is not None:
                write_private(self._layout.config, last_good)
            raise
        remove_old_side_files(rendered)

    def _write(self, rendered: Rendered) -> None:
        write_side_files(rendered)
        write_private(self._layout.config, rendered.config)
        remove_old_side_files(rendered)

    def _check(self, rendered: Rendered, operation: str) -> None:
        """Let HAProxy judge the text. Raises ApplyError with its line and message."""
        write_side_files(rendered)
        check(self._binary, self._layout, rendered.config, operation)


def check(binary: str, layout: Layout, config: str, operation: str) -> None:
    """Nothing, when HAProxy takes that text.

    Raises:
        ApplyError: it does not, with its line and message; or it cannot be asked.
    """
    write_private(layout.candidate, config)
    try:
        code, said = _judgement(binary, layout.candidate)
    finally:
        remove(layout.candidate)
    if code:
        raise refusal("HAProxy refuses the configuration", said, config, operation)


def _judgement(binary: str, path: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [binary, "-c", "-f", path],
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ApplyError(f"cannot let HAProxy check the configuration: {exc}") from exc
    return done.returncode, done.stderr + done.stdout
