"""What the intentions say of a caller, or of one of its requests, and why: for `hcc explain`. Pure.

It is decided as workers and HAProxy decide, with the policy of the running sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hcc.actors.callers import shown
from hcc.errors import SettingError
from hcc.mesh.caller import named_caller
from hcc.mesh.identity import IdentityError, ServiceIdentity, parse_source
from hcc.mesh.intentions import Policy, Verdict, decide, verdict_of
from hcc.mesh.request import Request
from hcc.mesh.rules import ALLOW, DENY
from hcc.settings import Enforcement
from hcc.spoe.caller import LONG_NAME, MAX_SOURCE_BYTES

BY_REQUEST = "by request"
"""The verdict on a connection whose requests are decided one by one."""
BY_TOKEN = "by token"  # noqa: S105 (a verdict)
"""The verdict on a request that a token decides, which the question has none of."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Question:
    """Who wants what.

    Args:
        source: as `hcc.mesh.identity.parse_source` takes it, or as a caller is shown.
        request: None for a connection alone.
    """

    source: str
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer; its fields are those of `hcc explain --json`.

    Args:
        verdict: `allow`, `deny`, `by request` where the question names no request and permissions decide, or
            `by token` where a request's token does.
        reason: one phrase.
        source: SPIFFE URI of the caller.
        intention: the one that governs, in one phrase; empty if none does.
        permission: position of the one that decided among the intention's, None if none did.
        permissions: all of the intention's, a phrase each.
        default: `allow`, `deny` or `unknown`, which denies.
        version: of the policy.
        intentions: `enforce`; with `audit` and `off` everybody is let in, whatever the verdict.
    """

    verdict: str
    reason: str
    source: str
    destination: str
    intention: str
    permission: int | None
    permissions: tuple[str, ...]
    default: str
    version: int
    intentions: str


def parse_question(given: Mapping[str, Sequence[str]]) -> Question:
    """The question in the words of a query: `source`; for a request `path`, `method` and any number of `header`.

    Raises:
        SettingError: the source is missing or names no service, or a word cannot stand in a request.
    """
    source = _one(given, "source")
    if not source:
        raise SettingError("expected a source: a service's name or a SPIFFE URI")
    # In which mesh it is does not matter yet; only a name that is nearly too long may be refused there after all.
    _named(source, trust_domain="DOMAIN", datacenter="DC")
    if not given.keys() & {"path", "method", "header"}:
        return Question(source)
    method = _one(given, "method") or "GET"
    if not _TOKEN.fullmatch(method):
        raise SettingError(f"expected a method such as GET, found {method!r}")
    path = _one(given, "path") or "/"
    headers = tuple(_header(text) for text in given.get("header", ()))
    if path.startswith("/") and not any(name.lower() == "host" for name, _ in headers):
        # Every request has one; the question leaves open which.
        headers = (("host", ""), *headers)
    return Question(source, Request(method, path, headers))


def explained(
    policy: Policy, datacenter: str, question: Question, intentions: Enforcement, known: Iterable[str] = ()
) -> Explanation:
    """The answer to a question under a policy.

    A caller that is not named by its URI is one of this datacenter, unless `known` callers, by their names in HAProxy,
    have another one that is shown by that name.

    Raises:
        SettingError: the source is no service.
    """
    caller = _caller(policy, datacenter, question.source, known)
    verdict = _verdict(policy, caller, question.request)
    governing = verdict.intention
    return Explanation(
        verdict=_word(verdict),
        reason=verdict.reason,
        source=caller.uri(),
        destination=policy.destination,
        intention=governing.label() if governing else "",
        permission=verdict.permission,
        permissions=tuple(one.label() for one in governing.permissions) if governing else (),
        default={None: "unknown", True: ALLOW, False: DENY}[policy.default_allow],
        version=policy.version,
        intentions=intentions.value,
    )


def _caller(policy: Policy, datacenter: str, source: str, known: Iterable[str]) -> ServiceIdentity:
    caller = _named(source, policy.trust_domain, datacenter)
    named = (named_caller(name, policy.trust_domain) for name in known if shown(name, datacenter) == source)
    found = {one for one in named if one is not None}
    # The name of a service may have dots, too.
    return min(found) if found and caller not in found else caller


def _named(source: str, trust_domain: str, datacenter: str) -> ServiceIdentity:
    try:
        return parse_source(source, trust_domain, datacenter)
    except IdentityError as exc:
        raise SettingError(str(exc)) from exc


def _verdict(policy: Policy, caller: ServiceIdentity, request: Request | None) -> Verdict:
    if len(caller.source()) > MAX_SOURCE_BYTES:
        return Verdict(False, LONG_NAME)
    return verdict_of(policy, caller) if request is None else decide(policy, caller, request)


def _word(verdict: Verdict) -> str:
    if verdict.by_token:
        return BY_TOKEN
    return BY_REQUEST if verdict.rules else ALLOW if verdict.allowed else DENY


def _one(given: Mapping[str, Sequence[str]], name: str) -> str:
    values = given.get(name, ("",))
    if len(values) > 1:
        raise SettingError(f"expected one {name}, found {len(values)}")
    return values[0]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or any(mark in value for mark in "\r\n\0"):
        raise SettingError(f"expected a header such as x-role:admin, found {text!r}")
    return name, value.strip(" \t")
