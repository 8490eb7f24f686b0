"""What a log line looks like."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hcc.log import QUEUE_BYTES, LastingProblem, Writer, set_level, set_up_logging


class Stderr(io.TextIOWrapper):
    """A standard error that can be read, as a file or as if it were a terminal."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__(tempfile.TemporaryFile(), encoding="utf-8")  # noqa: SIM115 - closed with it
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def text(self) -> str:
        logging.getLogger().handlers[0].flush()
        return os.pread(self.fileno(), 1 << 20, 0).decode()


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (threading.excepthook, sys.excepthook)
    yield
    threading.excepthook, sys.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)


@contextmanager
def stderr(*, is_terminal: bool = False) -> Iterator[Stderr]:
    with Stderr(is_terminal=is_terminal) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield stream


def logged(form: str, level: str = "info", *, is_terminal: bool = False) -> str:
    with stderr(is_terminal=is_terminal) as stream:
        set_up_logging(level, form)
        log = logging.getLogger("hcc.spoe.pool")
        log.debug("not of interest")
        try:
            raise KeyError("x\ny")
        except KeyError:
            log.exception("denied: %s", "a\nb")
        return stream.text()


def test_text_is_one_line_an_event_and_no_input_makes_two() -> None:
    text = logged("text")

    (line,) = text.splitlines()
    moment, level, area, said = line.split(" ", 3)
    assert moment.endswith("Z")
    assert (level, area) == ("ERROR", "spoe.pool:")
    assert said.startswith("denied: a\\nb: KeyError: 'x\\ny' (test_log.py:")


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_others_say_moves_the_cursor_of_who_reads_it(form: str) -> None:
    with stderr() as stream:
        set_up_logging("info", form)
        logging.getLogger("hcc.app").warning("service %s", "w\x1b[31m\x9b2J\u202eb\u00fc")
        said = stream.text().rstrip("\n")
    assert said.isprintable()
    assert "w\\x1b[31m\\x9b2J\\u202eb\u00fc" in (json.loads(said)["message"] if form == "json" else said)


def test_json_has_the_same_in_fields() -> None:
    (line,) = logged("json").splitlines()

    fields = json.loads(line)
    assert fields.keys() == {"time", "level", "area", "message"}
    assert (fields["level"], fields["area"]) == ("error", "spoe.pool")
    assert fields["message"].startswith("denied: a\\nb: KeyError")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_for_debug_alone(form: str) -> None:
    assert "Traceback" not in logged(form)
    assert "Traceback" in logged(form, "debug")


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    assert logged("auto", is_terminal=True).startswith("20")
    assert logged("auto").startswith("{")


def test_the_level_can_be_changed_while_running() -> None:
    with stderr() as stream:
        set_up_logging("warning", "text")
        log = logging.getLogger("hcc.x")
        log.info("one")
        set_level("debug")
        log.debug("two")
        assert [line.rpartition(" ")[2] for line in stream.text().splitlines()] == ["two"]


def test_a_lasting_problem_is_said_once_until_it_is_over_or_another(caplog: pytest.LogCaptureFixture) -> None:
    problem = LastingProblem(logging.getLogger("hcc.x"))
    for text in ("full", "full", "gone", "gone", "full"):
        problem.say(text)
    problem.over()
    problem.say("full")
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("ERROR", text) for text in ("full", "gone", "full", "full")
    ]


def test_a_lasting_problem_may_be_less_than_an_error(caplog: pytest.LogCaptureFixture) -> None:
    LastingProblem(logging.getLogger("hcc.x"), logging.WARNING).say("full")
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [("WARNING", "full")]


