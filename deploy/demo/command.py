"""The command: flags, signals, exit codes, and the clean-up that always happens."""

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo.children import Children
from demo.stage import set_stage
from demo.story import Story
from demo.talk import StepError, StoppedError, Talk

_HINT = "To try it yourself while it runs: make demo ARGS=--keep"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Exit code of the whole demo: 0 it worked, 1 a step failed, 128 + N ended by signal N."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    talk = Talk()
    folder = Path(tempfile.mkdtemp(prefix="hcc-demo-"))
    children = Children(folder)
    code = 1
    try:
        _on_signals(_stop)
        code = _told(talk, folder, children, keep=options.keep)
    except StoppedError as stopped:
        code = stopped.code
        talk.plain("\nStopped.")
    finally:
        _on_signals(signal.SIG_IGN)  # it ends soon; half a clean-up helps nobody
        _clean_up(talk, folder, children, failed=code == 1)
    if code == 0:
        talk.plain(f"Done after {time.monotonic() - started:.1f} s. {'' if options.keep else _HINT}".rstrip())
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/demo/run",
        description="Runs the original README's example for real: Consul, two sidecars, allow and deny.",
        epilog="Programs: CONSUL_BIN and HAPROXY_BIN, else as deploy/bootstrap --print-env says. No root.",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    return parser


def _told(talk: Talk, folder: Path, children: Children, *, keep: bool) -> int:
    try:
        story = Story(talk, set_stage(talk, folder, children))
        story.tell()
        if keep:
            _stay(story)
    except StepError as error:
        talk.failure(error)
        return 1
    return 0


def _stay(story: Story) -> None:
    try:
        story.stay()
    except StoppedError as stopped:
        if stopped.code != 128 + signal.SIGINT:  # Ctrl-C is how it is meant to end
            raise


def _clean_up(talk: Talk, folder: Path, children: Children, *, failed: bool) -> None:
    problems = children.stop()
    shutil.rmtree(folder / "state", ignore_errors=True)  # holds private keys if a sidecar had to be killed
    keep_logs = failed and any(folder.iterdir())
    if not keep_logs:
        shutil.rmtree(folder)
    talk.plain("\nCleaned up: all processes have ended, their files and sockets are gone.")
    for problem in problems:
        talk.plain(f"   warning: {problem}")
    if keep_logs:
        talk.plain(f"The logs are kept in {folder} (yours to delete).")


def _on_signals(handler: "signal.Handlers | signal._HANDLER") -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise StoppedError(128 + number)
