"""The reload command of the Data Plane API: `python -m hcc.haproxy.reload_helper STATE_DIR`.

It ends with 0 when HAProxy runs what the file says, else with 1 and the reason on standard error. Where the
Data Plane API damaged the text, the file is put right first, so that HAProxy never runs the damaged one.
Loads nothing outside the standard library and `hcc` itself.
"""

from __future__ import annotations

import sys
from enum import Enum

from hcc.errors import HccError
from hcc.haproxy.dataplane_text import differences, version_of, versioned
from hcc.haproxy.description import structure_of
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket
from hcc.haproxy.takeover import TakeOver


class Purpose(Enum):
    """What a text is posted for."""

    KEEP = "keep"  # nothing runs, or what runs is what the text says: no reload
    RELOAD = "reload"  # a new worker must take over, even with the same structure


def want(layout: Layout, purpose: Purpose, text: str) -> None:
    """Leave word for the helper: what is about to be posted, and what for."""
    write_private(layout.wanted, f"{purpose.value}\n{text}")


def settle(layout: Layout) -> str:
    """Put the file right and make HAProxy run it; what was done, in words.

    Raises:
        HccError: HAProxy does not run it.
    """
    purpose, text = _wanted(layout)
    structure = structure_of(text)
    try:
        running = RuntimeSocket(layout.stats_socket, master=layout.master_socket).info().structure
    except NotListeningError:
        if purpose is Purpose.RELOAD:
            raise
        return "nothing runs, so nothing was reloaded"
    if purpose is Purpose.KEEP and running == structure:
        return f"{structure} runs already"
    # What HAProxy complains about are lines of the file, which has a head.
    TakeOver(layout).run(structure, read_text(layout.config) or text, f"reload with configuration {structure}")
    return f"reloaded with {structure}"


def _wanted(layout: Layout) -> tuple[Purpose, str]:
    """What was left by `want`, with the file put right; else what the file says."""
    config, wanted = read_text(layout.config) or "", read_text(layout.wanted)
    if wanted is None:
        return Purpose.KEEP, config
    purpose, _, text = wanted.partition("\n")
    lost = differences(text, config)
    if lost:
        write_private(layout.config, versioned(text, version_of(config)))
        write_private(layout.repaired, "\n".join(lost))
    return Purpose(purpose), text


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) != 1:
        sys.stderr.write("expected one argument, the state directory\n")
        return 1
    try:
        sys.stdout.write(f"{settle(Layout(arguments[0]))}\n")
    except (HccError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
