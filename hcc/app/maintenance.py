"""Consul's maintenance mode of the proxy: begun by a drain, ended by the next start (`--drain-maintenance`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from hcc.consul.client import ConsulClient
from hcc.consul.errors import ConsulError
from hcc.log import LastingProblem

# A drain waits no longer for Consul to take it.
BEGIN_TIMEOUT_S = 2.0
RETRY_S = 5.0

_log = logging.getLogger(__name__)


class Maintenance:
    """Tells Consul, in threads of its own: nobody waits for long for an agent that does not answer."""

    def __init__(self, make_client: Callable[[], ConsulClient], proxy_id: str) -> None:
        self._make_client = make_client
        self._proxy_id = proxy_id
        self._problem = LastingProblem(_log)

    def begin(self) -> None:
        """Tell Consul; who drains goes on once it was told, or does not answer in time."""
        telling = _in_background(lambda: self._tell(on=True))
        telling.join(BEGIN_TIMEOUT_S)
        if telling.is_alive():
            self._problem.say("maintenance mode: Consul does not answer: callers may come until the listener closes")

    def end(self, stop: threading.Event) -> None:
        """Tell Consul until it takes it, or `stop` is set: a proxy that stays in maintenance gets no traffic."""

        def until_it_is_over() -> None:
            while not self._tell(on=False) and not stop.wait(RETRY_S):
                pass

        _in_background(until_it_is_over)

    def _tell(self, *, on: bool) -> bool:
        client = self._make_client()
        try:
            client.maintenance(self._proxy_id, on=on, reason="drained by hcc")
        except ConsulError as exc:
            self._problem.say(f"maintenance mode: {exc}")
            return False
        finally:
            client.close()
        return True


def _in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, name="maintenance", daemon=True)
    thread.start()
    return thread
