"""What the installer says while it works: one line a step, on stderr, since stdout is for results."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_PROGRESS_S = 30.0
_TICK_S = 0.2
_TAIL_LINES = 12


class InstallError(Exception):
    """Something is missing or failed; the message says what to do about it."""


def say(step: str, what: str) -> None:
    """Write one step's line."""
    print(f"bootstrap: {step}: {what}", file=sys.stderr, flush=True)


def output_of(*command: str | Path) -> str:
    """What a short command printed (stdout and stderr); empty when it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def run_long(
    step: str,
    command: list[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command that takes a while, with the elapsed time shown and its output kept in `log`.

    Raises:
        InstallError: it cannot be started or failed; the message ends with the last lines of its output.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env
            )
        except OSError as exc:
            raise InstallError(f"{step}: cannot start {command[0]}: {exc.strerror}") from exc
        try:
            _show_progress(process, step, started)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise InstallError(f"{step}: {command[0]} failed ({process.returncode}), see {log}:\n{tail}")


def _show_progress(process: "subprocess.Popen[bytes]", step: str, started: float) -> None:
    terminal = sys.stderr.isatty()
    every_s = 1.0 if terminal else _PROGRESS_S
    shown = started
    while process.poll() is None:
        time.sleep(_TICK_S)
        now = time.monotonic()
        if now - shown < every_s:
            continue
        shown = now
        if terminal:
            print(f"\rbootstrap: {step}: {now - started:.0f} s", end="", file=sys.stderr, flush=True)
        else:
            say(step, f"still at it after {now - started:.0f} s")
    if terminal and shown > started:
        print(f"\r{' ' * 60}\r", end="", file=sys.stderr, flush=True)
