"""How HAProxy asks the SPOE workers about callers: the engines' file, the backend of workers, the variables. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.names import TOKEN_AGENT
from hcc.haproxy.render_lines import backend_mode, question_limit
from hcc.haproxy.render_rules import refused
from hcc.haproxy.render_tokens import TOKENS, token_question
from hcc.mesh.rules import ALLOW, NAME_PREFIX

# Kind of a file beside haproxy.cfg.
SPOE = "spoe"
# The SPOE engine's name, and the prefix of its variables: the agent's `allowed` becomes txn.hcc.allowed.
ENGINE = "hcc"
# Asks another worker what the first could not answer: it was killed, hangs, or makes place for its successor.
AGAIN = "hcc-again"
# Asks once more where that one's connection broke: it was to a worker that has died since, or dies now.
LAST = "hcc-last"
ASKING = (ENGINE, AGAIN, LAST)
ALLOWED = f"txn.{ENGINE}.allowed"
CALLER = f"txn.{ENGINE}.caller"
RULES = f"txn.{ENGINE}.rules"
ERROR = f"txn.{ENGINE}.error"
ERROR_AGAIN = f"txn.{ENGINE}.error_again"
_ERRORS = {ENGINE: ERROR, AGAIN: ERROR_AGAIN}
# The code of a connection that broke (256 and SPOE.txt's status 1); who gave up waiting has waited enough.
BROKEN = 257
# Ours: the digest of the caller's certificate, what the agent or the map of identities says of it (`NAME|URI|SOURCE`),
# the first two parts of that, and the verdict, found by the URI: a connection can be older than the trust domain.
DIGEST = "sess.hcc_digest"
IDENTITY = "sess.hcc_identity"
NAME = "sess.hcc_name"
URI = "sess.hcc_uri"
VERDICT = "txn.hcc_verdict"
# In http every request is asked about: a kept-alive connection must not outlive a change of intentions.
EVENTS = {Mode.TCP: "on-frontend-tcp-request", Mode.HTTP: "on-frontend-http-request"}
# Arguments that tell whose request it is.
_WHOSE = f"caller=var({IDENTITY}) method=method path=path"
CERTIFICATE_DIGEST = "ssl_c_der,sha2(256),hex"


def spoe_file(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """The file that says when which engine asks whom what. Source: HAProxy's doc/SPOE.txt section 2."""
    rules = has_rules(authorisation, capabilities)
    yield from spoe_agent(ENGINE, authorisation, "5m", "caller refused" if rules else "caller", authorisation.backend)
    yield from _question(authorisation, capabilities, _unless_allowed(authorisation, capabilities))
    if rules:
        # The agent counts and tells it; nothing that it answers changes anything. Not by `send-spoe-group`: 2.2.9 sends
        # that again and again, until the client gives up.
        yield "spoe-message refused"
        yield f"  args {_WHOSE}"
        yield f"  event on-backend-http-request if {refused(authorisation, VERDICT)}"
    # Idle connections end soon, so that they ask on new ones: an old one may be of the worker that is gone. Not sooner,
    # as until 3.0 this bounds the wait for an answer, too.
    for engine, when in ((AGAIN, f"var({ERROR}) -m found"), (LAST, f"var({ERROR_AGAIN}) -m int {BROKEN}")):
        yield from spoe_agent(engine, authorisation, "100ms", "caller", authorisation.backend)
        yield from _question(authorisation, capabilities, f" if {{ {when} }}")
    if asks_for_tokens(authorisation, capabilities):
        yield from spoe_agent(TOKENS, authorisation, "5m", "token", TOKEN_AGENT)
        yield from token_question(authorisation.token_places, _WHOSE)


def workers(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """The backend of the SPOE workers."""
    yield ""
    yield f"backend {words.name(authorisation.backend)}"
    yield from backend_mode(Mode.TCP)
    # By turns, so that who asks again asks another; since 3.3 the default is chance.
    yield "  balance roundrobin"
    yield "  timeout connect 1000ms"
    yield "  timeout server 5m"
    yield "  option spop-check"
    # A worker stands in for another, so none is down unless all are: once one is back, it decides.
    pool = " pool-low-conn 64" if capabilities.has(Feature.POOL_LOW_CONN) else ""
    most = question_limit(capabilities)
    for number, path in enumerate(authorisation.sockets, start=1):
        yield f"  server {agent_name(number)} unix@{words.path(path)} check inter 5s downinter 200ms rise 1{pool}{most}"


def agent_name(number: int) -> str:
    """The server line of SPOE worker `number`, counted from 1."""
    return f"w{number}"


def has_rules(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    """Whether requests may be decided by layer-7 rules."""
    able = capabilities.has(Feature.SHA2) and capabilities.has(Feature.LOOKAHEAD)
    return able and authorisation.mode is Mode.HTTP


def refuses_by_rules(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    """Whether what such rules say is enforced."""
    return authorisation.enforced and has_rules(authorisation, capabilities)


def asks_for_tokens(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    """Whether such rules may leave a request to its token."""
    return bool(authorisation.token_places) and has_rules(authorisation, capabilities)


def identity_of_certificate(asked: Authorisation) -> str:
    """The expression that looks the caller up by its certificate."""
    return f"{CERTIFICATE_DIGEST},map({words.path(asked.identities)})"


def spoe_agent(engine: str, authorisation: Authorisation, idle: str, messages: str, backend: str) -> Iterator[str]:
    """The beginning of an engine: whom it asks, and how long it waits; connections without a question live `idle`."""
    processing = words.milliseconds(authorisation.processing_timeout_ms)
    yield f"[{engine}]"
    yield "spoe-agent agent"
    yield f"  messages {messages}"
    yield f"  option var-prefix {ENGINE}"
    if engine in _ERRORS:
        yield f"  option set-on-error {_ERRORS[engine].rpartition('.')[2]}"
    yield f"  timeout hello {processing}"
    yield f"  timeout processing {processing}"
    yield f"  timeout idle {idle}"
    yield f"  use-backend {words.name(backend)}"


def _question(authorisation: Authorisation, capabilities: Capabilities, when: str) -> Iterator[str]:
    yield "spoe-message caller"
    yield f"  args der=ssl_c_der{' src=src src_port=src_port' if capabilities.has(Feature.SHA2) else ''}"
    yield f"  event {EVENTS[authorisation.mode]}{when}"


def _unless_allowed(authorisation: Authorisation, capabilities: Capabilities) -> str:
    """Known callers are not asked about, but for those denied: the agent counts and tells them."""
    if not capabilities.has(Feature.SHA2):
        return ""
    if authorisation.mode is Mode.HTTP:
        return f" if ! {{ var({VERDICT}) -m beg {ALLOW} {NAME_PREFIX} }}"
    verdict = f"{identity_of_certificate(authorisation)},field(2,|),map({words.path(authorisation.verdicts)})"
    return f" if ! {{ {verdict} -m str {ALLOW} }}"
