"""HAProxy can bring every path into the form that rules are matched against, or refuses it; HTTP/1 and HTTP/2.

`hcc.mesh.request.normalised` says what that form is, after Envoy; this holds the words of a configuration against it.
"""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

from hcc.mesh.request import (
    CONSULS_DEFAULT,
    EscapedSlashes,
    Normalization,
    Request,
    RequestError,
    Underscores,
    normalised,
)
from tests import binaries

pytestmark = pytest.mark.integration
SEED = 20261125

SINCE_NORMALIZE_URI = ("2.6", "2.8", "3.0", "3.2", "3.4")
_ESCAPED_SLASH = "{ path -m reg -i '%(2f|5c)' }"


def normalising_lines(how: Normalization, branch: str) -> Iterator[str]:
    """The lines that refuse what has no normal form, and change the rest into it.

    `normalize-uri` is there since 2.4, experimental on all; it decodes in the query, too, which no rule looks at.
    Before 2.4 a path that would be changed by it is refused, and so is a header that would be deleted.
    """
    # Looked at before anything is changed: a path without a slash can get one by that.
    yield "http-request deny deny_status 400 unless { path_beg / }"
    yield "http-request deny deny_status 400 if { path -m reg '[^!-~]' } or { url_sub '#' }"
    yield from _underscore_lines(how.underscores, branch)
    yield from _escaped_slash_lines(how)
    if how.path:
        yield "http-request deny deny_status 400 if { path_sub %00 }"
        yield from _rfc3986_lines() if branch in SINCE_NORMALIZE_URI else _refusing_lines()
    if how.merge_slashes:
        yield "http-request set-path '%[path,regsub(/+,/,g)]'"
    if how.escaped_slashes is EscapedSlashes.REDIRECT:
        yield "http-request redirect code 307 location %[url] if { var(txn.escaped) -m bool }"


def _underscore_lines(how: Underscores, branch: str) -> Iterator[str]:
    if how is Underscores.DROP and branch in SINCE_NORMALIZE_URI:
        yield "http-request del-header _ -m sub"
    elif how is not Underscores.ALLOW:
        yield "http-request deny deny_status 400 if { req.hdr_names -m sub _ }"


def _escaped_slash_lines(how: Normalization) -> Iterator[str]:
    match how.escaped_slashes:
        case EscapedSlashes.REJECT:
            yield f"http-request deny deny_status 400 if {_ESCAPED_SLASH}"
        case EscapedSlashes.REDIRECT:
            yield f"http-request set-var(txn.escaped) bool(true) if {_ESCAPED_SLASH}"
    if how.escaped_slashes in (EscapedSlashes.UNESCAPE, EscapedSlashes.REDIRECT):
        # A backslash would become a slash anyway, unless paths are not normalised: then it has to be one.
        if not how.path:
            yield "http-request deny deny_status 400 if { path -m reg -i %5c }"
        yield "http-request set-path '%[path,regsub(%2f,/,gi),regsub(%5c,/,gi)]'"


def _rfc3986_lines() -> Iterator[str]:
    yield r"http-request set-path '%[path,regsub([\x5c],/,g)]'"
    yield "http-request normalize-uri percent-decode-unreserved"
    escaped = {r"[\x22]": "%22", "<": "%3C", ">": "%3E", r"[\x5e]": "%5E", r"[\x60]": "%60"}
    escaped |= {r"[\x7b]": "%7B", r"[\x7c]": "%7C", r"[\x7d]": "%7D"}
    yield f"http-request set-path '%[path,{','.join(f'regsub({old},{new},g)' for old, new in escaped.items())}]'"
    yield "http-request normalize-uri path-strip-dot"
    yield "http-request normalize-uri path-strip-dotdot full"


def _refusing_lines() -> Iterator[str]:
    deny = "http-request deny deny_status 400 if"
    yield rf"{deny} {{ path -m reg '[\x22\x3c\x3e\x5c\x5e\x60\x7b-\x7d]' '/[.]{{1,2}}(/|$)' }}"
    yield f"{deny} {{ path -m reg -i '%(2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f|7e)' }}"


