"""HAProxy can bring every path into the form that rules are matched against, or refuses it; HTTP/1 and HTTP/2.

`hcc.mesh.request.normalised` says what that form is, after Envoy; this holds the words of a configuration against it.
"""

from __future__ import annotations

import itertools
import random
import re
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

from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import Capabilities, capabilities
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.render_public import NO_TUNNEL
from hcc.haproxy.render_rules import FORMLESS, PATH, as_sent, needs_experimental, rule_lines
from hcc.haproxy.request_rules import headers_digest
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
NEEDLESS = re.compile("%(2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f|7e)", re.IGNORECASE)

CONFIGURATION = """
global
  {experimental}
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend public
  bind {bind}
  http-request set-var(txn.verdict) str(rules-x)
{rules}
  http-request return status 200 content-type text/plain lf-string "{answer}"
"""
ANSWER = "%[path]%[req.fhdr(x_role)]"
# What rules were looked at with, the verdict, and what is sent on.
AUDITED = f"%[var({PATH})] %[var(txn.verdict)] %[url]"
PIECES = (
    "/", ".", "..", "%2e", "%2E", "\\", "a", "%61", "%2f", "%5C", "%", "//", "/./", "/../", "%25", "{", "|", "?", "%3f",
)  # fmt: skip
TARGETS = (
    "/", "/a/../b", "/a/./b", "/a/.", "/a/..", "/../../x", "/public/%2e%2e/admin", "/.%2e/a", "/a//../b", "/.//x",
    "//x", "/%61dmin", "/%2561", "/a%2fb", "/a%5cb", "/a\\..\\b", "/a\\", "\\a", "/a%", "/a%zz", "/a%00b",
    '/"<>^`{|}', "/[x]@:;,=!$&'()*+~", "/..;/x", "/a/...", "/..a", "/Admin", "/a?b=/../c", "/a/%2E%2e/%2e/x?y",
    "/a/..?x", "/a#b", "/a?b#c", "*", "a/b", "?x", "", "/a b", "/a\tb", "/a\x00b", "/\u00e9", "/a\x7f",
    "/%7e%5f%2d%41%5A%39", "/%5b%60%7b%40%2f%3a", "/.;", "/a/%2e%2e;b=c/d", "/a\\..;/b", "/a;..;/..b;/c", "/a/..%3b/b",
    "/x/../..;",
)  # fmt: skip
OVER_LONG = "/" + "a/../" * 4000


def generated(count: int) -> list[str]:
    random_ = random.Random(SEED)
    return ["/" + "".join(random_.choices(PIECES, k=random_.randint(1, 9))) for _ in range(count)]


def expected(target: str, how: Normalization = CONSULS_DEFAULT, *headers: tuple[str, str]) -> str | None:
    """The path that comes through; None if the request is refused."""
    try:
        return normalised(Request("GET", target, (("Host", "h"), *headers)), how).path
    except RequestError:
        return None


