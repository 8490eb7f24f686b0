from __future__ import annotations

import subprocess
import sys

# Threads that each free and allocate, then what malloc_info says of arenas; in a process of its own, as it is for good.
COUNTED = """
import ctypes, os, tempfile, threading
from hcc.app.allocator import keep_few_arenas
keep_few_arenas()
barrier = threading.Barrier(16)
def work():
    kept = [bytearray(2000) for _ in range(500)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


def test_many_threads_share_two_arenas() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) <= 2
