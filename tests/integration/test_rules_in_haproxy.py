"""HAProxy can decide compiled rules alone: words for them, and its decisions against `decide`, request by request.

The words are `rule_lines` below, for requests whose path is in its normal form already (test_request_paths.py).
"""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.mesh.request import Request
from hcc.mesh.rules import Rule, RuleSet
from tests import binaries

pytestmark = pytest.mark.integration
SEED = 20261125
SETS, REQUESTS = 40, 12
CALLER = ServiceIdentity("td", "web", "dc1")
# Lines of one header that are joined, as rules see them joined; more are refused.
MOST_LINES = 4
_MATCHES = {
    PathMatch.EXACT: "str",
    PathMatch.PREFIX: "beg",
    HeaderMatch.EXACT: "str",
    HeaderMatch.PREFIX: "beg",
    HeaderMatch.SUFFIX: "end",
    HeaderMatch.CONTAINS: "sub",
    PathMatch.REGEX: "reg",
    HeaderMatch.REGEX: "reg",
}


# ---- words


def rule_lines(sets: Sequence[RuleSet]) -> Iterator[str]:
    """The lines that set txn.said to allow or deny, by the set that txn.set names."""
    headers = sorted({header.name for each in sets for rule in each.rules for header in rule.headers})
    variables = {name: f"txn.h{number}" for number, name in enumerate(headers)}
    for name, variable in variables.items():
        yield from _joined(name, variable)
    for each in sets:
        asked = f"{{ var(txn.set) -m str {each.name} }} !{{ var(txn.said) -m found }}"
        for number, rule in enumerate(each.rules):
            prefix = f"{each.name}-{number}"
            terms = []
            for position, (term, acl) in enumerate(_terms(rule, variables)):
                if acl:
                    yield f"acl {prefix}-{position} {acl}"
                terms.append(term.replace("ACL", f"{prefix}-{position}"))
            yield f"http-request set-var(txn.said) str({_word(rule.allow)}) if {asked} {' '.join(terms)}"
        yield f"http-request set-var(txn.said) str({_word(each.default_allow)}) if {asked}"


def _joined(name: str, variable: str) -> Iterator[str]:
    yield f"http-request deny deny_status 400 if {{ req.fhdr_cnt({name}) gt {MOST_LINES} }}"
    yield f"http-request set-var({variable}) req.fhdr({name},1) if {{ req.fhdr({name}) -m found }}"
    for line in range(2, MOST_LINES + 1):
        there = f"if {{ req.fhdr_cnt({name}) ge {line} }}"
        yield f"http-request set-var(txn.line) req.fhdr({name},{line}) {there}"
        yield f"http-request set-var({variable}) 'var({variable}),concat(\",\",txn.line)' {there}"


def _terms(rule: Rule, variables: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Conditions, and the ACL that one needs, if any: a pattern in braces could be taken for their end."""
    if rule.path is not None:
        yield "ACL", f"path -m {_MATCHES[rule.path.kind]} -- {_pattern(rule.path.kind, rule.path.value)}"
    if rule.methods:
        yield "ACL", f"method -m str -- {' '.join(map(_quoted, rule.methods))}"
    for header in rule.headers:
        variable = variables[header.name]
        if header.kind is HeaderMatch.PRESENT:
            yield f"{'!' * header.invert}{{ var({variable}) -m found }}", ""
            continue
        yield f"{{ var({variable}) -m found }}", ""
        flags = "-i " * header.ignore_case
        acl = f"var({variable}) -m {_MATCHES[header.kind]} {flags}-- {_pattern(header.kind, header.value)}"
        yield f"{'!' * header.invert}ACL", acl


def _pattern(kind: PathMatch | HeaderMatch, value: str) -> str:
    return _quoted(f"^(?:{value})$" if _MATCHES[kind] == "reg" else value)


def _quoted(text: str) -> str:
    assert text.isprintable()
    quoted = text.replace("'", "'\\''")
    return f"'{quoted}'"


def _word(allow: bool) -> str:
    return "allow" if allow else "deny"


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
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend public
  bind fd@{fd}
  http-request set-var(txn.set) req.hdr(x-set)
{rules}
  http-request deny deny_status 403 unless {{ var(txn.said) -m str allow }}
  http-request return status 200
"""


@contextmanager
def running(branch: str, sets: Sequence[RuleSet], directory: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rules = "\n".join(f"  {line}" for line in rule_lines(sets))
        (directory / "haproxy.cfg").write_text(CONFIGURATION.format(fd=listener.fileno(), rules=rules))
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
        assert status(port, Request("GET", "/a"), "no-such-set") == 403
        assert status(port, Request("GET", "/a", (("X-Role", "a"),) * (MOST_LINES + 1)), sets[0].name) == 400
    assert SETS <= allowed <= SETS * (REQUESTS - 1)
