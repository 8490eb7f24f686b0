"""Writing intentions through whichever API an agent has: one address a pair (since Consul 1.9), or IDs (before)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

Exchange = Callable[[str, str, object], tuple[int, Any]]
"""Method, path and JSON to status and parsed JSON (or text)."""


class IntentionError(AssertionError):
    """The agent refused to write an intention."""


def put_intention(exchange: Exchange, source: str, destination: str, body: dict[str, Any]) -> None:
    """Write one, such as `{"Action": "deny"}`, in place of another of the pair."""
    if not _takes_ids(exchange):
        _good(*exchange("PUT", _exact(source, destination), body))
        return
    pair = {"SourceName": source, "DestinationName": destination, "SourceType": "consul"}
    known = _id(exchange, source, destination)
    where = ("PUT", f"/v1/connect/intentions/{known}") if known else ("POST", "/v1/connect/intentions")
    _good(*exchange(*where, pair | body))


def delete_intention(exchange: Exchange, source: str, destination: str) -> None:
    """Delete the one of a pair, if there is one."""
    where = _exact(source, destination)
    if _takes_ids(exchange):
        known = _id(exchange, source, destination)
        if not known:
            return
        where = f"/v1/connect/intentions/{known}"
    status, said = exchange("DELETE", where, None)
    if status != 404:
        _good(status, said)


def _exact(source: str, destination: str) -> str:
    return f"/v1/connect/intentions/exact?{urlencode({'source': source, 'destination': destination})}"


def _takes_ids(exchange: Exchange) -> bool:
    # Intentions became config entries when they lost their IDs. Asking for "exact" tells less: where it is a bad ID,
    # the answer depends on ACLs.
    return "invalid config entry kind" in str(exchange("GET", "/v1/config/service-intentions", None)[1])


def _id(exchange: Exchange, source: str, destination: str) -> str:
    status, listed = exchange("GET", "/v1/connect/intentions", None)
    _good(status, listed)
    pairs = {(item["SourceName"], item["DestinationName"]): item["ID"] for item in listed}
    return str(pairs.get((source, destination), ""))


def _good(status: int, said: object) -> None:
    if status != 200:
        raise IntentionError(f"expected the agent to take an intention, found {status} {said}")
