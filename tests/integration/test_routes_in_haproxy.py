"""HAProxy sends requests their way and changes them as Consul's Envoy would, request by request."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

import pytest

from hcc.consul.conditions import pattern_faults
from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import Capabilities, Feature, capabilities, capabilities_of
from hcc.haproxy.model import Mode, TcpBind, UpstreamListener, WayChanges, WayTo
from hcc.haproxy.render_routes import (
    MOST_LINES,
    answer_changes,
    answer_timeouts,
    open_connections,
    request_changes,
    senders,
    way_lines,
)
from hcc.haproxy.request_rules import bound
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, Changes, HeaderChanges, Match, QueryMatch, QueryRule, Rewrite
from hcc.mesh.ways import MOST_CONDITIONS, MOST_METHODS, SHARES
from tests import binaries

pytestmark = pytest.mark.integration
SEED = 20261129
ROUTES, REQUESTS = 200, 600
LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
Headers = tuple[tuple[str, str], ...]

PATHS = (
    PathRule(PathMatch.EXACT, "/"),
    PathRule(PathMatch.EXACT, "/a"),
    PathRule(PathMatch.PREFIX, "/a"),
    PathRule(PathMatch.PREFIX, "/a/B"),
    PathRule(PathMatch.REGEX, "/a|/b"),
    PathRule(PathMatch.REGEX, "(?i)/A/[a-c]+"),
    PathRule(PathMatch.REGEX, r"/(?P<first>\w+)/\d{1,3}"),
    PathRule(PathMatch.REGEX, "^/'q'.*$"),
    PathRule(PathMatch.EXACT, "/'q'"),
    PathRule(PathMatch.PREFIX, "/$x"),
    PathRule(PathMatch.EXACT, "/-i"),
    PathRule(PathMatch.EXACT, "/%41"),
)
VALUES = ("admin", "Admin", "-i", "}", "a'b", 'a"b', "a\\b", "$HOME", "#x", "a b", "%[src]", "a,b", "caf\u00e9", "if")
HEADERS = (
    *(
        HeaderRule("x-role", kind, value, invert, ignore_case)
        for kind in (HeaderMatch.EXACT, HeaderMatch.PREFIX, HeaderMatch.SUFFIX, HeaderMatch.CONTAINS)
        for value in VALUES
        for invert in (False, True)
        for ignore_case in (False, True)
    ),
    *(HeaderRule("x-role", HeaderMatch.PRESENT, invert=invert) for invert in (False, True)),
    *(HeaderRule("x-team", HeaderMatch.REGEX, "a[dD]min(,.*)?", invert=invert) for invert in (False, True)),
    HeaderRule("x-team", HeaderMatch.REGEX, "(?i)admin|"),
    HeaderRule("host", HeaderMatch.PREFIX, "shop."),
)
QUERIES = (
    QueryRule("v", QueryMatch.PRESENT),
    QueryRule("v", QueryMatch.EXACT, "2"),
    QueryRule("v", QueryMatch.EXACT, "a=b"),
    QueryRule("v", QueryMatch.REGEX, ".*2"),
    QueryRule("v", QueryMatch.REGEX, "(?i)[a-z]*"),
    QueryRule("v", QueryMatch.REGEX, "[^x]+"),
    QueryRule("v", QueryMatch.REGEX, "^[0-9]+$"),
    QueryRule("v", QueryMatch.REGEX, "^[0-9]+"),
    QueryRule("v", QueryMatch.REGEX, "[0-9]+$"),
    QueryRule("v", QueryMatch.REGEX, "^$"),
    QueryRule("v", QueryMatch.REGEX, "(^a|b)=?(^b|c$)?"),
    QueryRule("v", QueryMatch.REGEX, "(?i)a?=?^[b$^]*$"),
    QueryRule("w.x", QueryMatch.EXACT, "}"),
    QueryRule("-i", QueryMatch.PRESENT),
)
METHODS = (("GET",), ("PUT", "POST"), ("GET", "DELETE"), ("M-SEARCH",))
TARGETS = (
    "/", "/a", "/a/", "/A", "/ab", "/a/b", "/a/B", "/b", "/A/abc", "/x_1/12", "/x/1234", "/'q'", "/'q'x", "/$x", "/-i",
    "/%41", "//a", "/a;v=2",
)  # fmt: skip
ASKED = (
    "", "?", "?v", "?v=", "?v=2", "?v=12&v=3", "?v=3&v=2", "?w=1&v=2", "?xv=2", "?v=1&w=2", "?v;v=2", "?v=a=b", "?V=2",
    "?v=%32", "?wax=}", "?w.x=}", "?-i", "?a&&v=2", "?v=ABC&w.x=}", "?v=x",
    "?v=12", "?v=12&w=1", "?w&v=12", "?v&w", "?w&v", "?v=ac", "?v=bc&w", "?a&v=a=c", "?v=$^", "?w&v=B&w", "?v=v=b",
)  # fmt: skip


def a_match(random_: random.Random) -> Match:
    path = random_.choice(PATHS) if random_.random() < 0.5 else None
    return Match(
        path,
        ignore_case=path is not None and path.kind is not PathMatch.REGEX and random_.random() < 0.3,
        headers=tuple(dict.fromkeys(random_.choices(HEADERS, k=random_.choice((0, 0, 1, 1, 2))))),
        query=tuple(dict.fromkeys(random_.choices(QUERIES, k=random_.choice((0, 0, 1, 2))))),
        methods=random_.choice(METHODS) if random_.random() < 0.3 else (),
    )


def a_request(random_: random.Random) -> tuple[str, str, Headers]:
    values = random_.choices((*VALUES, "", "ADMIN", "xadmin", "a}b"), k=random_.choice((0, 1, 1, 1, 2, 3, MOST_LINES)))
    teams = random_.choices((*VALUES, "", "ADMIN"), k=random_.choice((0, 1, 2)))
    headers = (
        ("Host", random_.choice(("shop.example", "other"))),
        *(("X-Role", value) for value in values),
        *(("X-Team", value) for value in teams),
    )
    method = random_.choice(("GET", "GET", "PUT", "POST", "DELETE", "M-SEARCH"))
    return method, random_.choice(TARGETS) + random_.choice(ASKED), headers


# ---- as Envoy matches: source/common/router/config_impl.cc, config_utility.cc and http/header_utility.cc


def fulfils(match: Match, method: str, target: str, headers: Headers) -> bool:
    path, _, query = target.partition("?")
    return (
        (match.path is None or path_is(match.path, path, match.ignore_case))
        and (not match.methods or method in match.methods)
        and all(header_is(rule, headers) for rule in match.headers)
        and all(parameter_is(rule, query) for rule in match.query)
    )


def path_is(rule: PathRule, path: str, ignore_case: bool) -> bool:
    value = rule.value
    if ignore_case:
        value, path = value.translate(LOWER), path.translate(LOWER)
    if rule.kind is PathMatch.EXACT:
        return path == value
    return path.startswith(value) if rule.kind is PathMatch.PREFIX else bool(re.fullmatch(value, path, re.ASCII))


def header_is(rule: HeaderRule, headers: Headers) -> bool:
    found = [value for name, value in headers if name.lower() == rule.name]
    if rule.kind is HeaderMatch.PRESENT or not found:
        return rule.kind is HeaderMatch.PRESENT and bool(found) is not rule.invert
    value, expected = ",".join(found), rule.value
    if rule.ignore_case:
        value, expected = value.translate(LOWER), expected.translate(LOWER)
    matches = {
        HeaderMatch.EXACT: value == expected,
        HeaderMatch.PREFIX: value.startswith(expected),
        HeaderMatch.SUFFIX: value.endswith(expected),
        HeaderMatch.CONTAINS: expected in value,
    }
    if rule.kind is HeaderMatch.REGEX:
        return bool(re.fullmatch(expected, value, re.ASCII)) is not rule.invert
    return matches[rule.kind] is not rule.invert


def parameter_is(rule: QueryRule, query: str) -> bool:
    pairs = (pair.partition("=") for pair in query.split("&"))
    value = next((value for name, _, value in pairs if name == rule.name), None)
    if value is None or rule.kind is QueryMatch.PRESENT:
        return value is not None
    return value == rule.value if rule.kind is QueryMatch.EXACT else bool(re.fullmatch(rule.value, value, re.ASCII))


# ---- HAProxy


CONFIGURATION = """
global
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend up
  bind fd@{fd}
{ways}
{more}
{senders}
  default_backend way0
{backends}
"""


def listener(*ways: tuple[Match, int]) -> UpstreamListener:
    """One with these ways, each to a backend of its own; without any, to the first."""
    found = tuple(WayTo(match, below, f"way{number}") for number, (match, below) in enumerate(ways, start=1))
    return UpstreamListener("up", "web", TcpBind("127.0.0.1", 1), Mode.HTTP, "way0", 1, ways=found)


@contextmanager
def running(
    branch: str, upstream: UpstreamListener, backends: Sequence[str], directory: Path, more: str = ""
) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        text = CONFIGURATION.format(
            fd=listening.fileno(),
            ways="\n".join(way_lines(upstream, bound(capabilities_of(probe(binaries.haproxy(branch)))))),
            more=more,
            senders="\n".join(senders(upstream)),
            backends="\n".join(
                f"backend {name}\n{lines}" for name, lines in zip(upstream.backends, backends, strict=True)
            ),
        )
        (directory / "haproxy.cfg").write_text(text)
        log = (directory / "haproxy.log").open("wb")
        command = [binaries.haproxy(branch), "-db", "-f", str(directory / "haproxy.cfg")]
        with log, subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(listening.fileno(),)) as process:
            try:
                with socket.create_connection(listening.getsockname(), timeout=10) as sock:
                    yield sock
                assert process.poll() is None, (directory / "haproxy.log").read_text()
            finally:
                process.kill()


def ask(sock: socket.socket, method: str, target: str, headers: Headers) -> tuple[int, dict[str, list[str]]]:
    """Status and headers of an answer without a body."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Content-Length: 0"]
    sock.sendall("\r\n".join((*lines, "", "")).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(65_536)
        assert data, answer
        answer += data
    status, *found = answer.decode().partition("\r\n\r\n")[0].split("\r\n")
    parsed: dict[str, list[str]] = {}
    for line in found:
        name, _, value = line.partition(":")
        parsed.setdefault(name.lower(), []).append(value.strip())
    return int(status.split()[1]), parsed


def answers(upstream: UpstreamListener) -> list[str]:
    """Backends that answer by themselves which one they are."""
    return [f"  http-request return status 200 hdr x-way {name}" for name in upstream.backends]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_request_takes_the_first_route_that_speaks_of_it(branch: str, tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    matches = [a_match(random_) for _ in range(ROUTES)]
    random_.shuffle(matches)
    # Those that speak of much would leave nothing to others.
    matches.sort(key=lambda one: -len(one.headers) - len(one.query) - bool(one.path) - bool(one.methods))
    upstream = listener(*((match, SHARES) for match in matches))
    taken = Counter[str]()
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        for _ in range(REQUESTS):
            request = a_request(random_)
            number = next((at for at, one in enumerate(matches, start=1) if fulfils(one, *request)), 0)
            _, headers = ask(sock, *request)
            assert headers["x-way"] == [f"way{number}"], (request, number and matches[number - 1])
            taken[f"way{number}"] += 1
    assert len(taken) > ROUTES / 4


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_each_condition_alone_is_looked_at_as_envoy_does(branch: str, tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    alone = (
        *(Match(path, ignore_case=ignore) for path in PATHS for ignore in (False, path.kind is not PathMatch.REGEX)),
        *(Match(headers=(header,)) for header in HEADERS),
        *(Match(query=(query,)) for query in QUERIES),
        *(Match(methods=methods) for methods in METHODS),
    )
    matches = tuple(dict.fromkeys(alone))
    # Which route a request asks for stands in a header of its own.
    routes = [
        Match(
            one.path,
            one.ignore_case,
            (HeaderRule("x-n", HeaderMatch.EXACT, str(n)), *one.headers),
            one.query,
            one.methods,
        )
        for n, one in enumerate(matches, start=1)
    ]
    upstream = listener(*((match, SHARES) for match in routes))
    seen = Counter[bool]()
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        for number, match in enumerate(matches, start=1):
            targets = [f"{path}{query}" for path in TARGETS for query in ASKED] if match.path or match.query else ["/"]
            for target in random_.sample(targets, min(len(targets), 60)):
                for _ in range(12 if match.headers else 1):
                    method, _, headers = a_request(random_)
                    expected = fulfils(match, method, target, headers)
                    _, got = ask(sock, method, target, (*headers, ("X-N", str(number))))
                    assert got["x-way"] == [f"way{number if expected else 0}"], (match, method, target, headers)
                    seen[expected] += 1
    assert min(seen.values()) > 400


# But for 2.8, whose build of the Python package has a PCRE that cannot be told how much to try (README, Limits).
@pytest.mark.parametrize("branch", sorted({*binaries.HAPROXY_BRANCHES} - {"2.8"}))
def test_expressions_that_try_for_ever_keep_haproxy_from_nothing(branch: str, tmp_path: Path) -> None:
    assert bound(capabilities_of(probe(binaries.haproxy(branch))))
    paths = (PathRule(PathMatch.REGEX, f"/(a|aa|[a-z]+)+(x|{number})") for number in range(120))
    upstream = listener(*((Match(path), SHARES) for path in paths), (Match(PathRule(PathMatch.PREFIX, "/a")), SHARES))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        # The watchdog kills HAProxy after two seconds.
        assert ask(sock, "GET", f"/{'a' * 200}!", (("Host", "h"),))[1]["x-way"] == ["way121"]
        assert ask(sock, "GET", "/aa7", (("Host", "h"),))[1]["x-way"] == ["way8"]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
@pytest.mark.parametrize("invert", [False, True])
def test_where_pcre_gives_up_at_a_header_no_route_matches(branch: str, invert: bool, tmp_path: Path) -> None:
    header = HeaderRule("x-role", HeaderMatch.REGEX, "([a-z]+)+!|[a-z]+0", invert)
    upstream = listener((Match(headers=(header,)), SHARES))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        # What it is in truth counts where it can be found out.
        for value, matches in (("a0", not invert), ("a1", invert), ("", invert), ("a" * 60 + "0", False)):
            way = ask(sock, "GET", "/", (("Host", "h"), ("X-Role", value)))[1]["x-way"]
            assert way == ["way1" if matches else "way0"], value
        assert ask(sock, "GET", "/", (("Host", "h"),))[1]["x-way"] == ["way0"]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_as_many_ends_of_a_parameter_as_are_understood_are_taken(branch: str, tmp_path: Path) -> None:
    listed = "|".join(f"^{number}$" for number in range(1_000, 1_500))
    most = QueryRule("." * 2_048, QueryMatch.REGEX, "^" * 1_600)
    assert not pattern_faults(listed)
    assert not pattern_faults(most.value)
    upstream = listener((Match(query=(most,)), SHARES), (Match(query=(QueryRule("v", most.kind, listed),)), SHARES))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        for value, way in (("1499", "way2"), ("1500", "way0"), ("11499", "way0")):
            assert ask(sock, "GET", f"/?v={value}&w", (("Host", "h"),))[1]["x-way"] == [way]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_shares_are_drawn_for_each_request(branch: str, tmp_path: Path) -> None:
    upstream = listener((EVERY_REQUEST, 1_000), (EVERY_REQUEST, 1_001), (EVERY_REQUEST, SHARES))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        taken = Counter(ask(sock, "GET", "/", (("Host", "h"),))[1]["x-way"][0] for _ in range(3_000))
    assert 200 < taken["way1"] < 400
    assert taken["way2"] < 10
    assert taken["way0"] == 0


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_as_long_a_regular_expression_and_as_many_routes_as_may_be_are_taken(branch: str, tmp_path: Path) -> None:
    long = Match(PathRule(PathMatch.REGEX, f"/{'[ab]' * 400}{'c' * 3_000}"))
    upstream = listener((long, SHARES), *((Match(PathRule(PathMatch.EXACT, f"/{n}")), SHARES) for n in range(500)))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        for path, way in ((f"/{'ab' * 200}{'c' * 3_000}", "way1"), ("/499", "way501"), ("/500", "way0")):
            assert ask(sock, "GET", path, (("Host", "h"),))[1]["x-way"] == [way]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_connections_to_all_backends_are_counted_together(branch: str, tmp_path: Path) -> None:
    upstream = listener(*((Match(PathRule(PathMatch.EXACT, path)), SHARES) for path in ("/a", "/b")))
    lines, sample = open_connections(upstream.backends)
    refusal = "\n".join((*lines, f"  http-request deny deny_status 503 if {{ {sample} ge 3 }}"))
    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as stack:
        backends = [f"  server s 127.0.0.1:{silent.getsockname()[1]}"] * 3
        with running(branch, upstream, backends, tmp_path, refusal) as sock:
            for path in ("/a", "/b", "/"):
                waiting = stack.enter_context(socket.create_connection(sock.getpeername(), timeout=10))
                waiting.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                stack.enter_context(silent.accept()[0])
            assert ask(sock, "GET", "/a", (("Host", "h"),))[0] == 503


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
@pytest.mark.parametrize(("kind", "value"), [(QueryMatch.EXACT, "2"), (QueryMatch.REGEX, "[0-9]+")])
def test_a_parameter_is_found_behind_thousands_of_others(
    branch: str, kind: QueryMatch, value: str, tmp_path: Path
) -> None:
    upstream = listener((Match(query=(QueryRule("v", kind, value),)), SHARES))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        for others in ("a&" * 6_000, "va=2&" * 2_500, "&" * 12_000, f"w={'x' * 12_000}&"):
            assert ask(sock, "GET", f"/?{others}v=2", (("Host", "h"),))[1]["x-way"] == ["way1"]
            assert ask(sock, "GET", f"/?v=2&{others}", (("Host", "h"),))[1]["x-way"] == ["way1"]
            assert ask(sock, "GET", f"/?{others}v=x&v=2", (("Host", "h"),))[1]["x-way"] == ["way0"]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_as_many_conditions_as_a_route_may_have_fit_into_a_line(branch: str, tmp_path: Path) -> None:
    headers = tuple(HeaderRule(f"x-{n}", HeaderMatch.EXACT, "a", invert=True) for n in range(MOST_CONDITIONS))
    methods = ("GET", *(f"M{'-' * n}" for n in range(1, MOST_METHODS)))
    match = Match(PathRule(PathMatch.EXACT, "/a"), ignore_case=True, headers=headers, methods=methods)
    upstream = listener((match, 1), (match, SHARES))
    sent = (("Host", "h"), *((header.name, "b") for header in headers))
    with running(branch, upstream, answers(upstream), tmp_path) as sock:
        assert ask(sock, "GET", "/A", sent)[1]["x-way"] == ["way2"]
        assert ask(sock, "GET", "/A", (*sent[:-1], ("x-19", "a")))[1]["x-way"] == ["way0"]


# ---- changes


class Echo(BaseHTTPRequestHandler):
    """Tells path and headers of what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Path", self.path)
        for name in ("x-set", "x-add", "x-gone"):
            for value in self.headers.get_all(name, ()):
                self.send_header(f"X-Got-{name}", value)
        self.send_header("Server-Says", "old")
        self.send_header("X-Back", "one")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def echo() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def lines_of(changes: Changes, able: Capabilities, port: int) -> str:
    way = (WayChanges(1, (changes,)),)
    lines = (*request_changes(way), *answer_timeouts(way, able), *answer_changes(way))
    # As where answers are checked.
    return "\n".join((*lines, "  http-response allow if TRUE", f"  server s 127.0.0.1:{port}"))


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_paths_and_headers_are_changed_as_envoy_does(branch: str, tmp_path: Path) -> None:
    able = capabilities(probe(binaries.haproxy(branch)).version)
    told = (("x-set", 'it\'s "a"  $b #c   \\x41 }'),)
    changes = Changes(
        rewrite=Rewrite("/%41'new", "/old"),
        timeout_ms=5_000,
        request=HeaderChanges(("x-gone",), told, (("x-add", "caf\u00e9"), ("x-add", "if"))),
        response=HeaderChanges(("server-says",), (("x-front", "a b"),), (("x-back", "two"),)),
    )
    upstream = listener((Match(PathRule(PathMatch.PREFIX, "/old"), ignore_case=True), SHARES))
    with echo() as origin:
        backends = [lines_of(changes, able, origin) for _ in upstream.backends]
        with running(branch, upstream, backends, tmp_path) as sock:
            sent = (("Host", "h"), ("X-Gone", "x"), ("X-Set", "y"), ("X-Set", "z"), ("X-Add", "first"))
            for target, path in (
                ("/old/x?q=/old", "/%41'new/x?q=/old"),
                ("/OLD", "/%41'new"),
                ("/olds", "/%41'news"),
            ):
                _, got = ask(sock, "GET", target, sent)
                assert got["x-path"] == [path]
                assert got["x-got-x-set"] == [told[0][1]]
                assert [value.encode("latin-1", "replace") for value in got["x-got-x-add"]][::2] == [
                    b"first",
                    b"if",
                ]
                assert "x-got-x-gone" not in got
                assert "server-says" not in got
                assert (got["x-front"], got["x-back"]) == (["a b"], ["one", "two"])
            _, got = ask(sock, "GET", "/other", sent)
            assert (got["x-path"], got["server-says"], got["x-back"]) == (["/other"], ["old"], ["one"])
            assert got["x-got-x-set"] == ["y", "z"]


@pytest.mark.parametrize(
    ("rewrite", "target", "path"),
    [
        (Rewrite("/whole"), "/a/b?c", "/whole?c"),
        (Rewrite("/x/", "/a"), "/a/b", "/x//b"),
        (Rewrite("/x", "/"), "/", "/x"),
        (Rewrite("/x", "/"), "/b?c", "/xb?c"),
    ],
)
def test_a_rewrite_replaces_what_was_matched(rewrite: Rewrite, target: str, path: str, tmp_path: Path) -> None:
    upstream = listener((EVERY_REQUEST, SHARES))
    with echo() as origin:
        lines = lines_of(Changes(rewrite=rewrite), capabilities(probe(binaries.haproxy("2.8")).version), origin)
        with running("2.8", upstream, [lines, lines], tmp_path) as sock:
            assert ask(sock, "GET", target, (("Host", "h"),))[1]["x-path"] == [path]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_route_s_own_time_is_waited_for_an_answer_where_haproxy_can(branch: str, tmp_path: Path) -> None:
    able = capabilities(probe(binaries.haproxy(branch)).version)
    upstream = listener((EVERY_REQUEST, SHARES))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lines = lines_of(Changes(timeout_ms=100), able, silent.getsockname()[1])
        lines = f"  timeout server 60s\n{lines}"
        with running(branch, upstream, [lines, lines], tmp_path) as sock:
            sock.settimeout(10 if able.has(Feature.SET_TIMEOUT) else 0.5)
            if able.has(Feature.SET_TIMEOUT):
                assert ask(sock, "GET", "/", (("Host", "h"),))[0] == 504
            else:
                with pytest.raises(TimeoutError):
                    ask(sock, "GET", "/", (("Host", "h"),))
