"""The text of HAProxy's configuration for a wanted configuration.

The whole file always tells the whole truth. Its structure digest covers all that cannot be changed at run
time on the HAProxy at hand; it stands in `description`, so that a running process tells through `show info`
what it runs. No construct is used that the Data Plane API 1.2 rewrites (reference/dataplane-api.md section
5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial

from hcc.haproxy import access_log, words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import (
    ActualServers,
    AppBackend,
    Authorisation,
    Backend,
    Bind,
    Desired,
    GlobalOptions,
    Mode,
    PeerCheck,
    PublicListener,
    Server,
    TcpBind,
    Timeouts,
    Tls,
    UpstreamListener,
)
from hcc.haproxy.names import TOKEN_AGENT
from hcc.haproxy.render_rules import as_sent, needs_experimental, refused, rule_lines
from hcc.haproxy.render_tokens import TOKENS, token_backend, token_lines, token_question
from hcc.haproxy.slots import slotted
from hcc.mesh.caller import in_a_list
from hcc.mesh.rules import ALLOW, NAME_PREFIX
from hcc.mesh.tls import TlsLimits, TlsVersion

DESCRIPTION = "hcc"
# The SPOE engine's name, and the prefix of its variables: the agent's `allowed` becomes txn.hcc.allowed.
ENGINE = "hcc"
# Asks another worker what the first could not answer: it was killed, hangs, or makes place for its successor.
AGAIN = "hcc-again"
ALLOWED = f"txn.{ENGINE}.allowed"
CALLER = f"txn.{ENGINE}.caller"
RULES = f"txn.{ENGINE}.rules"
ERROR = f"txn.{ENGINE}.error"
# Ours: the digest of the caller's certificate, what the agent or the map of identities says of it (`NAME|URI|SOURCE`),
# the first part of that, and the verdict.
DIGEST = "sess.hcc_digest"
IDENTITY = "sess.hcc_identity"
NAME = "sess.hcc_name"
VERDICT = "txn.hcc_verdict"
CLIENT_CERT_HEADER = "X-Forwarded-Client-Cert"
# Arguments that tell whose request it is.
_WHOSE = f"caller=var({IDENTITY}) method=method path=path"
# In http every request is asked about: a kept-alive connection must not outlive a change of intentions.
EVENTS = {Mode.TCP: "on-frontend-tcp-request", Mode.HTTP: "on-frontend-http-request"}
# Kinds of files beside haproxy.cfg, and how their names end.
SPOE = "spoe"
# Where requests end that rules refuse: on their way there the agent is told.
REFUSALS = "refusals"
CERTIFICATE_LIST = "certificates"
SIDE_FILE = ".side.cfg"
# Consul's leaves carry no DNS name. HAProxy (2.6.12, 2.8.25) then keeps a listener's certificate in its default context
# only, and replacing it, or its CAs, at run time leaves that context without `verify required`, or with the old CAs.
# A name in the certificate list puts it where an update reaches it.
CERTIFICATE_NAME = "hcc.invalid"
KEEPER = "certificates"
DIGEST_CHARACTERS = 16
_TLS_VERSIONS = {
    TlsVersion.TLS_1_0: "TLSv1.0",
    TlsVersion.TLS_1_1: "TLSv1.1",
    TlsVersion.TLS_1_2: "TLSv1.2",
    TlsVersion.TLS_1_3: "TLSv1.3",
}
# All that Consul takes, by OpenSSL's names. Source: hashicorp/consul types/tls.go (1.20.1).
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
KEEP_ALIVE_MS = 3_600_000
_CERTIFICATE_DIGEST = "ssl_c_der,sha2(256),hex"
# What may be asked twice although nobody knows whether it was heard: safe methods (RFC 9110 section 9.2.1).
_SAFE_METHODS = "GET HEAD OPTIONS"
# Of a TLS connection to a server: the random bytes of our ClientHello. Source: RFC 8446 section 4.1.2.
_CONNECTION = "ssl_bc_client_random"
_RANDOM_BYTES = 32
# About 150 bytes each, taken when they are needed.
_CHECKED_CONNECTIONS = 10_000
_CHECKED_FOR = "10m"
# Longer than any answer is waited for.
INSPECT_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file beside haproxy.cfg. Its name follows its content: a new one never disturbs who runs with the old."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A wanted configuration as text.

    Args:
        write: makes the text of haproxy.cfg, which `config` is; made when it is asked for, as it is long.
        files: those that `config` names and that are made here.
        structure: digest of all that only a reload can change.
        dynamic: whether servers may come and go at run time; otherwise they are in slots.
        caller_lines: whether each caller has a server line of its own.
        frees_slots: whether an http slot may be taken again without a reload.
        replaces_certificates, replaces_cas: whether these files may be replaced at run time.
        payload_bytes: longest certificate or CA file that can be replaced at run time.
    """

    desired: Desired
    write: Callable[[], str] = field(compare=False, repr=False)
    files: tuple[SideFile, ...]
    structure: str
    dynamic: bool
    caller_lines: bool
    frees_slots: bool
    replaces_certificates: bool
    replaces_cas: bool
    payload_bytes: int

    @property
    def config(self) -> str:
        """The text of haproxy.cfg."""
        return self.write()