CONFIGURATION = """
global
  {experimental}
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend public
  bind fd@{fd} {protocol}
{rules}
  http-request return status 200 content-type text/plain lf-string "%[path]%[req.fhdr(x_a)]"
"""
PIECES = (
    "/", ".", "..", "%2e", "%2E", "\\", "a", "%61", "%2f", "%5C", "%", "//", "/./", "/../", "%25", "{", "|", "?", "%3f",
)  # fmt: skip
TARGETS = (
    "/", "/a/../b", "/a/./b", "/a/.", "/a/..", "/../../x", "/public/%2e%2e/admin", "/.%2e/a", "/a//../b", "/.//x",
    "//x", "/%61dmin", "/%2561", "/a%2fb", "/a%5cb", "/a\\..\\b", "/a\\", "\\a", "/a%", "/a%zz", "/a%00b",
    '/"<>^`{|}', "/[x]@:;,=!$&'()*+~", "/..;/x", "/a/...", "/..a", "/Admin", "/a?b=/../c", "/a/%2E%2e/%2e/x?y",
    "/a/..?x", "/a#b", "/a?b#c", "*", "a/b", "?x", "", "/a b", "/a\tb", "/a\x00b", "/\u00e9", "/a\x7f",
    "/%7e%5f%2d%41%5A%39", "/%5b%60%7b%40%2f%3a",
)  # fmt: skip
OVER_LONG = "/" + "a/../" * 4000


def generated(count: int) -> list[str]:
    random_ = random.Random(SEED)
    return ["/" + "".join(random_.choices(PIECES, k=random_.randint(1, 9))) for _ in range(count)]


def expected(target: str, how: Normalization = CONSULS_DEFAULT) -> str | None:
    """The path that comes through; None if the request is refused or redirected."""
    try:
        return normalised(Request("GET", target), how).path
    except RequestError:
        return None


@dataclass(frozen=True)
class Front:
    """A HAProxy that answers with the path it would send on."""

    port: int

    def http1(self, target: str, *headers: str) -> str | None:
        """What it answered; None if the request was refused or redirected."""
        head, body = self.http1_answer(target, *headers)
        return body if head.split()[1:2] == ["200"] else None

    def http1_answer(self, target: str, *headers: str) -> tuple[str, str]:
        """Head and body of the answer."""
        lines = (f"GET {target} HTTP/1.1", "Host: h", "Connection: close", *headers, "", "")
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall("\r\n".join(lines).encode("latin-1"))
            answer = b""
            while data := sock.recv(65536):
                answer += data
        head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
        return head, body

    def http2(self, *headers: tuple[str, str]) -> str | None:
        """The same with these headers, pseudo-headers and all, as they are."""
        connection = H2Connection(
            H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None)
        )
        connection.initiate_connection()
        connection.send_headers(
            1, [(name.encode(), value.encode("latin-1")) for name, value in headers], end_stream=True
        )
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(connection.data_to_send())
            return _answer(sock, connection)

    def http2_path(self, target: str) -> str | None:
        return self.http2((":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", target))


def _answer(sock: socket.socket, connection: H2Connection) -> str | None:
    status, body = b"", b""
    while data := sock.recv(65536):
        for event in connection.receive_data(data):
            match event:
                case ResponseReceived():
                    status = dict(event.headers or ())[b":status"]
                case DataReceived():
                    body += event.data or b""
                case StreamEnded():
                    return body.decode("latin-1") if status == b"200" else None
                case StreamReset() | ConnectionTerminated():
                    return None
    return None


@contextmanager
def running(branch: str, directory: Path, *, h2: bool = False, how: Normalization = CONSULS_DEFAULT) -> Iterator[Front]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = CONFIGURATION.format(
            experimental="expose-experimental-directives" if branch in SINCE_NORMALIZE_URI else "",
            fd=listener.fileno(),
            protocol="proto h2" if h2 else "",
            rules="\n".join(f"  {line}" for line in normalising_lines(how, branch)),
        )
        (directory / "haproxy.cfg").write_text(text)
        log = (directory / "haproxy.log").open("wb")
        command = [binaries.haproxy(branch), "-db", "-f", str(directory / "haproxy.cfg")]
        with log, subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(listener.fileno(),)) as process:
            try:
                yield Front(listener.getsockname()[1])
                assert process.poll() is None, (directory / "haproxy.log").read_text()
            finally:
                process.kill()


