"""Where log lines go and what they look like: one line an event, to standard error."""

from __future__ import annotations

import logging
import sys


class _LineFormatter(logging.Formatter):
    """`2026-11-22T10:00:00.123Z INFO area: text`; a traceback only when the level is debug."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(area)s: %(message)s")
        import time  # noqa: PLC0415 (only the converter function is wanted, at start)

        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The line; newlines inside a message are escaped, so that no input can forge a second line."""
        record.area = record.name.removeprefix("hcc.")
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the library's name)
        """The first line, without the traceback."""
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")


def set_up_logging(level: str) -> None:
    """Send every line of `level` (debug to critical) and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Third parties' own chatter is of no use to an operator below warnings.
    for name in ("urllib3", "requests", "pykka"):
        logging.getLogger(name).setLevel(logging.WARNING)