def render(desired: Desired, capabilities: Capabilities, running: ActualServers = ()) -> Rendered:
    """The configuration text for HAProxy with these capabilities.

    Where servers are in slots, each keeps the one that it has in what is `running`.

    Raises:
        DesiredError: the wanted configuration is inconsistent.
        TokenError: a value cannot stand in HAProxy's configuration.
    """
    desired.check()
    dynamic = capabilities.has(Feature.DYNAMIC_SERVERS)
    if not dynamic:
        desired = replace(desired, backends=slotted(desired.backends, running))
    files = _files(desired, capabilities)
    skeleton = _joined(_skeleton(desired, capabilities, files))
    structure = _digest("\0".join((skeleton, *_unchangeable_files(desired, capabilities))))
    return Rendered(
        desired=desired,
        write=cache(partial(_text, desired, capabilities, files, structure)),
        files=tuple(files.values()),
        structure=structure,
        dynamic=dynamic,
        caller_lines=desired.app is not None and has_caller_lines(desired.app, capabilities),
        frees_slots=capabilities.has(Feature.IDLE_PURGE),
        replaces_certificates=capabilities.has(Feature.SERVER_CERT_UPDATE),
        replaces_cas=capabilities.has(Feature.CA_UPDATE),
        payload_bytes=capabilities.payload_bytes,
    )


def _text(desired: Desired, capabilities: Capabilities, files: Mapping[str, SideFile], structure: str) -> str:
    return _joined(_file(desired, capabilities, files, structure))


def server_arguments(server: Server, tls: Tls, capabilities: Capabilities) -> str:
    """What follows a server's name, in the file and in `add server` alike; the state is left out."""
    return _arguments(server, _server_tls(tls, capabilities))


def _arguments(server: Server, tls: str) -> str:
    return f"{words.address(server.address, server.port)} weight {words.number(server.weight)} {tls}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _joined(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _files(desired: Desired, capabilities: Capabilities) -> dict[str, SideFile]:
    directory = desired.options.spoe_directory
    asked = desired.authorisation
    texts = {
        SPOE: _joined(_spoe(asked, capabilities)) if asked else "",
        CERTIFICATE_LIST: _joined(_certificate_list(desired.public.tls)) if desired.public else "",
    }
    return {
        kind: SideFile(f"{directory}/{kind}.{_digest(text)[:8]}{SIDE_FILE}", text)
        for kind, text in texts.items()
        if text
    }


def _certificate_list(tls: Tls) -> Iterator[str]:
    yield f"{words.path(tls.certificate)} {CERTIFICATE_NAME}"


def _unchangeable_files(desired: Desired, capabilities: Capabilities) -> Iterator[str]:
    if not capabilities.has(Feature.SERVER_CERT_UPDATE):
        yield from (file.fingerprint for file in desired.certificates)
    if not capabilities.has(Feature.CA_UPDATE):
        yield from (fingerprint for file in desired.ca_files for fingerprint in sorted(file.fingerprints))


