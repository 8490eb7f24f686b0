"""What can be written of a configuration of which some part cannot: that stays as it was, or is left out. Pure.

Values from outside are checked where they are read, and where it is decided what to do with them. What slips through
both must not keep all the rest from being applied: other upstreams, endpoints, the next certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.desired import Result
from hcc.haproxy.desired_terms import Problem
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
    parts, problems = _parts(whole), list(wanted.problems)
    complaints = [_complaint(take(common, whole), capabilities) for _, take in parts]
    # What is new goes first: none of it may be kept back by what was, which may have its address.
    sources = [common if why else whole for why in complaints]
    found = _put_together(common, parts, sources)
    former = _unknown(before, whole) if before is not None else common
    for at, why in enumerate(complaints):
        if not why:
            continue
        tried = [*sources[:at], former, *sources[at + 1 :]]
        kept = _put_together(common, parts, tried)
        stays = kept != found and not _complaint(kept, capabilities)
        if stays:
            sources, found = tried, kept
        said = "stays as it was" if stays else "is left out"
        problems.append(Problem(parts[at][0], f"cannot be written for HAProxy, {said}: {why}"))
    return Result(found, tuple(problems))


_Take = Callable[[Desired, Desired], Desired]
_Part = tuple[str, _Take]


def _put_together(common: Desired, parts: Sequence[_Part], sources: Sequence[Desired]) -> Desired:
    """All parts in their order, each as it is in its source; in `common` it is not there."""
    found = common
    for (_, take), source in zip(parts, sources, strict=True):
        found = take(found, source)
    return found


def _parts(whole: Desired) -> list[_Part]:
    """Each part that may be left out: for people, and how to take it over into one configuration from another."""
    found: list[_Part] = [("public listener", _with_public)] if whole.public else []
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
