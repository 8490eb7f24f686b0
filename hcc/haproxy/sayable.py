"""What can be written of a configuration of which some part cannot: that stays as it was, or is left out. Pure.

Values from outside are checked where they are read, and where it is decided what to do with them. What slips through
both must not keep all the rest from being applied: other upstreams, endpoints, the next certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.desired import Problem, Result
from hcc.haproxy.model import Desired, DesiredError
from hcc.haproxy.render import render
from hcc.haproxy.words import WordError


def sayable(wanted: Result, capabilities: Capabilities, before: Desired | None) -> Result:
    """The same without parts that cannot be written; each is a problem more.

    This writes each part by itself, and so is for when something went wrong.

    Args:
        wanted: what HAProxy should do.
        capabilities: of the HAProxy that it is written for.
        before: what was applied last, of which a part stays in the place of one that cannot be written.

    Raises:
        WordError: what all parts share cannot be written.
    """
    whole = wanted.desired
    common = whole.without(whole.binds())
    _write(common, capabilities)
    found, problems = common, list(wanted.problems)
    for subject, take in _parts(whole):
        why = _complaint(take(common, whole), capabilities)
        if not why:
            found = take(found, whole)
            continue
        former = take(found, _unknown(before, whole)) if before is not None else found
        stays = former != found and not _complaint(former, capabilities)
        found = former if stays else found
        said = "stays as it was" if stays else "is left out"
        problems.append(Problem(subject, f"cannot be written for HAProxy, {said}: {why}"))
    return Result(found, tuple(problems))


_Take = Callable[[Desired, Desired], Desired]


def _parts(whole: Desired) -> list[tuple[str, _Take]]:
    """Each part that may be left out: for people, and how to take it over into one configuration from another."""
    found: list[tuple[str, _Take]] = [("public listener", _with_public)] if whole.public else []
    found += [(f"upstream {one.label}", _upstream_taker(one.name)) for one in whole.upstreams]
    found += [(f"exposed paths of port {one.bind.port}", _exposed_taker(one.name)) for one in whole.exposed]
    return found


def _with_public(into: Desired, whole: Desired) -> Desired:
    return replace(
        into, public=whole.public, app=whole.app, authorisation=whole.authorisation, ticket_keys=whole.ticket_keys
    )


def _upstream_taker(name: str) -> _Take:
    def take(into: Desired, whole: Desired) -> Desired:
        listeners = tuple(one for one in whole.upstreams if one.name == name)
        used = {backend for one in listeners for backend in one.backends}
        backends = tuple(one for one in whole.backends if one.name in used)
        return replace(into, upstreams=(*into.upstreams, *listeners), backends=(*into.backends, *backends))

    return take


def _exposed_taker(name: str) -> _Take:
    def take(into: Desired, whole: Desired) -> Desired:
        return replace(into, exposed=(*into.exposed, *(one for one in whole.exposed if one.name == name)))

    return take


def _unknown(before: Desired, now: Desired) -> Desired:
    """The same, as if it were not known who serves: those who do stay. TLS sessions begin with the keys of now."""
    backends = tuple(replace(one, servers=(), known=False) for one in before.backends)
    return replace(before, backends=backends, ticket_keys=now.ticket_keys if before.public else None)


def _complaint(desired: Desired, capabilities: Capabilities) -> str:
    """Why it cannot be written; empty when it can."""
    try:
        _write(desired, capabilities)
    except (WordError, DesiredError) as exc:
        return str(exc)
    return ""


def _write(desired: Desired, capabilities: Capabilities) -> None:
    """Raises what `render` raises, and what its servers' lines do."""
    _ = render(desired, capabilities).config