def told_by(failing: str, level: str = "info") -> list[dict[str, str]]:
    """What a process logs that sets up its log, runs this, and ends with 1."""
    head = f"import sys, threading\nfrom hcc.log import set_up_logging\nset_up_logging({level!r}, 'json')\n"
    done = subprocess.run(
        [sys.executable, "-c", head + failing], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    return [json.loads(line) for line in done.stderr.splitlines()]


IN_A_THREAD = """
def fail(error):
    raise error
for error in (SystemExit(3), KeyError("x\\ny")):
    thread = threading.Thread(target=fail, args=(error,), name="a\\nb")
    thread.start()
    thread.join()
sys.exit(1)
"""


def test_what_ends_a_thread_is_one_line_of_the_log() -> None:
    (line,) = told_by(IN_A_THREAD)
    assert line.keys() == {"time", "level", "area", "message"}
    assert (line["level"], line["area"]) == ("error", "hcc")
    assert line["message"] == "the thread a\\nb failed: KeyError: 'x\\ny' (<string>:6)"


def test_the_traceback_of_a_thread_is_for_debug_alone() -> None:
    (line,) = told_by(IN_A_THREAD, "debug")
    assert line["trace"].startswith("Traceback")


def test_what_ends_the_process_is_one_line_of_the_log() -> None:
    (line,) = told_by("raise ValueError('x')")
    assert (line["level"], line["message"]) == ("critical", "hcc failed: ValueError: x (<string>:4)")


def test_whoever_tells_of_failures_already_goes_on_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: object) -> None:
        """Somewhere."""

    monkeypatch.setattr(threading, "excepthook", told)
    monkeypatch.setattr(sys, "excepthook", told)
    set_up_logging("info")
    assert threading.excepthook is told
    assert sys.excepthook is told


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, and that is full: its two ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        while select.select([], [writer], [], 0)[1]:
            try:
                os.write(writer, b"x" * size)
            except BlockingIOError:
                break
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def said_to(writer: Writer, *texts: str) -> None:
    for text in texts:
        writer.handle(logging.LogRecord("hcc.x", logging.INFO, "", 0, text, (), None))


def read_on(reader: int, last: str) -> list[str]:
    """What comes out of a pipe that was full, line by line, up to that one."""
    said = b""
    while not said.endswith(f"{last}\n".encode()):
        said += os.read(reader, 1 << 20)
    return said.decode().lstrip("x").splitlines()


@pytest.mark.parametrize("blocking", [True, False])
def test_nobody_waits_for_a_reader_that_hangs_and_no_line_is_lost(pipe: tuple[int, int], *, blocking: bool) -> None:
    reader, fd = pipe
    os.set_blocking(fd, blocking)
    writer = Writer(fd, "utf-8")
    lines = [f"line {number}" for number in range(1000)]
    said_to(writer, *lines)
    assert read_on(reader, lines[-1]) == lines
    writer.flush()
    assert not writer.dropped


def test_what_does_not_fit_is_dropped_and_told_in_its_place(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    writer = Writer(fd, "utf-8")
    lines = [f"{number:1023}" for number in range(QUEUE_BYTES // 1024)]
    # The writer has one of them in its hands, or none yet.
    said_to(writer, *lines, *("too many" * 1024,) * 3)
    assert writer.dropped == 3
    told = read_on(reader, "3 lines were dropped here: nobody read the log")
    said_to(writer, "after")
    assert read_on(reader, "after") == ["after"]
    assert told[:-1] == lines


def test_lines_that_cannot_be_written_are_counted_and_the_next_are_tried() -> None:
    reader, fd = os.pipe()
    os.close(reader)
    writer = Writer(fd, "utf-8")
    for text in ("one", "two"):
        said_to(writer, text)
        writer.flush()
    assert writer.dropped == 2
    os.close(fd)


HANGING = """
import logging
log = logging.getLogger("hcc.x")
set_up_logging("info", "text")
for number in range(30000):
    log.info("%0200d", number)
raise ValueError("x")
"""


def test_a_reader_that_hangs_keeps_no_process_from_ending() -> None:
    program = f"from hcc.log import set_up_logging\n{HANGING}"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    start_s = time.monotonic()
    with process:
        assert process.wait(30) == 1
    assert time.monotonic() - start_s < 20


def test_the_last_words_come_out_after_all_others() -> None:
    lines = told_by(HANGING.replace('"text"', '"json"').replace("30000", "3000"))
    assert [line["message"] for line in lines[:-1]] == [f"{number:0200}" for number in range(3000)]
    assert lines[-1]["message"].startswith("hcc failed: ValueError: x")
