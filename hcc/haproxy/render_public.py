"""The public listener with its authorisation, and the way on to the application. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import AppBackend, Authorisation, Mode, PublicListener
from hcc.haproxy.names import PUBLIC
from hcc.haproxy.render_lines import (
    backend_mode,
    bind_address,
    client_timeout,
    connection_limit,
    frontend_mode,
    kept_alive,
    no_h2,
    timeout_lines,
    watched,
)
from hcc.haproxy.render_rules import as_sent, refused, rule_lines
from hcc.haproxy.render_spoe import (
    ALLOWED,
    ASKING,
    CALLER,
    CERTIFICATE_DIGEST,
    DIGEST,
    IDENTITY,
    NAME,
    RULES,
    SPOE,
    URI,
    VERDICT,
    asks_for_tokens,
    has_rules,
    identity_of_certificate,
    refuses_by_rules,
)
from hcc.haproxy.render_tls import CERTIFICATE_LIST, bind_tls
from hcc.haproxy.render_tokens import TOKENS, token_lines
from hcc.haproxy.render_upstream import H2
from hcc.mesh.caller import CLIENT_CERT_HEADER, in_a_list
from hcc.mesh.rules import ALLOW, NAME_PREFIX

# Where requests end that rules refuse: on their way there the agent is told.
REFUSALS = "refusals"
# After a 2xx HAProxy would pass on whatever comes, and nobody would look at requests. HTTP/2's upgrade to a websocket
# (RFC 8441) is a GET to these rules.
NO_TUNNEL = "  http-request deny deny_status 405 if METH_CONNECT"


def public_listener(
    public: PublicListener,
    authorisation: Authorisation | None,
    capabilities: Capabilities,
    paths: Mapping[str, str],
    log: Iterable[str],
) -> Iterator[str]:
    """The frontend that other sidecars call; `paths` are those of the files beside haproxy.cfg, by kind."""
    yield ""
    yield f"frontend {words.name(public.name)}"
    yield from frontend_mode(public.mode)
    yield f"  bind {bind_address(public.bind)} {bind_tls(public, paths[CERTIFICATE_LIST])}"
    yield from client_timeout(public.client_timeout_ms)
    yield from watched("cli", capabilities)
    if public.mode is Mode.HTTP and H2 not in public.tls.alpn:
        yield from no_h2(capabilities)
    yield from connection_limit(public.max_connections)
    asked_by_request = authorisation if public.authorised and public.mode is Mode.HTTP else None
    if asked_by_request and capabilities.has(Feature.SHA2):
        yield from _pass_known_connections(asked_by_request)
    # The handshake demands a certificate already; should it ever not, this still does.
    yield "  tcp-request content reject unless { ssl_c_used }"
    if public.authorised and authorisation:
        engines = (*ASKING, TOKENS) if asks_for_tokens(authorisation, capabilities) else ASKING
        yield from (f"  filter spoe engine {engine} config {words.path(paths[SPOE])}" for engine in engines)
        if public.mode is Mode.HTTP:
            yield from _authorise_requests(authorisation, public.crowded_at, capabilities, log)
        else:
            yield from log
            yield from _authorise_connections(authorisation, capabilities)
    else:
        yield from log
        if public.mode is Mode.HTTP:
            yield NO_TUNNEL
    if public.mode is Mode.HTTP:
        yield from _kept_by_callers(authorisation, capabilities)
        if public.forward_for:
            yield "  option forwardfor"
    if public.authorised and authorisation and refuses_by_rules(authorisation, capabilities):
        yield f"  use_backend {REFUSALS} if {refused(authorisation, VERDICT)}"
    yield f"  default_backend {words.name(public.backend)}"


def _kept_by_callers(asked: Authorisation | None, capabilities: Capabilities) -> Iterator[str]:
    """How connections end that callers keep: a worker that stops says so with its next answer.

    Were one closed while it is idle here, a request may be on its way, and lost if it may not be repeated. It is closed
    where rules look at headers or tokens: a worker that stopped as they are to look at others would refuse everything.
    """
    yield from kept_alive()
    looks = asked is not None and (asked.headers or asked.token_places)
    if capabilities.has(Feature.IDLE_CLOSE_ON_RESPONSE) and not looks:
        yield "  option idle-close-on-response"


def is_unguarded(config: str) -> bool:
    """Whether a text of ours, or what the Data Plane API made of one, has a public listener that refuses nobody."""
    listens = re.search(rf"^frontend {PUBLIC}\s*$", config, re.MULTILINE) is not None
    return listens and f"var({ALLOWED}) -m bool" not in config


def refusals() -> Iterator[str]:
    """The backend that answers 403."""
    yield ""
    yield f"backend {REFUSALS}"
    yield "  mode http"
    yield "  http-request deny deny_status 403"


def app_backend(
    app: AppBackend, public: PublicListener | None, asked: Authorisation | None, capabilities: Capabilities
) -> Iterator[str]:
    """The backend of the application."""
    yield ""
    yield f"backend {words.name(app.name)}"
    # Another line is the same application: a call must not be counted, and cut, as somebody else's. The first option,
    # as the Data Plane API 1.2 puts it there.
    yield "  no option redispatch"
    yield from backend_mode(app.mode)
    yield from timeout_lines(app.timeouts)
    if asked and asked.enforced and asks_for_tokens(asked, capabilities):
        # Before all else: tokens are asked about on the way here.
        yield from token_lines(asked)
    if app.most_together and has_caller_lines(app, capabilities):
        yield from _bounded_together(app)
    if public and public.mode is Mode.HTTP:
        yield from no_h2c_tunnel(capabilities)
        # Here, as the listener's rules on requests end with the first that allows.
        yield from _caller_headers(public, capabilities)
    if capabilities.has(Feature.DYNAMIC_SERVERS):
        yield f"  use-server %[var({NAME})] if {{ var({NAME}) -m found }}"
    yield app_server(app)
    if has_caller_lines(app, capabilities):
        yield from (f"  server {words.name(caller)} {caller_arguments(app)}" for caller in app.callers)


def _bounded_together(app: AppBackend) -> Iterator[str]:
    """What refuses requests when all lines together have their most: one line, and who waits for it, never does so."""
    condition = f"be_conn({words.name(app.name)}),sub(txn.hcc_waiting) gt {words.number(app.most_together)}"
    yield f"  http-request set-var(txn.hcc_waiting) queue({words.name(app.name)})"
    yield (
        "  http-request return status 503 content-type text/plain"
        f' string "too many requests to this application" if {{ {condition} }}'
    )


def no_h2c_tunnel(capabilities: Capabilities) -> Iterator[str]:
    """What keeps a request from becoming a tunnel of cleartext HTTP/2: inside nobody would look at requests."""
    if not capabilities.has(Feature.H2C_UPGRADE_IS_DROPPED):
        yield "  http-request del-header Upgrade if { req.hdr(upgrade),lower -m sub h2c }"


def app_server(app: AppBackend) -> str:
    """The application's own server line."""
    return f"  server {words.name(app.name)} {_app_address(app)}{_app_protocol(app)}"


