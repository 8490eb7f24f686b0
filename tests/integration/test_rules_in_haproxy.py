"""HAProxy decides compiled rules alone: its decisions against `decide`, request by request."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import capabilities
from hcc.haproxy.map_text import map_file
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.render_rules import MOST_LINES, needs_experimental, refused, rule_lines
from hcc.haproxy.request_rules import rule_entries
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.mesh.request import Request
from hcc.mesh.rules import RuleSet
from tests import binaries

pytestmark = pytest.mark.integration
SEED = 20261125
SETS, REQUESTS = 40, 12
CALLER = ServiceIdentity("td", "web", "dc1")


# ---- what is asked


PATHS = (
    PathRule(PathMatch.EXACT, "/"),
    PathRule(PathMatch.EXACT, "/a"),
    PathRule(PathMatch.PREFIX, "/a"),
    PathRule(PathMatch.PREFIX, "/a/b"),
    PathRule(PathMatch.REGEX, "/a|/b"),
    PathRule(PathMatch.REGEX, "(?i)/A/[a-c]+"),
    PathRule(PathMatch.REGEX, r"/(?P<first>\w+)/\d{1,3}"),
    PathRule(PathMatch.EXACT, "/'q'"),
    PathRule(PathMatch.PREFIX, "/$x"),
    PathRule(PathMatch.EXACT, "/-i"),
)
VALUES = ("admin", "Admin", "-i", "}", "a'b", 'a"b', "a\\b", "$HOME", "#x", "a b", "%[src]", "a,b", "caf\u00e9")
HEADERS = (
    *(
        HeaderRule("x-role", kind, value, invert, ignore_case)
        for kind in (HeaderMatch.EXACT, HeaderMatch.PREFIX, HeaderMatch.SUFFIX, HeaderMatch.CONTAINS)
        for value in VALUES
        for invert in (False, True)
        for ignore_case in (False, True)
    ),
    HeaderRule("x-role", HeaderMatch.PRESENT),
    HeaderRule("x-role", HeaderMatch.PRESENT, invert=True),
    HeaderRule("x-role", HeaderMatch.REGEX, "a[dD]min(,.*)?"),
    HeaderRule("x-role", HeaderMatch.REGEX, "(?i)admin|", invert=True),
    HeaderRule("host", HeaderMatch.PREFIX, "shop."),
)
METHODS = (("GET",), ("PUT", "POST"), ("GET", "DELETE"))
TARGETS = (
    "/",
    "/a",
    "/a/",
    "/A",
    "/ab",
    "/a/b",
    "/b",
    "/a/B",
    "/A/abc",
    "/x_1/12",
    "/x/1234",
    "/'q'",
    "/$x",
    "/-i",
    "/a?/b",
)


def permission(random_: random.Random) -> Permission:
    headers = tuple(random_.choices(HEADERS, k=random_.choice((0, 0, 1, 2))))
    path = random_.choice(PATHS) if random_.random() < 0.7 else None
    methods = random_.choice(METHODS) if random_.random() < 0.3 else ()
    return Permission(random_.random() < 0.5, path, headers, methods)


def request(random_: random.Random) -> Request:
    values = random_.choices(
        (*VALUES, "", "ADMIN", "xadmin", "adminx", " admin ", "a}b"), k=random_.choice((0, 1, 1, 1, 2, 3))
    )
    headers = (("Host", random_.choice(("shop.example", "other"))), *(("X-Role", value) for value in values))
    return Request(random_.choice(("GET", "PUT", "POST", "DELETE", "get")), random_.choice(TARGETS), headers)


def policies(random_: random.Random) -> list[Policy]:
    """Policies whose rules do not decide alike for all requests."""
    found: list[Policy] = []
    while len(found) < SETS:
        permissions = tuple(permission(random_) for _ in range(random_.randint(1, 4)))
        intention = Intention("web", Action.PERMISSIONS, 9, permissions)
        policy = Policy("db", "td", (intention,), random_.random() < 0.5, http=True)
        if verdict_of(policy, CALLER).rules is not None:
            found.append(policy)
    return found


CONFIGURATION = """
global
  {experimental}
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend public
  bind fd@{fd}
  http-request set-var(txn.verdict) req.hdr(x-set)
{rules}
  http-request deny deny_status 403 if {refused}
  http-request return status 200
"""


@contextmanager
def running(branch: str, sets: Sequence[RuleSet], directory: Path) -> Iterator[int]:
    headers = tuple(sorted({header.name for each in sets for rule in each.rules for header in rule.headers}))
    (directory / "rules.map").write_text(map_file(rule_entries(sets, headers)))
    asked = Authorisation("agents", ("/s",), Mode.HTTP, "/i", "/v", str(directory / "rules.map"), headers)
    able = capabilities(probe(binaries.haproxy(branch)).version)
    rules = "\n".join(rule_lines(asked, "txn.verdict", able))
    experimental = "expose-experimental-directives" if needs_experimental(asked, able) else ""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = CONFIGURATION.format(
            fd=listener.fileno(), rules=rules, refused=refused(asked, "txn.verdict"), experimental=experimental
        )
        (directory / "haproxy.cfg").write_text(text)
        log = (directory / "haproxy.log").open("wb")
        command = [binaries.haproxy(branch), "-db", "-f", str(directory / "haproxy.cfg")]
        with log, subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(listener.fileno(),)) as process:
            try:
                yield listener.getsockname()[1]
                assert process.poll() is None, (directory / "haproxy.log").read_text()
            finally:
                process.kill()


def status(port: int, asked: Request, name: str) -> int:
    lines = [f"{asked.method} {asked.path} HTTP/1.1", f"X-Set: {name}", "Connection: close"]
    lines += [f"{header}: {value}" for header, value in asked.headers]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall("\r\n".join((*lines, "", "")).encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_haproxy_decides_compiled_rules_as_we_do(branch: str, tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    wanted = {verdict_of(policy, CALLER).rules: policy for policy in policies(random_)}
    sets = [rules for rules in wanted if rules is not None]
    allowed = 0
    with running(branch, sets, tmp_path) as port:
        for rules in sets:
            for _ in range(REQUESTS):
                asked = request(random_)
                verdict = decide(wanted[rules], CALLER, asked)
                assert status(port, asked, rules.name) == (200 if verdict.allowed else 403), f"{verdict}\n{asked}"
                allowed += verdict.allowed
        assert status(port, Request("GET", "/a"), "rules-no-such-set") == 403
        assert status(port, Request("GET", "/a", (("X-Role", "a"),) * (MOST_LINES + 1)), sets[0].name) == 400
    assert SETS <= allowed <= SETS * (REQUESTS - 1)