def _skeleton(desired: Desired, capabilities: Capabilities, files: Mapping[str, SideFile]) -> Iterator[str]:
    """Every line but those of servers; where these are in slots, the number of slots counts."""
    app = replace(desired.app, callers=()) if desired.app else None
    yield from _sections(replace(desired, app=app), capabilities, files)
    for backend in desired.backends:
        yield from _backend(backend, capabilities)
        yield _server_tls(backend.tls, capabilities) if backend.tls else "no tls"
        if not capabilities.has(Feature.DYNAMIC_SERVERS):
            yield f"{len(backend.servers)} slots"


def _file(desired: Desired, capabilities: Capabilities, files: Mapping[str, SideFile], structure: str) -> Iterator[str]:
    yield "global"
    yield f"  description {DESCRIPTION}:{structure}"
    yield from _sections(desired, capabilities, files)
    for backend in desired.backends:
        yield from _backend(backend, capabilities)
        # `Desired.check` saw that a backend with servers has TLS.
        tls = _server_tls(backend.tls, capabilities) if backend.tls else ""
        for server in backend.servers:
            yield _server(server, tls)


def _sections(desired: Desired, capabilities: Capabilities, files: Mapping[str, SideFile]) -> Iterator[str]:
    yield from _global(desired.options, capabilities)
    asked = desired.authorisation
    if asked and asked.mode is Mode.HTTP and needs_experimental(asked, capabilities):
        yield "  expose-experimental-directives"
    yield from _defaults()
    logs = bool(desired.options.access_log)
    if desired.public:
        errors = capabilities.has(Feature.ERROR_LOG_FORMAT)
        log = access_log.public(desired.public.mode, f"var({IDENTITY}),field(3,|)", errors=errors) if logs else ()
        yield from _public(desired.public, desired.authorisation, capabilities, files, log)
    if desired.app:
        yield from _app(desired.app, desired.public, asked if desired.public else None, capabilities)
    if asked:
        if _refuses_by_rules(asked, capabilities):
            yield from _refusals()
        yield from _agents(asked, capabilities)
        if _asks_for_tokens(asked, capabilities):
            yield from token_backend(asked)
    yield from _keeper(desired, capabilities)
    for listener in desired.upstreams:
        log = access_log.upstream(listener.mode, listener.label) if logs else ()
        yield from _upstream(listener, capabilities, log)


def _global(options: GlobalOptions, capabilities: Capabilities) -> Iterator[str]:
    expose = "" if capabilities.has(Feature.NO_EXPOSE_FD) else " expose-fd listeners"
    yield f"  stats socket {words.path(options.stats_socket)} mode 600 level admin{expose}"
    yield "  stats timeout 1m"
    yield f"  hard-stop-after {words.milliseconds(options.hard_stop_after_ms)}"
    yield f"  mworker-max-reloads {words.number(options.max_reloads)}"
    yield f"  nbthread {words.number(options.threads)}"
    yield f"  maxconn {words.number(options.max_connections)}"
    # Sessions in the cache would outlive a leaf or CA that was replaced; those in tickets end with their keys.
    yield "  tune.ssl.cachesize 0"
    yield "  ssl-default-bind-options ssl-min-ver TLSv1.2"
    yield "  ssl-default-server-options ssl-min-ver TLSv1.2"
    yield from access_log.target(options.access_log)


def _defaults() -> Iterator[str]:
    yield ""
    yield "defaults"
    yield "  mode tcp"
    yield "  timeout connect 5000ms"
    yield "  timeout client 60000ms"
    yield "  timeout server 60000ms"
    yield "  option redispatch 1"
    yield "  retries 3"


