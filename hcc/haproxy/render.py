"""The text of HAProxy's configuration for a wanted configuration.

Pure, as are the modules `render_*`, which have the lines of its sections. The whole file always tells the whole truth.
Its structure digest covers all that cannot be changed at run time on the HAProxy at hand; it stands in `description`,
so that a running process tells through `show info` what it runs. No construct is used that the Data Plane API 1.2
rewrites (reference/dataplane-api.md section 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial

from hcc.haproxy import access_log, words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.description import description
from hcc.haproxy.model import ActualServers, Desired, GlobalOptions, Mode, Tls
from hcc.haproxy.render_exposed import exposed_backend, exposed_listener
from hcc.haproxy.render_public import app_backend, has_caller_lines, public_listener, refusals
from hcc.haproxy.render_rules import needs_experimental
from hcc.haproxy.render_spoe import IDENTITY, SPOE, asks_for_tokens, refuses_by_rules, spoe_file, workers
from hcc.haproxy.render_tls import CERTIFICATE_LIST, certificate_list, server_tls
from hcc.haproxy.render_tokens import token_backend
from hcc.haproxy.render_upstream import server_line, upstream_backend, upstream_listener
from hcc.haproxy.servers import in_turn
from hcc.haproxy.slots import slotted

# How the names of files beside haproxy.cfg end.
SIDE_FILE = ".side.cfg"
KEEPER = "certificates"
DIGEST_CHARACTERS = 16
# Connections to the runtime socket, and through the master to the worker, at once.
MOST_CLIENTS = 100
# Of one connection of a client. HAProxy's own 100 are soon taken by calls that last, and a gRPC client then lets all
# others wait. As many as Envoy's newest versions take.
MOST_STREAMS = 1_024
# What HAProxy has by itself, for its 100 streams together.
RECEIVE_BYTES = 1_638_400


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
        WordError: a value cannot stand in HAProxy's configuration.
    """
    desired.check()
    dynamic = capabilities.has(Feature.DYNAMIC_SERVERS)
    if not dynamic:
        desired = replace(desired, backends=slotted(desired.backends, running, desired.seed))
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _joined(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _files(desired: Desired, capabilities: Capabilities) -> dict[str, SideFile]:
    directory = desired.options.state_directory
    asked = desired.authorisation
    texts = {
        SPOE: _joined(spoe_file(asked, capabilities)) if asked else "",
        CERTIFICATE_LIST: _joined(certificate_list(desired.public.tls)) if desired.public else "",
    }
    return {
        kind: SideFile(f"{directory}/{kind}.{_digest(text)[:8]}{SIDE_FILE}", text)
        for kind, text in texts.items()
        if text
    }


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
        yield from upstream_backend(backend, capabilities)
        yield server_tls(backend.tls, capabilities) if backend.tls else "no tls"
        if not capabilities.has(Feature.DYNAMIC_SERVERS):
            yield f"{len(backend.servers)} slots"


def _file(desired: Desired, capabilities: Capabilities, files: Mapping[str, SideFile], structure: str) -> Iterator[str]:
    yield "global"
    yield f"  {description(structure)}"
    yield from _sections(desired, capabilities, files)
    dynamic = capabilities.has(Feature.DYNAMIC_SERVERS)
    for backend in desired.backends:
        yield from upstream_backend(backend, capabilities)
        # `Desired.check` saw that a backend with servers has TLS.
        tls = server_tls(backend.tls, capabilities) if backend.tls else ""
        # Slots stay in the order of their numbers.
        for server in in_turn(backend.servers, desired.seed) if dynamic else backend.servers:
            yield server_line(server, tls)


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
        paths = {kind: file.path for kind, file in files.items()}
        yield from public_listener(desired.public, asked, capabilities, paths, log)
    if desired.app:
        yield from app_backend(desired.app, desired.public, asked if desired.public else None, capabilities)
    if asked:
        if refuses_by_rules(asked, capabilities):
            yield from refusals()
        yield from workers(asked, capabilities)
        if asks_for_tokens(asked, capabilities):
            yield from token_backend(asked, capabilities)
    yield from _keeper(desired, capabilities)
    for listener in desired.upstreams:
        log = access_log.upstream(listener.mode, listener.label) if logs else ()
        yield from upstream_listener(listener, capabilities, log)
    for exposed in desired.exposed:
        yield from exposed_listener(exposed, capabilities, access_log.exposed() if logs else ())
    for app in dict.fromkeys(app for exposed in desired.exposed for app in exposed.apps):
        yield from exposed_backend(app, capabilities)


def _global(options: GlobalOptions, capabilities: Capabilities) -> Iterator[str]:
    expose = "" if capabilities.has(Feature.NO_EXPOSE_FD) else " expose-fd listeners"
    yield f"  stats socket {words.path(options.stats_socket)} mode 600 level admin{expose}"
    yield "  stats timeout 1m"
    # By itself it takes 10. With as many idle ones, of somebody's tools, it looks as if it hangs. They count among the
    # descriptors that it wants to have (`SPARE_FDS`).
    yield f"  stats maxconn {words.number(MOST_CLIENTS)}"
    yield f"  hard-stop-after {words.milliseconds(options.hard_stop_after_ms)}"
    yield f"  mworker-max-reloads {words.number(options.max_reloads)}"
    yield f"  nbthread {words.number(options.threads)}"
    yield f"  maxconn {words.number(options.max_connections)}"
    if options.max_requests:
        # Nothing of ours uses pipes. But HAProxy has two descriptors for each, beyond two for each connection, and
        # there is no other word that gives it more (`ulimit-n` does not).
        yield f"  maxpipes {words.number(options.max_requests // 2 + 1)}"
    yield f"  tune.h2.max-concurrent-streams {words.number(MOST_STREAMS)}"
    if capabilities.has(Feature.STREAMS_TO_SERVERS):
        # HAProxy does not read on from a server while the client of one of the connection's streams does not read, and
        # so the clients of the others would wait for that one.
        yield "  tune.h2.be.max-concurrent-streams 1"
    if capabilities.has(Feature.RECEIVE_BUFFER):
        yield f"  tune.h2.be.rxbuf {words.number(RECEIVE_BYTES)}"
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
    # Who hangs up wants no answer any more, and the application is to know. Here, as 2.6 looks at the frontend, which
    # cannot say it. HAProxy's default for http since 3.3.
    yield "  option abortonclose"
    yield "  option redispatch 1"
    yield "  retries 3"


def _keeper(desired: Desired, capabilities: Capabilities) -> Iterator[str]:
    """A server without traffic that keeps our certificates loaded: `add server` takes none that is not."""
    tls = sorted({(used.certificate, used.ca_file) for b in desired.backends if (used := b.tls)})
    if tls:
        yield ""
        yield f"backend {KEEPER}"
        for number, (certificate, ca_file) in enumerate(tls, start=1):
            yield f"  server k{number} 127.0.0.1:1 {server_tls(Tls(certificate, ca_file), capabilities)} disabled"
