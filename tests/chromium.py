"""A real headless Chromium, told what to do over a pipe (Chrome DevTools Protocol), gone when its block ends."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests import binaries

DEADLINE_S = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Chromium:
    """One browser with one page. `log` has what the page's console said, security violations among it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._number = 0
        self._session = ""
        self._received = b""
        self._loaded = False

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="hcc-chromium-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser reads descriptor 3 and writes 4.
        words = [binaries.chromium(), *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *words],
            pass_fds=(theirs_in, theirs_out),
            # It leaves a directory of its own in the one for temporary files.
            env={**os.environ, "TMPDIR": self._profile.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            pages = self.ask("Target.getTargets")["targetInfos"]
            target = next(page["targetId"] for page in pages if page["type"] == "page")
            self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def open(self, url: str) -> None:
        """Load a page; returns when it is there."""
        self._loaded = False
        self.ask("Page.navigate", url=url)
        deadline = time.monotonic() + DEADLINE_S
        while not self._loaded:
            self._take(deadline)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def colours(self, scheme: str) -> None:
        """Prefer `dark` or `light`."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, code: int) -> None:
        """Press and release one key."""
        text = {"text": "\r"} if key == "Enter" else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """A PNG of what is seen now."""
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """The answer to one command."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            heard = self._take(deadline)
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result

    def _take(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium said nothing within {DEADLINE_S} s"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium ended"
            self._received += chunk
        line, _, self._received = self._received.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        if heard.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif heard.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.log.append(json.dumps(heard["params"]))
        return heard

    def _end(self) -> None:
        # All of its processes are in the session that it leads.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait(DEADLINE_S)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()
