"""What one HTTP answer of Consul says: its JSON with the headers that matter, or the error it stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hcc.consul.errors import (
    ConsulAnswerError,
    ConsulCutOffError,
    ConsulNotFoundError,
    ConsulPermissionError,
    ConsulStatusError,
)

_FORBIDDEN = 403
_NOT_FOUND = 404
_TOO_MANY_REQUESTS = 429
_MAX_ERROR_CHARACTERS = 200
# So the agent says to whoever comes when its connections from one address are all in use.
_CROWDED = "too many concurrent connections"
# Who Consul 1.11 and newer take the owner of any token for while no server can be asked; older ones do not say.
_UNKNOWN_TOKEN = "AccessorID 'primary-dc-down'"  # noqa: S105 - of nobody


@dataclass(frozen=True, slots=True)
class Result:
    """One good answer (status 200).

    Args:
        data: parsed JSON, or what else it was to be parsed to; None for an empty body.
        index: for the next blocking query; None when Consul gave none.
        hash: for the next hash-based blocking query; empty when Consul gave none.
        filtered_by_acls: entries are missing because the token may not see them.
        default_policy: `allow`, `deny`, or empty before Consul 1.9.
        cut_off_s: of an answer from the agent's cache: whole seconds since the agent lost its servers, or, of a leaf,
            since it came; None of any other.
    """

    data: Any
    index: int | None = None
    hash: str = ""
    filtered_by_acls: bool = False
    default_policy: str = ""
    cut_off_s: int | None = None


def status_error(code: int, request: str, text: str, headers: Mapping[str, str]) -> ConsulStatusError:
    """The error that an HTTP status other than 200 means.

    Args:
        code: the status.
        request: method and path, for the message.
        text: the answer's body; Consul writes its errors in plain text.
        headers: of the answer.
    """
    said = " ".join(text.split())[:_MAX_ERROR_CHARACTERS]
    if code == _FORBIDDEN and _UNKNOWN_TOKEN in said:
        why = "the agent has lost Consul's servers and cannot look the token up"
        return ConsulCutOffError(f"{request}: expected an answer, found 403 {said!r}; {why}", code)
    if code == _FORBIDDEN:
        return ConsulPermissionError(
            f"{request}: expected a token that may do this, found 403 {said!r}; {_remedy(request, said)}",
            code,
        )
    message = f"{request}: expected status 200, found {code} {said!r}"
    if code == _TOO_MANY_REQUESTS and _CROWDED in said:
        message += "; raise limits.http_max_conns_per_client of the agent, which all sidecars of this machine share"
    if code == _NOT_FOUND:
        if request.startswith(_OWN_REGISTRATION):
            message += "; if the proxy is registered under another ID now, hcc has to be started again"
        return ConsulNotFoundError(message, code)
    return ConsulStatusError(message, code, _number(headers.get("Retry-After")))


# Which proxy to serve is found out once, at the start.
_OWN_REGISTRATION = "GET /v1/agent/service/"


def _remedy(request: str, said: str) -> str:
    if "ACL not found" in said:
        return "Consul does not know this token"
    path = request.partition(" ")[2]
    for prefix, right in _RIGHTS:
        if path.startswith(prefix):
            return f"give it {right} (a service identity has what a sidecar needs)"
    return "give it the right that Consul names"


_RIGHTS = (
    ("/v1/agent/connect/ca/leaf/", "service:write on that service"),
    ("/v1/agent/connect/authorize", "service:write and intentions:read on the target service"),
    ("/v1/agent/service/register", "service:write on that service"),
    ("/v1/agent/service/deregister/", "service:write on that service"),
    ("/v1/agent/service/", "service:read on that service"),
    ("/v1/agent/self", "agent:read"),
    ("/v1/connect/intentions", "intentions:read (implied by service:read) on that service"),
    ("/v1/config/jwt-provider", "mesh:read, or service:write on some service"),
    ("/v1/discovery-chain/", "service:read on that service"),
    ("/v1/health/", "service:read and node:read"),
    ("/v1/query/", "query:read, and service:read on what it finds"),
)


def result_of(
    path: str, headers: Mapping[str, str], body: bytes, parse: Callable[[bytes], object] = json.loads
) -> Result:
    """The result that an answer with status 200 holds.

    Args:
        path: of the request, for the error.
        headers: looked up in the spelling used here; give a mapping that ignores case.
        body: JSON, or nothing.
        parse: makes `Result.data` of the body; raises ValueError when that is not JSON.

    Raises:
        ConsulAnswerError: the body is not JSON.
    """
    data: Any = None
    if body.strip():
        try:
            data = parse(body)
        except (ValueError, RecursionError) as exc:
            raise ConsulAnswerError(path, "JSON", f"{body[:40]!r} ({exc})") from exc
    return Result(
        data=data,
        index=_number(index) if (index := headers.get("X-Consul-Index")) is not None else None,
        hash=headers.get("X-Consul-ContentHash", ""),
        filtered_by_acls=headers.get("X-Consul-Results-Filtered-By-ACLs", "") == "true",
        default_policy=headers.get("X-Consul-Default-ACL-Policy", ""),
        cut_off_s=_number(headers.get("Age")) if headers.get("X-Cache") == "HIT" else None,
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,20}", text) else 0
