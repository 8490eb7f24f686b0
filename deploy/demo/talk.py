"""What the demo prints: plain text on stdout, short, and progress while something takes long."""

import os
import sys
import textwrap
import time
from pathlib import Path

_WIDTH = 96
_MARGIN = 10
_TAIL_LINES = 15
_PROGRESS_S = 2.0
_REDRAW_S = 0.1


class StepError(Exception):
    """A step did not work; the message says what was expected and found, `log` where to look."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class StoppedError(Exception):
    """Somebody wants the demo to end now: a signal, or nobody reads its output."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Talk:
    """Stdout; remembers which step is being told."""

    def __init__(self) -> None:
        self.step_title = "Getting ready"
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin the next numbered step."""
        self._steps += 1
        self.step_title = f"Step {self._steps} ({title})"
        _write(f"\n{self._steps}. {title}\n")

    def say(self, text: str) -> None:
        """One paragraph, wrapped."""
        _write(textwrap.fill(text, _WIDTH, initial_indent="   ", subsequent_indent="   ") + "\n")

    def block(self, text: str, mark: str = "   | ") -> None:
        """Lines shown as they are: a file, an answer, a table."""
        _write("".join(f"{mark}{line}".rstrip() + "\n" for line in text.rstrip().splitlines()))

    def command(self, *words: str) -> None:
        """A command as a user would type it; a flag and its value stay on one line."""
        _write("   $ " + " \\\n       ".join(_command_lines(words)) + "\n")

    def plain(self, text: str) -> None:
        """Lines outside of the steps."""
        _write(text + "\n")

    def failure(self, error: StepError) -> None:
        """Which step failed, why, and the end of the log that tells more."""
        _write(f"\nFAILED: {self.step_title}: {error}\n")
        if error.log is not None and error.log.exists():
            _write(f"The end of {error.log}:\n")
            tail = error.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            self.block("\n".join(tail) or "(empty)")


class Progress:
    """A line saying what is being waited for, once that takes long; redrawn on a terminal, else repeated."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._shown = time.monotonic()
        self._drawn = False

    def show(self, missing: str) -> None:
        now = time.monotonic()
        terminal = sys.stdout.isatty()
        if now - self._shown < (_REDRAW_S if terminal else _PROGRESS_S):
            return
        self._shown = now
        line = f"   ... {self._what}: {now - self._started:.1f} s, {missing}"[:_WIDTH]
        _write(f"\r{line:<{_WIDTH}}" if terminal else f"{line}\n")
        self._drawn = terminal

    def clear(self) -> None:
        if self._drawn:
            _write(f"\r{'':<{_WIDTH}}\r")


def _command_lines(words: tuple[str, ...]) -> list[str]:
    groups: list[str] = []
    for word in words:
        if groups and not word.startswith("-"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) < _WIDTH - _MARGIN:
            lines[-1] += f" {group}"
        else:
            lines.append(group)
    return lines


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has read enough. What clean-up says goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StoppedError(141) from None
