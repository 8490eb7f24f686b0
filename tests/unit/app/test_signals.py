"""In a process of its own: only the main thread takes signals, and pytest's is not ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

AT_ANY_STEP = """
import os, signal
from hcc.app.signals import Signals
signals = Signals()
signals.install()
# Between two steps of an event's own, as when the main thread begins to wait for it.
with signals.any._cond, signals.stop._cond:
    os.kill(os.getpid(), signal.SIGTERM)
assert signals.any.wait(10) and signals.stop.is_set() and not signals.hurry.is_set()
signals.any.clear()
os.kill(os.getpid(), signal.SIGHUP)
assert signals.any.wait(10) and signals.reload.is_set() and not signals.hurry.is_set()
os.kill(os.getpid(), signal.SIGINT)
assert signals.hurry.wait(10)
print("heard")
"""

IN_ANOTHER_THREAD = """
import os, signal, threading
from hcc.app.signals import Signals
signals = Signals()
signals.install()
def run():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
thread = threading.Thread(target=run)
thread.start()
assert signals.any.wait(10) and signals.stop.is_set()
print("heard")
"""

NOT_INHERITED = """
import signal, subprocess, sys
from hcc.app.signals import Signals
Signals().install()
child = subprocess.Popen([sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
child.terminate()
assert child.wait(10) == -signal.SIGTERM
print("heard")
"""


@pytest.mark.parametrize("program", [AT_ANY_STEP, IN_ANOTHER_THREAD, NOT_INHERITED])
def test_a_signal_is_heard_whenever_it_comes(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "heard\n", done.stderr