def _public(
    public: PublicListener,
    authorisation: Authorisation | None,
    capabilities: Capabilities,
    files: Mapping[str, SideFile],
    log: Iterable[str],
) -> Iterator[str]:
    yield ""
    yield f"frontend {words.name(public.name)}"
    yield f"  mode {public.mode.value}"
    yield f"  bind {_bind(public.bind)} {_bind_tls(public, files[CERTIFICATE_LIST])}"
    yield from _client_timeout(public.client_timeout_ms)
    if public.max_connections:
        yield f"  tcp-request connection reject if {{ fe_conn gt {words.number(public.max_connections)} }}"
    asked_by_request = authorisation if public.authorised and public.mode is Mode.HTTP else None
    if asked_by_request and capabilities.has(Feature.SHA2):
        yield from _pass_known_connections(asked_by_request)
    # The handshake demands a certificate already; should it ever not, this still does.
    yield "  tcp-request content reject unless { ssl_c_used }"
    if public.authorised and authorisation:
        engines = (ENGINE, AGAIN, TOKENS) if _asks_for_tokens(authorisation, capabilities) else (ENGINE, AGAIN)
        yield from (f"  filter spoe engine {engine} config {words.path(files[SPOE].path)}" for engine in engines)
        if public.mode is Mode.HTTP:
            yield from _authorise_requests(authorisation, capabilities, log)
        else:
            yield from log
            yield from _authorise_connections(authorisation, capabilities)
    else:
        yield from log
    if public.mode is Mode.HTTP:
        # Who opened a connection closes it: a request must not cross with our closing. Envoy waits as long.
        yield f"  timeout http-keep-alive {words.milliseconds(KEEP_ALIVE_MS)}"
        if public.forward_for:
            yield "  option forwardfor"
    if public.authorised and authorisation and _refuses_by_rules(authorisation, capabilities):
        yield f"  use_backend {REFUSALS} if {refused(authorisation, VERDICT)}"
    yield f"  default_backend {words.name(public.backend)}"