@dataclass(frozen=True)
class Front:
    """A HAProxy that answers with the path it would send on."""

    port: int

    def http1(self, target: str, *headers: str) -> str | None:
        """What it answered; None if the request was refused."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            lines = (f"GET {target} HTTP/1.1", "Host: h", "Connection: close", *headers, "", "")
            sock.sendall("\r\n".join(lines).encode("latin-1"))
            answer = b""
            while data := sock.recv(65536):
                answer += data
        head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
        return body if head.split()[1:2] == ["200"] else None

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


def authorisation(directory: Path, how: Normalization, *, enforced: bool) -> Authorisation:
    """With a map that allows everything."""
    rules = directory / "rules.map"
    rules.write_text(f"^rules-x\\n{headers_digest(())}\\n allow\n")
    return Authorisation("agents", ("/s",), Mode.HTTP, "/i", "/v", str(rules), normalization=how, enforced=enforced)


def configuration(asked: Authorisation, able: Capabilities, bind: str) -> str:
    put_back = () if asked.enforced else as_sent(asked, able)
    return CONFIGURATION.format(
        experimental="expose-experimental-directives" if needs_experimental(asked, able) else "",
        bind=bind,
        rules="\n".join((NO_TUNNEL, *rule_lines(asked, "txn.verdict", able), *put_back)),
        answer=ANSWER if asked.enforced else AUDITED,
    )


@contextmanager
def running(
    branch: str, directory: Path, *, h2: bool, how: Normalization = CONSULS_DEFAULT, enforced: bool = True
) -> Iterator[Front]:
    able = capabilities(probe(binaries.haproxy(branch)).version)
    asked = authorisation(directory, how, enforced=enforced)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = configuration(asked, able, f"fd@{listener.fileno()} {'proto h2' if h2 else ''}")
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
    with running(branch, tmp_path_factory.mktemp("front"), h2=False) as found:
        yield found


@pytest.fixture(scope="module")
def front2(branch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running(branch, tmp_path_factory.mktemp("front2"), h2=True) as found:
        yield found


def acceptable(branch: str, target: str, how: Normalization = CONSULS_DEFAULT) -> tuple[str | None, ...]:
    """What may come of a request: 2.2 refuses what it would have to change, others what they cannot decode."""
    wanted = expected(target, how)
    path = target.partition("?")[0]
    if NEEDLESS.search(path) and re.search("%(?![0-9A-Fa-f]{2})", target):
        return (wanted, None)
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


METHOD, SCHEME, AUTHORITY, TARGET = (":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/a")


@pytest.mark.parametrize(
    "headers",
    [
        (METHOD, SCHEME, AUTHORITY, TARGET, (":path", "/b")),
        (METHOD, (":method", "POST"), SCHEME, AUTHORITY, TARGET),
        (METHOD, SCHEME, AUTHORITY),
        (METHOD, SCHEME, TARGET),
        (METHOD, SCHEME, AUTHORITY, ("x", "y"), TARGET),
        (METHOD, SCHEME, AUTHORITY, TARGET, (":x", "y")),
        (METHOD, SCHEME, AUTHORITY, TARGET, ("X-Upper", "y")),
        (METHOD, SCHEME, AUTHORITY, TARGET, ("x", "a\r\nx-role: admin")),
        (METHOD, SCHEME, AUTHORITY, TARGET, ("x", "a\x00b")),
        ((":method", "GE T"), SCHEME, AUTHORITY, TARGET),
        ((":method", "CONNECT"), ("host", "h:1"), (":authority", "h:1")),
        ((":method", "CONNECT"), SCHEME, AUTHORITY, TARGET),
    ],
)
def test_an_http2_request_with_odd_pseudo_headers_is_refused(
    front2: Front, headers: tuple[tuple[str, str], ...]
) -> None:
    assert front2.http2(*headers) is None


def test_an_upgrade_over_http2_has_its_path_normalised_too(branch: str, front2: Front) -> None:
    headers = ((":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY, (":path", "/a/../b"))
    assert front2.http2(*headers) in (acceptable(branch, "/a/../b") if branch != "2.2" else (None,))


@pytest.mark.parametrize(
    "how",
    [
        Normalization(merge_slashes=True),
        Normalization(escaped_slashes=EscapedSlashes.REJECT),
        Normalization(escaped_slashes=EscapedSlashes.UNESCAPE, merge_slashes=True),
        Normalization(path=False),
        Normalization(path=False, merge_slashes=True),
    ],
)
def test_the_mesh_says_how_paths_are_normalised(branch: str, how: Normalization, tmp_path: Path) -> None:
    with running(branch, tmp_path, h2=False, how=how) as front:
        for target in (*TARGETS, "/a%2f../b", "/a%5C%2e%2E/b", *generated(40)):
            found = front.http1(target)
            assert found in acceptable(branch, target, how), f"{target!r}, expected {expected(target, how)!r}"


@pytest.mark.parametrize("enforced", [True, False])
def test_haproxy_takes_the_lines_for_every_form_that_the_mesh_may_ask_for(
    branch: str, enforced: bool, tmp_path: Path
) -> None:
    able = capabilities(probe(binaries.haproxy(branch)).version)
    file = tmp_path / "haproxy.cfg"
    for form in itertools.product((True, False), (True, False), EscapedSlashes, Underscores):
        how = Normalization(*form)
        file.write_text(configuration(authorisation(tmp_path, how, enforced=enforced), able, f"unix@{tmp_path}/s"))
        command = [binaries.haproxy(branch), "-c", "-f", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert said.returncode == 0, f"{how}: {said.stderr}"


@pytest.mark.parametrize("underscores", [Underscores.REJECT, Underscores.DROP])
def test_headers_with_an_underscore_are_refused_or_dropped_as_the_mesh_says(
    branch: str, underscores: Underscores, tmp_path: Path
) -> None:
    with running(branch, tmp_path, h2=False, how=Normalization(underscores=underscores)) as front:
        assert front.http1("/a", "X-Role: admin") == "/a"
        dropped = underscores is Underscores.DROP and branch != "2.2"
        assert front.http1("/a", "X_Role: admin") == ("/a" if dropped else None)


@pytest.mark.parametrize("h2", [False, True])
@pytest.mark.parametrize(
    "how", [CONSULS_DEFAULT, Normalization(escaped_slashes=EscapedSlashes.UNESCAPE, merge_slashes=True)]
)
def test_where_nothing_is_enforced_a_request_goes_on_as_it_was_sent_and_is_judged_by_its_normal_form(
    branch: str, how: Normalization, h2: bool, tmp_path: Path
) -> None:
    with running(branch, tmp_path, h2=h2, how=how, enforced=False) as front:
        for target in (*TARGETS, "/a%2f../b?c%zz", *generated(60)):
            if h2 and target == "*":
                # As above: HAProxy itself takes it for the root.
                continue
            found = front.http2_path(target) if h2 else front.http1(target)
            if found is None:
                # HAProxy itself takes it for no request.
                assert expected(target, how) is None, target
                continue
            seen, verdict, sent = found.split(" ")
            assert sent.removeprefix("https://h") == target, target
            wanted = acceptable(branch, target, how)
            assert (None if verdict == FORMLESS else seen) in wanted, f"{target!r}: {found!r}, expected {wanted}"
