"""Consul's maintenance mode of the proxy: begun by a drain (`--drain-maintenance`), ended by the next start."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from hcc.consul.client import ConsulClient
from hcc.consul.decode import maintenance_reason
from hcc.consul.errors import ConsulError
from hcc.log import LastingProblem

# A drain waits no longer for Consul to take it.
BEGIN_TIMEOUT_S = 2.0
RETRY_S = 5.0
# By which Consul says whose it is.
REASON = "drained by hcc"

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
        """End what a drain began, whatever the settings were then: a proxy that stays in maintenance gets no traffic.

        Until Consul takes it, or `stop` is set. A maintenance of somebody else's stays, and is told in the log.
        """

        def until_it_is_over() -> None:
            while not self._ended() and not stop.wait(RETRY_S):
                pass

        _in_background(until_it_is_over)

    def _ended(self) -> bool:
        client = self._make_client()
        try:
            reason = maintenance_reason(client.critical_checks().data, self._proxy_id)
        except ConsulError:
            # Why Consul does not answer is told by those who watch it.
            return False
        finally:
            client.close()
        if reason is None:
            return True
        if reason != REASON:
            _log.warning("Consul has this proxy in maintenance mode, so that nobody calls it: %s", reason)
            return True
        if ended := self._tell(on=False):
            _log.info("ended the maintenance mode that a drain began")
        return ended

    def _tell(self, *, on: bool) -> bool:
        client = self._make_client()
        try:
            client.maintenance(self._proxy_id, on=on, reason=REASON)
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