def _authorise_connections(asked: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """Rules that run after the agent was asked, which it is unless the verdict on the caller is known and allows."""
    rule = "  tcp-request content"
    remembers = capabilities.has(Feature.SHA2)
    if remembers:
        yield f"{rule} set-var({IDENTITY}) {_identity(asked)}"
    yield f"{rule} set-var({IDENTITY}) var({CALLER}) if {{ var({CALLER}) -m found }}"
    yield f"{rule} set-var({NAME}) var({IDENTITY}),field(1,|)"
    if not asked.enforced:
        # Whom the agent denied it has counted and told.
        return
    if remembers:
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
    return f"  tcp-request content set-var({VERDICT}) var({NAME}),map({words.path(asked.verdicts)})"


def _authorise_requests(asked: Authorisation, capabilities: Capabilities, log: Iterable[str]) -> Iterator[str]:
    """The same for each request. What a connection's certificate says is looked up once, the verdict each time."""
    remembers, has_rules = capabilities.has(Feature.SHA2), _has_rules(asked, capabilities)
    if remembers:
        # These run before the agent is asked.
        identity = f"var({DIGEST}),map({words.path(asked.identities)})"
        yield f"  tcp-request content set-var({DIGEST}) {_CERTIFICATE_DIGEST}"
        yield f"  tcp-request content set-var({IDENTITY}) {identity}"
        yield f"  tcp-request content set-var({NAME}) var({IDENTITY}),field(1,|)"
        yield _look_up_verdict(asked)
    # The first of the rules on requests, so that what a later one refuses is logged with its path, too.
    yield from log
    if remembers:
        # Most requests end here, before all that concerns strangers and layer-7 rules.
        yield f"  http-request allow if {{ var({VERDICT}) -m str {ALLOW} }}"
    yield f"  http-request set-var({IDENTITY}) var({CALLER}) if {{ var({CALLER}) -m found }}"
    yield f"  http-request set-var({NAME}) var({IDENTITY}),field(1,|)"
    if has_rules:
        # What the agent says of a stranger whom rules govern; a worker may not have heard of a verdict that there is.
        stranger = f"{{ var({RULES}) -m found }} ! {{ var({VERDICT}) -m found }}"
        yield f"  http-request set-var({VERDICT}) var({RULES}) if {stranger}"
    if asked.enforced:
        yield from _refuse_requests(capabilities)
    if has_rules:
        yield from rule_lines(asked, VERDICT, capabilities)
        yield from as_sent(asked, capabilities)


def _refuse_requests(capabilities: Capabilities) -> Iterator[str]:
    """The lines that refuse every request of a caller that is denied, and of one that nobody could tell anything of."""
    allowed = f"{{ var({ALLOWED}) -m bool }}"
    if not capabilities.has(Feature.SHA2):
        yield f"  http-request deny deny_status 403 unless {allowed}"
        return
    known = f"{{ var({VERDICT}) -m found }}"
    yield f"  http-request deny deny_status 403 if {known} ! {_decides(capabilities)}"
    yield f"  http-request deny deny_status 403 unless {known} || {allowed}"


def _decides(capabilities: Capabilities) -> str:
    """The condition that a request's verdict is not to deny; rules that this build cannot look at deny."""
    rules = f" {NAME_PREFIX}" if capabilities.has(Feature.LOOKAHEAD) else ""
    return f"{{ var({VERDICT}) -m beg {ALLOW}{rules} }}"


def _identity(asked: Authorisation) -> str:
    return f"{_CERTIFICATE_DIGEST},map({words.path(asked.identities)})"


def _caller_headers(public: PublicListener, capabilities: Capabilities) -> Iterator[str]:
    # What a caller claims about itself must not pass for what its certificate says.
    known = f"if {{ var({IDENTITY}) -m found }}"
    yield f"  http-request del-header {CLIENT_CERT_HEADER}"
    if public.client_cert_by:
        by = words.uri(in_a_list(public.client_cert_by))
        digest = f"Hash=%[var({DIGEST}),lower];" if capabilities.has(Feature.SHA2) else ""
        value = f"By={by};{digest}URI=%[var({IDENTITY}),field(2,|)]"
        yield f"  http-request set-header {CLIENT_CERT_HEADER} {value} {known}"
    if public.appname_header:
        header = words.header(public.appname_header)
        yield f"  http-request del-header {header}"
        service = f"%[var({IDENTITY}),field(3,|)]"
        yield f"  http-request set-header {header} {service} {known}"


def _app(
    app: AppBackend, public: PublicListener | None, asked: Authorisation | None, capabilities: Capabilities
) -> Iterator[str]:
    yield ""
    yield f"backend {words.name(app.name)}"
    yield f"  mode {app.mode.value}"
    # Another line is the same application: a call must not be counted, and cut, as somebody else's.
    yield "  no option redispatch"
    yield from _timeouts(app.timeouts)
    if asked and asked.enforced and _asks_for_tokens(asked, capabilities):
        # Before all else: tokens are asked about on the way here.
        yield from token_lines(asked)
    if public and public.mode is Mode.HTTP:
        if not capabilities.has(Feature.H2C_UPGRADE_IS_DROPPED):
            # Inside such a tunnel nobody would look at requests.
            yield "  http-request del-header Upgrade if { req.hdr(upgrade),lower -m sub h2c }"
        # Here, as the listener's rules on requests end with the first that allows.
        yield from _caller_headers(public, capabilities)
    if capabilities.has(Feature.DYNAMIC_SERVERS):
        yield f"  use-server %[var({NAME})] if {{ var({NAME}) -m found }}"
    yield f"  server {words.name(app.name)} {_app_address(app)}{_app_protocol(app)}"
    if has_caller_lines(app, capabilities):
        yield from (f"  server {words.name(caller)} {caller_arguments(app)}" for caller in app.callers)


def has_caller_lines(app: AppBackend, capabilities: Capabilities) -> bool:
    """Whether callers get a server line each: where lines come and go, and the application has a plain address."""
    return capabilities.has(Feature.DYNAMIC_SERVERS) and app.is_placed


def caller_arguments(app: AppBackend) -> str:
    """What follows the name of a caller's server line: no weight, so that nobody gets it by balancing."""
    return f"{_app_address(app)} weight 0{_app_protocol(app)}"


def _app_protocol(app: AppBackend) -> str:
    return " proto h2" if app.h2 else ""


def _app_address(app: AppBackend) -> str:
    if app.socket:
        return f"unix@{words.path(app.socket)}"
    where = f"{words.host(app.address)}:{words.number(app.port, words.MAX_PORT)}"
    # A host name that is unknown just now must not keep HAProxy from starting.
    return where if app.is_placed else f"{where} init-addr libc,none"


def _refusals() -> Iterator[str]:
    yield ""
    yield f"backend {REFUSALS}"
    yield "  mode http"
    yield "  http-request deny deny_status 403"


def _agents(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    yield ""
    yield f"backend {words.name(authorisation.backend)}"
    yield "  mode tcp"
    yield "  timeout connect 1000ms"
    yield "  timeout server 5m"
    yield "  option spop-check"
    pool = " pool-low-conn 64" if capabilities.has(Feature.POOL_LOW_CONN) else ""
    for number, path in enumerate(authorisation.sockets, start=1):
        yield f"  server {agent_name(number)} unix@{words.path(path)} check inter 1s{pool}"


def agent_name(number: int) -> str:
    """The server line of SPOE worker `number`, counted from 1."""
    return f"w{number}"


def _keeper(desired: Desired, capabilities: Capabilities) -> Iterator[str]:
    """A server without traffic that keeps our certificates loaded: `add server` takes none that is not."""
    tls = sorted({(used.certificate, used.ca_file) for b in desired.backends if (used := b.tls)})
    if tls:
        yield ""
        yield f"backend {KEEPER}"
        for number, (certificate, ca_file) in enumerate(tls, start=1):
            words = _server_tls(Tls(certificate, ca_file), capabilities)
            yield f"  server k{number} 127.0.0.1:1 {words} disabled"


def _upstream(listener: UpstreamListener, capabilities: Capabilities, log: Iterable[str]) -> Iterator[str]:
    backend = words.name(listener.backend)
    yield ""
    yield f"frontend {words.name(listener.name)}"
    yield f"  mode {listener.mode.value}"
    yield f"  bind {_bind(listener.bind)}"
    yield from _client_timeout(listener.client_timeout_ms)
    yield from log
    if listener.max_connections:
        condition = f"be_conn({backend}) ge {words.number(listener.max_connections)}"
        yield _refusal(listener.mode, "too many connections to this upstream", condition, capabilities)
    yield f"  default_backend {backend}"


def _refusal(mode: Mode, text: str, condition: str, capabilities: Capabilities) -> str:
    if mode is Mode.TCP:
        return f"  tcp-request content reject if {{ {condition} }}"
    if not capabilities.has(Feature.HTTP_RETURN):
        return f"  http-request deny deny_status 503 if {{ {condition} }}"
    return f'  http-request return status 503 content-type text/plain string "{text}" if {{ {condition} }}'


def _backend(backend: Backend, capabilities: Capabilities) -> Iterator[str]:
    yield ""
    yield f"backend {words.name(backend.name)}"
    yield f"  mode {backend.mode.value}"
    if backend.mode is Mode.HTTP and capabilities.has(Feature.HTTP_RETURN):
        # Not by a rule on nbsrv(): in a 2.6 worker that stops after a reload it is 0 for everybody.
        yield '  http-error status 503 content-type text/plain string "no healthy upstream"'
    yield "  balance roundrobin"
    if backend.mode is Mode.HTTP:
        yield from _pooled()
    yield from _timeouts(backend.timeouts)
    if backend.check and capabilities.has(Feature.SERVER_CERTIFICATE):
        yield from _check_answers(words.name(backend.name), backend.mode, backend.check)


def _check_answers(table: str, mode: Mode, check: PeerCheck) -> Iterator[str]:
    """The rules that let nothing come back from a server that is not who it should be.

    A leaf that was seen before is known by its digest. One that was renewed since names itself. HAProxy has no word for
    that but the bytes of the certificate: they are those of a list of names with the one URI and nothing else, and of a
    key in which they cannot be hidden.
    """
    uris = " ".join(words.pattern(identity) for identity in check.identities)
    names = " ".join(name_list(identity) for identity in check.identities)
    seen = f"{{ ssl_s_der,sha2(256),hex,map({words.path(check.leaves)}) -m str {uris} }}"
    plain_key, named = "{ ssl_s_key_alg -m str id-ecPublicKey }", f"{{ ssl_s_der,hex -m sub {names} }}"
    if mode is Mode.TCP:
        yield f"  tcp-response content reject unless {seen} || {plain_key} {named}"
        return
    # A connection's first answer vouches for the later ones: a look at the certificate costs 1.4 us, one into the table
    # 0.15. The key is ours, not the server's, and no connection's twice. One that the table has no room for, or no
    # longer knows, is looked at again.
    known = f"{{ {_CONNECTION},in_table({table}) }}"
    yield f"  stick-table type binary len {_RANDOM_BYTES} size {_CHECKED_CONNECTIONS} expire {_CHECKED_FOR}"
    # No http-response rule sees an interim answer (100, 103), which goes to the client at once; so on a new connection
    # the first answer is waited for. Not on others: 2.2 and 2.6 repeat no request while a rule waits (tried).
    interim = "{ status lt 200 }"
    yield f"  tcp-response inspect-delay {words.milliseconds(INSPECT_MS)}"
    yield f"  tcp-response content accept if {known}"
    yield from (f"  tcp-response content reject if {interim} !{seen} !{other}" for other in (plain_key, named))
    yield f"  http-response allow if {known}"
    # Without a status of its own: 502 is what it answers, and older Data Plane APIs do not know the word.
    yield f"  http-response deny unless {seen} || {plain_key} {named}"
    yield f"  http-response track-sc0 {_CONNECTION}"


def name_list(uri: str) -> str:
    """The subject alternative names of a certificate that names this URI alone, as HAProxy's `hex` has their bytes.

    An OCTET STRING of a SEQUENCE of one GeneralName, uniformResourceIdentifier [6]. Source: RFC 5280 section 4.2.1.6.
    """
    return _tagged(0x04, _tagged(0x30, _tagged(0x86, uri.encode()))).hex().upper()


def _tagged(tag: int, content: bytes) -> bytes:
    """Tag, length and content in DER. Source: X.690 sections 8.1.3 and 10.1."""
    size = len(content)
    if size < 0x80:  # noqa: PLR2004 (the short form)
        return bytes((tag, size)) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(digits))) + digits + content


