"""TokenAgent: HAProxy's questions about tokens (JWT) are answered by the newest policy.

The socket belongs to `TokenServer`, which outlives this actor; while no thread serves it, such requests are denied.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from hcc.actors.actor import Actor
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import CONSUL_WATCHER, SPOE_POOL, PolicyChanged, Publish, TokenRefused
from hcc.tokens.server import TokenServer

STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class _Ended:
    """From the serving thread: it ended and was not told to."""

    reason: str


class TokenAgentError(RuntimeError):
    """Nobody answers HAProxy any more; the supervisor starts it again."""


class TokenAgent(Actor):
    """Owns the policy by which tokens are checked, and the thread that does it."""

    def init(self, *, server: TokenServer) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self) -> None:
        if self.context.generation > 1:
            self.tell(CONSUL_WATCHER, Publish())
        self._thread = threading.Thread(target=self._serve, name="tokens", daemon=True)
        self._thread.start()

    def handle(self, message: object) -> None:
        match message:
            case PolicyChanged(policy):
                self._server.set_policy(policy)
            case TokenRefused():
                self.tell(SPOE_POOL, message)
            case _Ended(reason):
                raise TokenAgentError(reason)

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """End the thread."""
        self._stopping.set()
        self._server.wake()
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)

    def _serve(self) -> None:
        address = self.address

        def refused(source: str, reason: str) -> None:
            address.tell(TokenRefused(source, reason))

        try:
            self._server.serve(self._stopping, refused)
        except Exception as exc:  # noqa: BLE001 (told to whoever can start another)
            address.tell(_Ended(type(exc).__name__))
