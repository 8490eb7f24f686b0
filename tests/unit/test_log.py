"""What a log line looks like."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from hcc.log import LastingProblem, set_level, set_up_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (threading.excepthook, sys.excepthook)
    yield
    threading.excepthook, sys.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(monkeypatch: pytest.MonkeyPatch, form: str, level: str = "info", stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging(level, form)
    log = logging.getLogger("hcc.spoe.pool")
    log.debug("not of interest")
    try:
        raise KeyError("x\ny")
    except KeyError:
        log.exception("denied: %s", "a\nb")
    return stream.getvalue()


def test_text_is_one_line_an_event_and_no_input_makes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged(monkeypatch, "text")

    (line,) = text.splitlines()
    moment, level, area, said = line.split(" ", 3)
    assert moment.endswith("Z")
    assert (level, area) == ("ERROR", "spoe.pool:")
    assert said.startswith("denied: a\\nb: KeyError: 'x\\ny' (test_log.py:")


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_others_say_moves_the_cursor_of_who_reads_it(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging("info", form)
    logging.getLogger("hcc.app").warning("service %s", "w\x1b[31m\x9b2J\u202eb\u00fc")

    said = stream.getvalue().rstrip("\n")
    assert said.isprintable()
    assert "w\\x1b[31m\\x9b2J\\u202eb\u00fc" in (json.loads(said)["message"] if form == "json" else said)


def test_json_has_the_same_in_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = logged(monkeypatch, "json").splitlines()

    fields = json.loads(line)
    assert fields.keys() == {"time", "level", "area", "message"}
    assert (fields["level"], fields["area"]) == ("error", "spoe.pool")
    assert fields["message"].startswith("denied: a\\nb: KeyError")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_for_debug_alone(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    assert "Traceback" not in logged(monkeypatch, form)
    assert "Traceback" in logged(monkeypatch, form, "debug")


def test_auto_is_text_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(monkeypatch, "auto", stream=Terminal()).startswith("20")
    assert logged(monkeypatch, "auto").startswith("{")


def test_the_level_can_be_changed_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging("warning", "text")
    log = logging.getLogger("hcc.x")
    log.info("one")
    set_level("debug")
    log.debug("two")
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == ["two"]


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