def _pooled() -> Iterator[str]:
    """Any request may go over a connection that is there already, of whichever client's request it was opened for.

    The other side may close it just then. What may be asked again is, of another instance at last; what may not
    fails, as it does on any kept-alive connection.
    """
    yield "  http-reuse always"
    yield "  retry-on conn-failure empty-response"
    yield f"  http-request disable-l7-retry unless {{ method {_SAFE_METHODS} }}"


# Ten thousand servers, or their 16,384 slots, are rendered anew for every change of one.
@lru_cache(maxsize=32_768)
def _server(server: Server, tls: str) -> str:
    return f"  server {words.name(server.name)} {_arguments(server, tls)}{'' if server.enabled else ' disabled'}"


def _client_timeout(milliseconds: int) -> Iterator[str]:
    yield f"  timeout client {words.milliseconds(milliseconds)}"


def _timeouts(timeouts: Timeouts) -> Iterator[str]:
    yield f"  timeout connect {words.milliseconds(timeouts.connect_ms)}"
    yield f"  timeout server {words.milliseconds(timeouts.server_ms)}"
    if timeouts.tunnel_ms:
        yield f"  timeout tunnel {words.milliseconds(timeouts.tunnel_ms)}"


def _bind(bind: Bind) -> str:
    if isinstance(bind, TcpBind):
        return words.address(bind.address, bind.port)
    return f"unix@{words.path(bind.path)}{f' mode {words.mode(bind.mode)}' if bind.mode else ''}"


