"""An upstream: its local listener, and the backend that lets nothing come back from a wrong server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import FOR_EVER_MS, Backend, Mode, PeerCheck, Server, Tls, UpstreamListener
from hcc.haproxy.render_lines import (
    backend_mode,
    bind_address,
    client_timeout,
    frontend_mode,
    kept_alive,
    timeout_lines,
    watched,
)
from hcc.haproxy.render_routes import (
    answer_changes,
    answer_timeouts,
    open_connections,
    request_changes,
    senders,
    way_lines,
)
from hcc.haproxy.render_tls import server_tls
from hcc.haproxy.request_rules import bound
from hcc.mesh.remembered import remembered

# What may be asked twice although nobody knows whether it was heard: safe methods (RFC 9110 section 9.2.1).
_SAFE_METHODS = "GET HEAD OPTIONS"
# Of a TLS connection to a server: the random bytes of our ClientHello. Source: RFC 8446 section 4.1.2.
_CONNECTION = "ssl_bc_client_random"
_RANDOM_BYTES = 32
# About 150 bytes each, taken when they are needed.
_CHECKED_CONNECTIONS = 10_000
_CHECKED_FOR = "10m"
H2 = "h2"


def upstream_listener(listener: UpstreamListener, capabilities: Capabilities, log: Iterable[str]) -> Iterator[str]:
    """The frontend that the application calls; `log` has the lines of the access log."""
    yield ""
    yield f"frontend {words.name(listener.name)}"
    yield from frontend_mode(listener.mode)
    yield f"  bind {bind_address(listener.bind)}"
    yield from client_timeout(listener.client_timeout_ms)
    if listener.mode is Mode.HTTP:
        yield from kept_alive()
        # A connection that nothing was asked on is closed without a 408: that would pass for the answer to what is.
        yield "  option http-ignore-probes"
    yield from log
    yield from way_lines(listener, bound(capabilities))
    if listener.limit:
        lines, connections = open_connections(listener.backends)
        yield from lines
        condition = f"{connections} ge {words.number(listener.limit)}"
        yield _refusal(listener.mode, "too many requests to this upstream", condition, capabilities)
    yield from senders(listener)
    yield f"  default_backend {words.name(listener.backend)}"


def _refusal(mode: Mode, text: str, condition: str, capabilities: Capabilities) -> str:
    if mode is Mode.TCP:
        return f"  tcp-request content reject if {{ {condition} }}"
    if not capabilities.has(Feature.HTTP_RETURN):
        return f"  http-request deny deny_status 503 if {{ {condition} }}"
    return f'  http-request return status 503 content-type text/plain string "{text}" if {{ {condition} }}'


def upstream_backend(backend: Backend, capabilities: Capabilities) -> Iterator[str]:
    """The backend of an upstream, without its servers."""
    yield ""
    yield f"backend {words.name(backend.name)}"
    yield from backend_mode(backend.mode)
    if backend.mode is Mode.HTTP and capabilities.has(Feature.HTTP_RETURN):
        # Not by a rule on nbsrv(): in a 2.6 worker that stops after a reload it is 0 for everybody.
        yield '  http-error status 503 content-type text/plain string "no healthy upstream"'
    yield f"  balance random({words.number(backend.draws)})" if backend.draws else "  balance roundrobin"
    yield from request_changes(backend.changes)
    if backend.mode is Mode.HTTP:
        shared = backend.tls is not None and H2 in backend.tls.alpn and not capabilities.has(Feature.STREAMS_TO_SERVERS)
        yield from _pooled(shared=shared)
    yield from timeout_lines(backend.timeouts)
    yield from watched("srv", capabilities)
    yield from answer_timeouts(backend.changes, capabilities)
    changes = tuple(answer_changes(backend.changes))
    if backend.check and capabilities.has(Feature.SERVER_CERTIFICATE):
        yield from _check_answers(words.name(backend.name), backend.mode, backend.check, changes)
    else:
        yield from changes


def _check_answers(table: str, mode: Mode, check: PeerCheck, changes: Iterable[str]) -> Iterator[str]:
    """The rules that let nothing come back from a server that is not who it should be; and those before the last ones.

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
    yield f"  tcp-response inspect-delay {words.milliseconds(FOR_EVER_MS)}"
    yield f"  tcp-response content accept if {known}"
    yield from (f"  tcp-response content reject if {interim} !{seen} !{other}" for other in (plain_key, named))
    yield from changes
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


def _pooled(*, shared: bool) -> Iterator[str]:
    """Any request may go over a connection that is there already, of whichever client's request it was opened for.

    The other side may close it just then. What may be asked again is, of another instance at last; what may not
    fails, as it does on any kept-alive connection.

    Where one connection would be `shared` by several requests at once, it has only those of one client.
    """
    yield f"  http-reuse {'safe' if shared else 'always'}"
    yield "  retry-on conn-failure empty-response"
    yield f"  http-request disable-l7-retry unless {{ method {_SAFE_METHODS} }}"


# Ten thousand servers, or their 16,384 slots, are rendered anew for every change of one.
@remembered
def server_line(server: Server, tls: str) -> str:
    """One server, with what `server_tls` says."""
    return f"  server {words.name(server.name)} {_arguments(server, tls)}{'' if server.enabled else ' disabled'}"


def server_arguments(server: Server, tls: Tls, capabilities: Capabilities) -> str:
    """What follows a server's name, in the file and in `add server` alike; the state is left out."""
    return _arguments(server, server_tls(tls, capabilities))


def _arguments(server: Server, tls: str) -> str:
    return f"{words.address(server.address, server.port)} weight {words.number(server.weight)} {tls}"
