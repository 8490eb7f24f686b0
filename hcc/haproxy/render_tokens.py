"""Words by which HAProxy has the token of a request checked, where its rules leave the request to one.

Pure. It asks on the way from the public listener to the application, as `token_question` says, and lets nothing on
without an answer that names the very demand that the rules named. Not by `send-spoe-group`: see `render_spoe`.
"""

from __future__ import annotations

from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.names import TOKEN_AGENT
from hcc.haproxy.render_lines import backend_mode, question_limit
from hcc.haproxy.render_rules import SAID
from hcc.mesh.intentions import Policy, demands_of
from hcc.mesh.token_demands import TOKEN_PREFIX
from hcc.mesh.token_providers import PlaceKind, TokenPlace

# The one server of TOKEN_AGENT.
TOKEN_SERVER = "t1"  # noqa: S105 (a name)
# The SPOE engine.
TOKENS = "hcc-tokens"
# The agent's answer: the demand that is fulfilled, and the headers to be taken away, a comma on either side of each.
GIVEN, STRIP = "txn.hcc.token", "txn.hcc.strip"
_BY_TOKEN = f"{{ var({SAID}) -m beg {TOKEN_PREFIX} }}"


def token_places(policy: Policy) -> tuple[TokenPlace, ...]:
    """Where tokens are that a demand of this policy may be fulfilled with, each once, sorted."""
    names = {one.name for demand in demands_of(policy).values() for any_of in demand.all_of for one in any_of}
    providers = policy.providers.entries if policy.providers else ()
    checks = (one.checks for one in providers if one.name in names and one.checks)
    found = {(place.kind.value, _asked_name(place)): place for each in checks for place in each.places}
    return tuple(TokenPlace(place.kind, name) for (_, name), place in sorted(found.items()))


def token_question(places: tuple[TokenPlace, ...], about: str) -> Iterator[str]:
    """The message of the SPOE engine; `about` are the arguments that say whose request it is."""
    yield "spoe-message token"
    yield f"  args demand=var({SAID}) {about}"
    # A line each: one of HAProxy's has at most 64 words.
    yield from (f"  args {_arguments(place)}" for place in places)
    yield f"  event on-backend-http-request if {_BY_TOKEN}"


def token_lines(authorisation: Authorisation) -> Iterator[str]:
    """The lines of the application's backend, the first of all on requests."""
    rule = "  http-request"
    yield f"{rule} deny deny_status 403 if {_BY_TOKEN} !{{ var({GIVEN}),strcmp({SAID}) eq 0 }}"
    for place in authorisation.token_places:
        if place.kind is PlaceKind.HEADER:
            yield f"{rule} del-header {words.header(place.name)} if {{ var({STRIP}) -m sub ,{place.name}, }}"


def token_backend(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """Who answers. Not checked: where nobody answers, the question itself finds out."""
    yield ""
    yield f"backend {TOKEN_AGENT}"
    yield from backend_mode(Mode.TCP)
    yield "  timeout connect 1000ms"
    yield "  timeout server 5m"
    yield f"  server {TOKEN_SERVER} unix@{words.path(authorisation.token_socket)}{question_limit(capabilities)}"


def _asked_name(place: TokenPlace) -> str:
    # Of a query and of cookies all is told.
    return place.name if place.kind is PlaceKind.HEADER else ""


def _arguments(place: TokenPlace) -> str:
    if place.kind is PlaceKind.QUERY:
        return f"{place.argument}=query"
    # Not `req.cook`: where a cookie ends, readers do not agree.
    name = words.header(place.line)
    return f"{place.argument}=req.fhdr({name}) {place.counted}=req.fhdr_cnt({name})"