def _bind_tls(public: PublicListener, certificate_list: SideFile) -> str:
    keys = words.path(public.ticket_keys)
    return f"ssl crt-list {words.path(certificate_list.path)} {_verified(public.tls)} tls-ticket-keys {keys}"


def _verified(tls: Tls) -> str:
    alpn = f" alpn {words.word(','.join(tls.alpn))}" if tls.alpn else ""
    return f"ca-file {words.path(tls.ca_file)} verify required{alpn}{_limits(tls.limits)}"


def _limits(limits: TlsLimits) -> str:
    """What the mesh entry says. Else 1.2 at least, as Envoy's clients speak no newer by default; with us it is 1.3."""
    lowest = f" ssl-min-ver {_TLS_VERSIONS[limits.min_version]}" if limits.min_version else ""
    highest = f" ssl-max-ver {_TLS_VERSIONS[limits.max_version]}" if limits.max_version else ""
    known = [_CIPHERS[name] for name in limits.ciphers if name in _CIPHERS]
    # One that does not exist, so that a list of unknown ones allows none: HAProxy refuses the text and says so.
    ciphers = f" ciphers {words.word(':'.join(known or ['none']))}" if limits.ciphers else ""
    return f"{lowest}{highest}{ciphers}"


def _server_tls(tls: Tls, capabilities: Capabilities) -> str:
    # An SNI would make HAProxy demand a DNS name that Connect certificates have not; since 3.3 it sends one
    # by itself.
    sni = " no-sni-auto" if capabilities.has(Feature.NO_SNI_AUTO) else ""
    return f"ssl crt {words.path(tls.certificate)} {_verified(tls)}{sni}"