@pytest.fixture(scope="module", params=binaries.HAPROXY_BRANCHES)
def branch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def front(branch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running(branch, tmp_path_factory.mktemp("front")) as found:
        yield found


@pytest.fixture(scope="module")
def front2(branch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running(branch, tmp_path_factory.mktemp("front2"), h2=True) as found:
        yield found


def acceptable(branch: str, target: str) -> tuple[str | None, ...]:
    """What may come of a request: 2.2 refuses what it would have to change."""
    wanted = expected(target)
    return (wanted,) if branch != "2.2" or wanted == target.partition("?")[0] else (None,)


def test_a_path_of_http1_arrives_in_its_normal_form_or_not_at_all(branch: str, front: Front) -> None:
    for target in (*TARGETS, *generated(200)):
        assert front.http1(target) in acceptable(branch, target), f"{target!r}, expected {expected(target)!r}"


def test_a_path_of_http2_arrives_in_its_normal_form_or_not_at_all(branch: str, front2: Front) -> None:
    for target in (*TARGETS, *generated(100)):
        if target == "*":
            # Taken for the root; nothing else can be reached by it.
            assert front2.http2_path(target) in (None, "/")
            continue
        assert front2.http2_path(target) in acceptable(branch, target), f"{target!r}, expected {expected(target)!r}"


def test_a_path_over_the_limit_is_refused(front: Front, front2: Front) -> None:
    assert expected(OVER_LONG) is None
    assert front.http1(OVER_LONG) is None
    assert front2.http2_path(OVER_LONG) is None


METHOD, SCHEME, AUTHORITY, PATH = (":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/a")


@pytest.mark.parametrize(
    "headers",
    [
        (METHOD, SCHEME, AUTHORITY, PATH, (":path", "/b")),
        (METHOD, (":method", "POST"), SCHEME, AUTHORITY, PATH),
        (METHOD, SCHEME, AUTHORITY),
        (METHOD, SCHEME, AUTHORITY, ("x", "y"), PATH),
        (METHOD, SCHEME, AUTHORITY, PATH, (":x", "y")),
        (METHOD, SCHEME, AUTHORITY, PATH, ("X-Upper", "y")),
        (METHOD, SCHEME, AUTHORITY, PATH, ("x", "a\r\nx-role: admin")),
        (METHOD, SCHEME, AUTHORITY, PATH, ("x", "a\x00b")),
        ((":method", "GE T"), SCHEME, AUTHORITY, PATH),
        ((":method", "CONNECT"), ("host", "h:1"), (":authority", "h:1")),
        ((":method", "CONNECT"), SCHEME, AUTHORITY, PATH),
    ],
)
def test_an_http2_request_with_odd_pseudo_headers_is_refused(
    front2: Front, headers: tuple[tuple[str, str], ...]
) -> None:
    assert front2.http2(*headers) is None


def test_an_upgrade_over_http2_has_its_path_normalised_too(branch: str, front2: Front) -> None:
    headers = ((":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY, (":path", "/a/../b"))
    assert front2.http2(*headers) in (acceptable(branch, "/a/../b") if branch != "2.2" else (None,))


OTHER_WAYS = {
    "slashes merged": Normalization(merge_slashes=True),
    "escaped slashes refused": Normalization(escaped_slashes=EscapedSlashes.REJECT),
    "escaped slashes unescaped": Normalization(escaped_slashes=EscapedSlashes.UNESCAPE),
    "unescaped and merged": Normalization(merge_slashes=True, escaped_slashes=EscapedSlashes.UNESCAPE),
    "escaped slashes redirected": Normalization(escaped_slashes=EscapedSlashes.REDIRECT),
    "paths as they come": Normalization(path=False),
    "slashes merged, nothing else": Normalization(path=False, merge_slashes=True),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_what_the_mesh_entry_may_say_of_paths_is_done(branch: str, way: str, tmp_path: Path) -> None:
    how = OTHER_WAYS[way]
    with running(branch, tmp_path, how=how) as front:
        for target in (*TARGETS, *generated(100)):
            wanted = expected(target, how)
            found = front.http1(target)
            if branch in SINCE_NORMALIZE_URI or found is not None:
                assert found == wanted, f"{target!r}"
        assert front.http1("/a/b") == "/a/b"


def test_a_redirect_names_the_unescaped_path_and_keeps_the_query(branch: str, tmp_path: Path) -> None:
    how = Normalization(escaped_slashes=EscapedSlashes.REDIRECT)
    with running(branch, tmp_path, how=how) as front:
        head, _ = front.http1_answer("/a%2Fb%5cc?d=%2F")
    assert head.split()[1] == "307"
    assert "location: /a/b/c?d=%2F" in head.lower().replace("%2f", "%2F")


def test_a_header_with_an_underscore_comes_through_by_default(front: Front) -> None:
    assert front.http1("/a", "x_a: 1") == "/a1"


@pytest.mark.parametrize("underscores", [Underscores.REJECT, Underscores.DROP])
def test_headers_with_underscores_are_refused_or_deleted(branch: str, underscores: Underscores, tmp_path: Path) -> None:
    with running(branch, tmp_path, how=Normalization(underscores=underscores)) as front:
        assert front.http1("/a", "x-a: 1") == "/a"
        dropped = underscores is Underscores.DROP and branch in SINCE_NORMALIZE_URI
        assert front.http1("/a", "x_a: 1") == ("/a" if dropped else None)
