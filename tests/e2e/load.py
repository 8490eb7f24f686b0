"""A bounded loop of requests from several threads that counts what failed and why."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPException
from types import TracebackType
from typing import Self

from tests.e2e.waiting import wait_until

LONGEST_S = 100.0
MOST_REQUESTS = 50_000
Client = Callable[[], AbstractContextManager[Callable[[], None]]]


class Load:
    """Requests in the background while the `with` block runs; a request fails by raising.

    Args:
        make: one client per thread: the context's value is called for every request.
        threads: how many clients at once.
        pause_s: rest between two requests of one client.
        longest_s: when it ends at the latest.
    """

    def __init__(self, make: Client, threads: int = 2, pause_s: float = 0.005, longest_s: float = LONGEST_S) -> None:
        self._make = make
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._end = time.monotonic() + longest_s
        self._threads = [threading.Thread(target=self._run, name=f"load-{n}") for n in range(threads)]
        self.ok = 0
        self.failed: Counter[str] = Counter()
        self.last_failure_s = 0.0
        """When a request failed last, by the monotonic clock; 0 when none did."""
        self.last_failed_began_s = 0.0
        """When the last one that failed began."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            self.go_on(10)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop and wait for the requests in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            if thread.is_alive():
                with self._lock:
                    self.failed["a request without an answer after 20 s"] += 1
                    self.last_failure_s = time.monotonic()

    def go_on(self, requests: int, deadline_s: float = 20.0) -> None:
        """Return when that many more requests were answered."""
        goal = self.ok + requests
        wait_until(f"{requests} more answers ({self.report()} before)", lambda: self.ok >= goal, deadline_s)

    def assert_clean(self) -> None:
        """No request failed, and there were some."""
        assert self.ok, "no request was made"
        assert not self.failed, self.report()

    def report(self) -> str:
        return f"{self.ok} answered, {sum(self.failed.values())} failed {dict(self.failed.most_common(5))}"

    def _run(self) -> None:
        with self._make() as request:
            for _ in range(MOST_REQUESTS):
                if self._stop.is_set() or time.monotonic() > self._end:
                    return
                self._one(request)
                time.sleep(self._pause_s)

    def _one(self, request: Callable[[], None]) -> None:
        began_s = time.monotonic()
        try:
            request()
        except (OSError, HTTPException, AssertionError) as exc:
            with self._lock:
                self.failed[f"{type(exc).__name__}: {exc}"[:200]] += 1
                self.last_failure_s = time.monotonic()
                self.last_failed_began_s = max(began_s, self.last_failed_began_s)
        else:
            with self._lock:
                self.ok += 1