def _spoe(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    rules = _has_rules(authorisation, capabilities)
    yield from _agent(ENGINE, authorisation, "5m", "caller refused" if rules else "caller", authorisation.backend)
    yield from _question(authorisation, capabilities, _unless_allowed(authorisation, capabilities))
    if rules:
        # The agent counts and tells it; nothing that it answers changes anything. Not by `send-spoe-group`: 2.2.9 sends
        # that again and again, until the client gives up.
        yield "spoe-message refused"
        yield f"  args {_WHOSE}"
        yield f"  event on-backend-http-request if {refused(authorisation, VERDICT)}"
    # Idle connections end soon, so that it asks on a new one: an old one may be of the worker that is gone.
    yield from _agent(AGAIN, authorisation, "100ms", "caller", authorisation.backend)
    yield from _question(authorisation, capabilities, f" if {{ var({ERROR}) -m found }}")
    if _asks_for_tokens(authorisation, capabilities):
        yield from _agent(TOKENS, authorisation, "5m", "token", TOKEN_AGENT)
        yield from token_question(authorisation.token_places, _WHOSE)


def _agent(engine: str, authorisation: Authorisation, idle: str, messages: str, backend: str) -> Iterator[str]:
    processing = words.milliseconds(authorisation.processing_timeout_ms)
    yield f"[{engine}]"
    yield "spoe-agent agent"
    yield f"  messages {messages}"
    yield f"  option var-prefix {ENGINE}"
    if engine == ENGINE:
        yield f"  option set-on-error {ERROR.rpartition('.')[2]}"
    yield f"  timeout hello {processing}"
    yield f"  timeout processing {processing}"
    yield f"  timeout idle {idle}"
    yield f"  use-backend {words.name(backend)}"


def _question(authorisation: Authorisation, capabilities: Capabilities, when: str) -> Iterator[str]:
    yield "spoe-message caller"
    yield f"  args der=ssl_c_der{' src=src src_port=src_port' if capabilities.has(Feature.SHA2) else ''}"
    yield f"  event {EVENTS[authorisation.mode]}{when}"


def _has_rules(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    able = capabilities.has(Feature.SHA2) and capabilities.has(Feature.LOOKAHEAD)
    return able and authorisation.mode is Mode.HTTP


def _refuses_by_rules(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    return authorisation.enforced and _has_rules(authorisation, capabilities)


def _asks_for_tokens(authorisation: Authorisation, capabilities: Capabilities) -> bool:
    return bool(authorisation.token_places) and _has_rules(authorisation, capabilities)


def _unless_allowed(authorisation: Authorisation, capabilities: Capabilities) -> str:
    """Known callers are not asked about, but for those denied: the agent counts and tells them."""
    if not capabilities.has(Feature.SHA2):
        return ""
    if authorisation.mode is Mode.HTTP:
        return f" if ! {{ var({VERDICT}) -m beg {ALLOW} {NAME_PREFIX} }}"
    verdict = f"{_identity(authorisation)},field(1,|),map({words.path(authorisation.verdicts)})"
    return f" if ! {{ {verdict} -m str {ALLOW} }}"