def has_caller_lines(app: AppBackend, capabilities: Capabilities) -> bool:
    """Whether callers get a server line each: where lines come and go, and the application has a plain address."""
    return capabilities.has(Feature.DYNAMIC_SERVERS) and app.is_placed


def caller_arguments(app: AppBackend) -> str:
    """What follows the name of a caller's server line: no weight, so that nobody gets it by balancing."""
    return f"{_app_address(app)} weight 0{_app_protocol(app)}"


def _authorise_connections(asked: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """Rules that run after the agent was asked, which it is unless the verdict on the caller is known and allows."""
    rule = "  tcp-request content"
    remembers = capabilities.has(Feature.SHA2)
    if remembers:
        yield f"{rule} set-var({IDENTITY}) {identity_of_certificate(asked)}"
    yield f"{rule} set-var({IDENTITY}) var({CALLER}) if {{ var({CALLER}) -m found }}"
    yield from _parts(rule)
    if not asked.enforced:
        # Whom the agent denied it has counted and told.
        return
    if remembers:
        # A worker's no holds, whatever the map of verdicts says: a worker may have heard of a denial first.
        yield f"{rule} reject if {{ var({ALLOWED}) -m found }} ! {{ var({ALLOWED}) -m bool }}"
        yield _look_up_verdict(asked)
        yield f"{rule} accept if {{ var({VERDICT}) -m str {ALLOW} }}"
        yield f"{rule} reject if {{ var({VERDICT}) -m found }}"
    yield f"{rule} reject unless {{ var({ALLOWED}) -m bool }}"


def _pass_known_connections(asked: Authorisation) -> Iterator[str]:
    """Rules for a request on a connection whose certificate was looked at before: only the verdict is looked up anew.

    All that is left out takes 0.2 us of the 16 of a request.
    """
    yield _look_up_verdict(asked)
    yield f"  tcp-request content accept if {{ var({NAME}) -m found }}"


def _look_up_verdict(asked: Authorisation) -> str:
    return f"  tcp-request content set-var({VERDICT}) var({URI}),map({words.path(asked.verdicts)})"


def _parts(rule: str) -> Iterator[str]:
    yield f"{rule} set-var({NAME}) var({IDENTITY}),field(1,|)"
    yield f"{rule} set-var({URI}) var({IDENTITY}),field(2,|)"


def _authorise_requests(
    asked: Authorisation, crowded_at: int, capabilities: Capabilities, log: Iterable[str]
) -> Iterator[str]:
    """The same for each request. What a connection's certificate says is looked up once, the verdict each time."""
    remembers, ruled = capabilities.has(Feature.SHA2), has_rules(asked, capabilities)
    if remembers:
        # These run before the agent is asked.
        identity = f"var({DIGEST}),map({words.path(asked.identities)})"
        yield f"  tcp-request content set-var({DIGEST}) {CERTIFICATE_DIGEST}"
        yield f"  tcp-request content set-var({IDENTITY}) {identity}"
        yield from _parts("  tcp-request content")
        yield _look_up_verdict(asked)
    # The first of the rules on requests, so that what a later one refuses is logged with its path, too.
    yield from log
    yield NO_TUNNEL
    if remembers:
        # Most requests end here, before all that concerns strangers and layer-7 rules.
        yield f"  http-request allow if {{ var({VERDICT}) -m str {ALLOW} }}"
    yield f"  http-request set-var({IDENTITY}) var({CALLER}) if {{ var({CALLER}) -m found }}"
    yield from _parts("  http-request")
    if ruled:
        # What the agent says of a stranger whom rules govern; a worker may not have heard of a verdict that there is.
        stranger = f"{{ var({RULES}) -m found }} ! {{ var({VERDICT}) -m found }}"
        yield f"  http-request set-var({VERDICT}) var({RULES}) if {stranger}"
    if asked.enforced:
        yield from _refuse_requests(crowded_at, capabilities)
    if ruled:
        yield from rule_lines(asked, VERDICT, capabilities)
        yield from as_sent(asked, capabilities)


def _refuse_requests(crowded_at: int, capabilities: Capabilities) -> Iterator[str]:
    """The lines that refuse every request of a caller that is denied, and of one that nobody could tell anything of.

    Where there are many connections they end what this one came over, too: a caller that may do nothing here could keep
    it for an hour. Over HTTP/2 that does not end it (2.2 to 3.4).
    """
    allowed = f"{{ var({ALLOWED}) -m bool }}"
    if not capabilities.has(Feature.SHA2):
        yield f"  http-request deny deny_status 403 unless {allowed}"
        return
    known = f"{{ var({VERDICT}) -m found }}"
    refused_whole = (f"{known} ! {_decides(capabilities)}", f"! {known} ! {allowed}")
    if crowded_at and capabilities.has(Feature.DENY_HEADERS):
        crowded = f"{{ fe_conn gt {words.number(crowded_at)} }}"
        for denied in refused_whole:
            yield f"  http-request deny deny_status 403 hdr connection close if {denied} {crowded}"
    for denied in refused_whole:
        yield f"  http-request deny deny_status 403 if {denied}"


def _decides(capabilities: Capabilities) -> str:
    """The condition that a request's verdict is not to deny; rules that this build cannot look at deny."""
    rules = f" {NAME_PREFIX}" if capabilities.has(Feature.LOOKAHEAD) else ""
    return f"{{ var({VERDICT}) -m beg {ALLOW}{rules} }}"


def _caller_headers(public: PublicListener, capabilities: Capabilities) -> Iterator[str]:
    # What a caller claims about itself must not pass for what its certificate says.
    known = f"if {{ var({IDENTITY}) -m found }}"
    told = (CLIENT_CERT_HEADER if public.client_cert_by else "", public.appname_header)
    yield from _keep_headers(tuple(name for name in told if name))
    yield f"  http-request del-header {CLIENT_CERT_HEADER}"
    if public.client_cert_by:
        by = words.uri(in_a_list(public.client_cert_by))
        digest = f"Hash=%[var({DIGEST}),lower];" if capabilities.has(Feature.SHA2) else ""
        value = f"By={by};{digest}URI=%[var({URI})]"
        yield f"  http-request set-header {CLIENT_CERT_HEADER} {value} {known}"
    if public.appname_header:
        header = words.header(public.appname_header)
        yield f"  http-request del-header {header}"
        service = f"%[var({IDENTITY}),field(3,|)]"
        yield f"  http-request set-header {header} {service} {known}"


def _keep_headers(names: Iterable[str]) -> Iterator[str]:
    """The line that refuses requests that ask the application to drop one of these (RFC 9110 section 7.6.1)."""
    alternatives = "|".join(re.sub("[.*+^|]", r"\\\g<0>", words.header(name)) for name in names)
    if alternatives:
        token = f"'(^|[^0-9a-z_-])({alternatives})([^0-9a-z_-]|$)'"
        yield f"  http-request deny deny_status 400 if {{ req.fhdr(connection) -m reg -i {token} }}"


def _app_protocol(app: AppBackend) -> str:
    most = f" maxconn {words.number(app.most_connections)}" if app.most_connections else ""
    return f"{' proto h2' if app.h2 else ''}{most}"


def _app_address(app: AppBackend) -> str:
    if app.socket:
        return f"unix@{words.socket_path(app.socket)}"
    where = f"{words.host(app.address)}:{words.number(app.port, words.MAX_PORT)}"
    # A host name that is unknown just now must not keep HAProxy from starting.
    return where if app.is_placed else f"{where} init-addr libc,none"
