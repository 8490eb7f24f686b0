"""Which proxy to run, asked of Consul once at the start; an agent that does not answer yet is waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from hcc.consul.client import ConsulClient
from hcc.consul.errors import (
    ConsulCutOffError,
    ConsulError,
    ConsulPermissionError,
    ConsulStatusError,
    InterruptedPollError,
    NoProxyError,
)
from hcc.consul.fields import fields
from hcc.consul.selection import proxy_by_id, proxy_for_service, proxy_for_tag
from hcc.errors import HccError
from hcc.settings import Selection

FIRST_RETRY_S = 0.25
MAX_RETRY_S = 10.0
# An agent that has taken a question and says nothing is waited for no longer once somebody stops us.
STOP_WAIT_S = 1.0
POLL_S = 0.1
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The proxy to run, and the service instance it stands for (empty for a proxy that has only upstreams).

    Args:
        address: where the proxy is registered to be reached, empty for the node's address.
    """

    proxy_id: str
    service_id: str = ""
    service: str = ""
    address: str = ""


def choose_proxy(
    selection: Selection,
    client: Callable[[], ConsulClient],
    stop: threading.Event,
    instead: Callable[[], Chosen | None] = lambda: None,
) -> Chosen | None:
    """The chosen proxy; None when `stop` is set and the agent does not answer. It is asked once at least.

    Once `stop` is set it has a second more for that. After each time that it did not answer, `instead` may choose. To
    list no service at all is no answer: that is what an agent does that cannot look up the token, as after a boot
    without its servers (1.8.7, 1.20.1).

    Raises:
        SelectionError: of the services that the agent lists none or several fit; the text names the candidates.
        ConsulError: the agent refuses to answer, for a reason that waiting does not mend.
    """
    wait_s, said = FIRST_RETRY_S, ""
    while True:
        services: object = None
        try:
            services = _services(client, stop)
            return chosen(services, selection)
        except (ConsulError, NoProxyError) as exc:
            if not _may_pass(exc, services):
                raise
            if str(exc) != said and not isinstance(exc, InterruptedPollError):
                hint = "; no service is registered there yet, or the token may not see it" if services == {} else ""
                _log.warning("looking for %s, asking until there is an answer: %s%s", selection.phrase(), exc, hint)
            said = str(exc)
            if (earlier := instead()) is not None:
                _log.warning("taking %s, as in an earlier run", earlier.proxy_id)
                return earlier
        if stop.wait(wait_s):
            return None
        wait_s = min(MAX_RETRY_S, wait_s * 2)


def chosen(services: object, selection: Selection) -> Chosen:
    """The choice among the agent's services (the answer of `agent/services`).

    Raises:
        SelectionError: none or several fit.
    """
    if selection.proxy_id:
        proxy_id = proxy_by_id(services, selection.proxy_id)
    elif selection.sidecar_for:
        proxy_id = proxy_for_service(services, selection.sidecar_for)
    else:
        proxy_id = proxy_for_tag(services, selection.sidecar_for_tag)
    registration = fields(services, "").child(proxy_id)
    proxy = registration.child("Proxy")
    return Chosen(
        proxy_id,
        proxy.text("DestinationServiceID"),
        proxy.text("DestinationServiceName"),
        registration.text("Address"),
    )


def _services(make_client: Callable[[], ConsulClient], stop: threading.Event) -> object:
    client = make_client()
    answered = threading.Event()
    breaker = threading.Thread(target=_break_off, args=(client, stop, answered), name="selection", daemon=True)
    breaker.start()
    try:
        return client.services().data
    finally:
        answered.set()
        breaker.join()
        client.close()


def _break_off(client: ConsulClient, stop: threading.Event, answered: threading.Event) -> None:
    """An agent may hold a question for many seconds; who stops us is not to wait for that."""
    while not stop.is_set():
        if answered.wait(POLL_S):
            return
    if not answered.wait(STOP_WAIT_S):
        client.interrupt()


def _may_pass(error: HccError, services: object) -> bool:
    """Whether waiting may help: no answer, too many requests, trouble of the server; not a refusal."""
    if isinstance(error, NoProxyError):
        return services == {}
    if isinstance(error, ConsulPermissionError):
        return False
    if isinstance(error, ConsulStatusError):
        is_cut_off = isinstance(error, ConsulCutOffError)
        return is_cut_off or error.code == _TOO_MANY_REQUESTS or error.code >= _SERVER_ERROR
    return True
