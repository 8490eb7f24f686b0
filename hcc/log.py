"""Where log lines go and what they look like: one line an event, to standard error; bugs that nobody caught, too."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from types import TracebackType

# What waits for a reader that does not read.
QUEUE_BYTES = 1024 * 1024
# Of this many at most, lines of several programs on one pipe do not come to stand in each other: pipe(7), PIPE_BUF.
WRITE_BYTES = select.PIPE_BUF
# At the end of the process, for one that may never read.
FLUSH_S = 1.0
_OURS = "hcc."

_log = logging.getLogger("hcc")


def one_line(text: str) -> str:
    """The text with all that could forge a line, or move a terminal's cursor, as Python escapes it."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


class _Formatter(logging.Formatter):
    """What both formats share: the area, and exceptions on the line itself.

    An exception that reaches a line is told by its class, its text and the place; the whole way there is for whoever
    looks for a bug, at level debug.
    """

    def area(self, record: logging.LogRecord) -> str:
        return record.name.removeprefix(_OURS)

    def text(self, record: logging.LogRecord) -> str:
        """The message on one line, as much of it is what others say: names in Consul, answers, files."""
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            message = f"{message}: {type(error).__name__}: {error}{_place(error)}"
        return one_line(message)

    def trace(self, record: logging.LogRecord) -> str:
        """The traceback, empty when there is none or it is not wanted."""
        if not record.exc_info or not logging.getLogger().isEnabledFor(logging.DEBUG):
            return ""
        return "".join(traceback.format_exception(*record.exc_info)).rstrip()


class TextFormatter(_Formatter):
    """For people: `2026-11-22T10:00:00.123Z INFO area: text`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_moment(record)} {record.levelname} {self.area(record)}: {self.text(record)}"
        trace = self.trace(record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(_Formatter):
    """For log collectors: an object with `time`, `level`, `area`, `message` and, at debug, `trace`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "area": self.area(record),
            "message": self.text(record),
        }
        trace = self.trace(record)
        return json.dumps(fields | {"trace": trace} if trace else fields, ensure_ascii=False)


class Writer(logging.Handler):
    """Lines that a thread of its own writes, so that nobody who logs waits for whoever reads.

    A reader that hangs, or a terminal after Ctrl-S, does not close its end: a write there takes for ever. QUEUE_BYTES
    may wait; what comes then is dropped until all that wait are written, and a line in its place says how many.

    Args:
        fd: where to; it may be non-blocking, as others share it.
        encoding: of the lines.

    Attributes:
        dropped: how many lines were, or could not be written.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._encoding = encoding
        self._lines = deque[bytes]()
        self._waiting_bytes = 0
        # Since the last line that waits.
        self._left_out = 0
        self._writing = False
        self._changed = threading.Condition(threading.Lock())
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have it written, or drop it; at once in any case."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)
            return
        with self._changed:
            if self._left_out or self._waiting_bytes + len(line) > QUEUE_BYTES:
                self._left_out += 1
                self.dropped += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when all is written, or after FLUSH_S; logging calls it at the end of the process."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._lines or self._left_out or self._writing), FLUSH_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._left_out)
                self._writing = True
                lines = self._next()
            self._write(lines)

    def _next(self) -> bytes:
        """The next lines to write, or how many are missing here."""
        if not self._lines:
            text, left_out = "%d lines were dropped here: nobody read the log", self._left_out
            self._left_out = 0
            return self._line(logging.LogRecord(_log.name, logging.WARNING, "", 0, text, (left_out,), None))
        lines = self._lines.popleft()
        while self._lines and len(lines) + len(self._lines[0]) <= WRITE_BYTES:
            lines += self._lines.popleft()
        self._waiting_bytes -= len(lines)
        return lines

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._fd, lines) :]
            except BlockingIOError:
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll()
            except OSError:
                # Nobody is there to read, or the disk is full.
                with self._changed:
                    self.dropped += lines.count(b"\n")
                return

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")


class LastingProblem:
    """Something that goes wrong again and again: said once, until it is over or becomes another problem."""

    def __init__(self, log: logging.Logger, level: int = logging.ERROR) -> None:
        self._log = log
        self._level = level
        self._said = ""

    def say(self, problem: str) -> None:
        """Log it, unless that was the last thing said."""
        if problem != self._said:
            self._log.log(self._level, "%s", problem)
        self._said = problem

    def over(self) -> None:
        """Whatever it was, it would be said again."""
        self._said = ""


def set_up_logging(level: str, form: str = "auto") -> Writer:
    """Send every line of `level` (debug to critical) and above to standard error; gives who writes them.

    What ends a thread, or the process, unexpectedly is such a line from then on, unless somebody else tells of it:
    Python's own way is a traceback of many lines, which whoever reads JSON cannot take.

    Args:
        level: the least one that is told.
        form: `text`, `json`, or `auto`: text on a terminal and JSON elsewhere.
    """
    # Not through the stream: at its end Python would wait for a write to it that hangs, and abort.
    handler = Writer(sys.stderr.fileno(), sys.stderr.encoding)
    is_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    logging.getLogger().handlers[:] = [handler]
    set_level(level)
    # Third parties' own chatter is of no use to an operator below warnings.
    for name in ("urllib3", "requests", "pykka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _tell_of_thread
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell_of_end
    return handler


def set_level(level: str) -> None:
    """Change the level of a running process; every thread follows at once."""
    logging.getLogger().setLevel(level.upper())


def _tell_of_thread(end: threading.ExceptHookArgs) -> None:
    # As Python's own, which takes SystemExit for an orderly end.
    if end.exc_type is not SystemExit:
        name = end.thread.name if end.thread is not None else "without a name"
        _log.error("the thread %s failed", name, exc_info=end.exc_value)


def _tell_of_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        _log.critical("hcc failed", exc_info=error)
    else:
        sys.__excepthook__(kind, error, trace)


def _moment(record: logging.LogRecord) -> str:
    return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
