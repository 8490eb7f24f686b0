"""HAProxy decides compiled rules alone: its decisions against `decide`, request by request."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import capabilities_of
from hcc.haproxy.map_text import map_file
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.render_rules import needs_experimental, refused, rule_lines
from hcc.haproxy.request_rules import bound, is_small, rule_entries
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, Verdict, decide, rule_sets, verdict_of
from hcc.mesh.patterns import MAX_DEPTH, compiled_bytes
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.mesh.request import CONSULS_DEFAULT, LookedAt, Request, RequestError, normalised
from hcc.mesh.request import METHODS as KNOWN_METHODS
from hcc.mesh.rules import ALLOW, RuleSet, looked_at
from tests import binaries

pytestmark = pytest.mark.integration
SEED = 20261125
SETS, REQUESTS = 40, 12
CALLER = ServiceIdentity("td", "web", "dc1")
HOST = ("Host", "h")


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
# By kind, as of some there are many more than of others.
HEADERS = (
    *(
        tuple(
            HeaderRule("x-role", kind, value, invert, ignore_case)
            for value in VALUES
            for invert in (False, True)
            for ignore_case in (False, True)
        )
        for kind in (HeaderMatch.EXACT, HeaderMatch.PREFIX, HeaderMatch.SUFFIX, HeaderMatch.CONTAINS)
    ),
    (HeaderRule("x-role", HeaderMatch.PRESENT), HeaderRule("x-role", HeaderMatch.PRESENT, invert=True)),
    (
        HeaderRule("x-team", HeaderMatch.REGEX, "a[dD]min(,.*)?"),
        HeaderRule("x-team", HeaderMatch.REGEX, "(?i)admin|", invert=True),
    ),
    (HeaderRule("x-many", HeaderMatch.PRESENT), HeaderRule("x-many", HeaderMatch.PRESENT, invert=True)),
    (HeaderRule("host", HeaderMatch.PREFIX, "shop."), HeaderRule("host", HeaderMatch.PREFIX, "shop.", invert=True)),
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
    headers = tuple(random_.choice(kind) for kind in random_.choices(HEADERS, k=random_.choice((0, 0, 1, 2))))
    path = random_.choice(PATHS) if random_.random() < 0.7 else None
    methods = random_.choice(METHODS) if random_.random() < 0.3 else ()
    return Permission(random_.random() < 0.5, path, headers, methods)


def request(random_: random.Random) -> Request:
    values = random_.choices(
        (*VALUES, "", "ADMIN", "xadmin", "adminx", " admin ", "a}b"), k=random_.choice((0, 1, 1, 1, 2, 3))
    )
    headers = (
        ("Host", random_.choice(("shop.example", "other"))),
        *(("X-Role", value) for value in values),
        *(("X-Team", value) for value in random_.choices((*VALUES, "", "ADMIN"), k=random_.choice((0, 1, 1)))),
        *(("X-Many", value) for value in random_.choices(VALUES, k=random_.choice((0, 0, 1, 2)))),
    )
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
    headers = looked_at(sets)
    able = capabilities_of(probe(binaries.haproxy(branch)))
    (directory / "rules.map").write_text(map_file(rule_entries(sets, headers, bound(able))))
    asked = Authorisation("agents", ("/s",), Mode.HTTP, "/i", "/v", str(directory / "rules.map"), headers)
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


def expected(verdict: Verdict, asked: Request, headers: tuple[LookedAt, ...]) -> int:
    """The status that a request gets of a HAProxy that looks at these headers for some caller or other."""
    try:
        normalised(asked, CONSULS_DEFAULT, headers)
    except RequestError:
        return 400
    return 200 if verdict.allowed else 403


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_haproxy_decides_compiled_rules_as_we_do(branch: str, tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    wanted = {verdict_of(policy, CALLER).rules: policy for policy in policies(random_)}
    sets = [rules for rules in wanted if rules is not None]
    headers = looked_at(sets)
    allowed = 0
    asked_of = {(one.name, one.kind, one.invert) for each in sets for rule in each.rules for one in rule.headers}
    assert asked_of == {(one.name, one.kind, one.invert) for kind in HEADERS for one in kind}
    with running(branch, sets, tmp_path) as port:
        for rules in sets:
            for _ in range(REQUESTS):
                asked = request(random_)
                verdict = decide(wanted[rules], CALLER, asked)
                assert status(port, asked, rules.name) == expected(verdict, asked, headers), f"{verdict}\n{asked}"
                allowed += verdict.allowed
        assert status(port, Request("GET", "/a", (HOST,)), "rules-no-such-set") == 403
    assert SETS <= allowed <= SETS * (REQUESTS - 1)


THERE = PathRule(PathMatch.EXACT, "/there")


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_what_looks_like_a_named_group_is_none_in_a_class(branch: str, tmp_path: Path) -> None:
    permission = Permission(True, PathRule(PathMatch.REGEX, "/[^](?P<b>]"))
    policy = Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, (permission,)),), False, http=True)
    (rules,) = rule_sets(policy)
    with running(branch, [rules], tmp_path) as port:
        for path, let_in in (("/a", True), ("/b", False), ("/P", False), ("/)", True)):
            asked = Request("GET", path, (HOST,))
            assert decide(policy, CALLER, asked).allowed == let_in
            assert status(port, asked, rules.name) == (200 if let_in else 403), path


DOUBTFUL = PathRule(PathMatch.REGEX, "/internal(/[^/]*)*")
DOUBTFUL_HEADER = HeaderRule("x-role", HeaderMatch.REGEX, r"(?:\w+,)*admin(?:,\w+)*")
ANYTHING = Permission(True, PathRule(PathMatch.PREFIX, "/"))


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
@pytest.mark.parametrize(
    ("permissions", "default"),
    [
        ((Permission(False, DOUBTFUL),), True),
        ((Permission(False, DOUBTFUL), ANYTHING), False),
        ((Permission(False, headers=(DOUBTFUL_HEADER,)), ANYTHING), False),
        ((Permission(False, DOUBTFUL), Permission(True, PathRule(PathMatch.REGEX, "/[^/].*"))), False),
    ],
)
def test_a_text_at_which_pcre_gives_up_gets_by_no_rule_that_denies(
    branch: str, permissions: tuple[Permission, ...], default: bool, tmp_path: Path
) -> None:
    policy = Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, permissions),), default, http=True)
    rules = verdict_of(policy, CALLER).rules
    assert rules is not None
    with running(branch, [rules], tmp_path) as port:
        by_path = any(one.path == DOUBTFUL for one in permissions)
        for length in (1, 50, 500, 2_000, 5_000, 12_000):
            path = "/internal" + "/" * length + "secret" if by_path else "/"
            role = "user" if by_path else "x," * (length // 3) + "admin" + ",x" * (length // 6)
            denied = Request("GET", path, (("Host", "h"), ("X-Role", role)))
            assert not decide(policy, CALLER, denied).allowed
            assert status(port, denied, rules.name) == 403, length
        for path in ("/public", "/public" + "/x" * 3_000):
            allowed = Request("GET", path, (("Host", "h"), ("X-Role", "user")))
            assert status(port, allowed, rules.name) == 200, len(path)


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
@pytest.mark.parametrize(
    ("paths", "header"),
    [
        (["(?P<v>/a)(?P<w>/b)", "/(?P<v>x)"], "(?P<v>admin)"),
        ([f"/(?P<{'v' * 40}>a)"], "admin"),
        # Three as large as `is_small` takes: single characters, classes, alternatives, groups in groups.
        (["/(ab){N}1", "/(ab){N}2", "/(xyz|ab){N}"], "(a{1,9999}){1,20}"),
        (["/([b-d][^e]){N}", "/(?:([b-d]|x)){N}", r"/(\d+\s?){1,N}"], "(((a|b){5}){2}){3}"),
        (["/(a?b*c+){N}", "/(a{1,3}|[b-e]{2,}){N}", "/((a)|(b)|(c)){N}"], "x*"),
        (["/(?:resource0|resource1)*" + "x" * 3_000, "/(a){N}", "/(b){N}"], "x*"),
        # As deep as they come.
        (["/" + "(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH], "(?:" * MAX_DEPTH + "b" + ")" * MAX_DEPTH),
    ],
)
def test_haproxy_takes_what_we_take_for_small_enough(
    branch: str, paths: list[str], header: str, tmp_path: Path
) -> None:
    permissions = [Permission(False, PathRule(PathMatch.REGEX, as_large(path, 17_500))) for path in paths]
    permissions.append(Permission(False, headers=(HeaderRule("x-role", HeaderMatch.REGEX, header),)))
    intention = Intention("web", Action.PERMISSIONS, 9, (*permissions, ANYTHING))
    rules = verdict_of(Policy("db", "td", (intention,), False, http=True), CALLER).rules
    assert rules is not None
    assert is_small(rules, looked_at([rules]))
    with running(branch, [rules], tmp_path) as port:
        assert status(port, Request("GET", "/public", (HOST, ("X-Role", "user"))), rules.name) == 200


def as_large(pattern: str, most: int) -> str:
    """With as many repetitions, N, as go into so many bytes of PCRE's."""
    if "N" not in pattern:
        return pattern
    sizes = (pattern.replace("N", str(count)) for count in range(1, 2_000))
    return [made for made in sizes if compiled_bytes(made) <= most][-1]


def test_a_set_that_haproxy_would_refuse_is_left_out() -> None:
    large = Permission(False, PathRule(PathMatch.REGEX, as_large("/(ab){N}", 19_000)))
    many = [replace(large, path=PathRule(PathMatch.REGEX, as_large(f"/{n}(ab){{N}}", 19_000))) for n in range(4)]
    sets = [
        verdict_of(Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, which),), True, http=True), CALLER).rules
        for which in ((large,), tuple(many), (Permission(False, PathRule(PathMatch.PREFIX, "/" + "a" * 12_000)),))
    ]
    found = rule_entries([rules for rules in sets if rules is not None], ())
    assert sets[0] is not None
    assert found
    assert all(sets[0].name in entry for entry in found)
    assert len(found) == 2


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_long_list_of_what_is_allowed_is_taken_and_costs_a_slow_denial_once(branch: str, tmp_path: Path) -> None:
    slow = Permission(False, PathRule(PathMatch.REGEX, "/([a-z0-9]+-?)+/admin"))
    tenants = "/api/v[0-9]+/tenants/[a-z0-9-]+/users/[0-9]+/orders"
    many = [Permission(True, PathRule(PathMatch.REGEX, f"{tenants}{n}/[0-9]+(/.*)?")) for n in range(150)]
    intention = Intention("web", Action.PERMISSIONS, 9, (slow, *many))
    policy = Policy("db", "td", (intention,), False, http=True)
    rules = verdict_of(policy, CALLER).rules
    assert rules is not None
    with running(branch, [rules], tmp_path) as port:
        assert status(port, Request("GET", "/api/v1/tenants/a-b/users/7/orders149/3", (HOST,)), rules.name) == 200
        assert status(port, Request("GET", "/a-b/admin", (HOST,)), rules.name) == 403
        # At each of 150 entries it would take as long: HAProxy's watchdog would kill it.
        assert status(port, Request("GET", "/" + "a" * 60 + "!", (HOST,)), rules.name) == 403
        assert status(port, Request("GET", "/api/v1/tenants/a-b/users/7/orders0/3", (HOST,)), rules.name) == 200


# A path that each of these rules looks at for long, and that it does not speak of.
SLOW = tuple(PathRule(PathMatch.REGEX, f"/api/.*/a.*/b.*/c.*/{number}[0-9]") for number in range(120))
SLOW_PATH = "/api" + "/a/b/c" * 1_000


def bounds(branch: str) -> bool:
    """Whether this HAProxy's PCRE can be told how much to try."""
    return bool(bound(capabilities_of(probe(binaries.haproxy(branch)))))


# But for 2.8, whose build of the Python package has a PCRE that cannot be told how much to try (README, Limits).
@pytest.mark.parametrize("branch", sorted({*binaries.HAPROXY_BRANCHES} - {"2.8"}))
def test_a_path_that_is_made_for_it_keeps_haproxy_from_nothing(branch: str, tmp_path: Path) -> None:
    assert bounds(branch)
    intention = Intention("web", Action.PERMISSIONS, 9, tuple(Permission(True, path=path) for path in SLOW))
    rules = verdict_of(Policy("db", "td", (intention,), False, http=True), CALLER).rules
    assert rules is not None
    with running(branch, [rules], tmp_path) as port:
        assert status(port, Request("GET", "/api/x/a/b/c/1197", (HOST,)), rules.name) == 200
        # The watchdog kills HAProxy after two seconds.
        assert status(port, Request("GET", SLOW_PATH, (HOST,)), rules.name) == 403
        assert status(port, Request("GET", "/api/x/a/b/c/1197", (HOST,)), rules.name) == 200


def refusing(*permissions: Permission) -> tuple[Policy, RuleSet]:
    """A policy that denies what these do and allows the rest, and its rules."""
    intention = Intention("web", Action.PERMISSIONS, 9, (*permissions, Permission(True)))
    policy = Policy("db", "td", (intention,), False, http=True)
    rules = verdict_of(policy, CALLER).rules
    assert rules is not None
    return policy, rules


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_rule_on_the_host_is_not_passed_by_with_an_absolute_target(branch: str, tmp_path: Path) -> None:
    policy, rules = refusing(Permission(False, headers=(HeaderRule("host", HeaderMatch.EXACT, "evil"),)))
    with running(branch, [rules], tmp_path) as port:
        for target in ("http://evil/", "/"):
            for headers, expected in (((), 400), ((("Host", "evil"),), 403)):
                asked = Request("GET", target, headers)
                assert status(port, asked, rules.name) == expected, asked
                assert not decide(policy, CALLER, asked).allowed
        # HAProxy compares the two itself.
        assert status(port, Request("GET", "http://evil/", (HOST,)), rules.name) == 400
        assert status(port, Request("GET", "http://h/", (HOST,)), rules.name) == 200


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_several_lines_of_a_header_whose_value_rules_look_at_are_refused(branch: str, tmp_path: Path) -> None:
    admin = HeaderRule("x-role", HeaderMatch.EXACT, "admin")
    policy, rules = refusing(Permission(False, headers=(admin,)))
    with running(branch, [rules], tmp_path) as port:
        for roles, answer in (
            (("user",), 200),
            (("user,admin",), 200),
            (("admin",), 403),
            (("user", "admin"), 400),
            (("admin", ""), 400),
            (("", "admin"), 400),
            (("user",) * 5, 400),
        ):
            asked = Request("GET", "/", (HOST, *(("X-Role", role) for role in roles)))
            assert (status(port, asked, rules.name), decide(policy, CALLER, asked).allowed) == (answer, answer == 200)


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_control_characters_in_headers_that_rules_look_at_are_refused(branch: str, tmp_path: Path) -> None:
    admin, many = HeaderRule("x-role", HeaderMatch.EXACT, "admin"), HeaderRule("x-many", HeaderMatch.PRESENT)
    policy, rules = refusing(Permission(False, headers=(admin,)), Permission(False, THERE, (many,)))
    with running(branch, [rules], tmp_path) as port:
        for character in (chr(number) for number in (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)):
            for asked in (
                Request("GET", "/", (HOST, ("X-Role", f"admin{character}"))),
                Request("GET", "/", (HOST, ("X-Many", "a"), ("X-Many", f"{character}b"), ("X-Many", "c"))),
            ):
                assert status(port, asked, rules.name) == 400, asked
                assert not decide(policy, CALLER, asked).allowed
        for value in ("a\tb", "x-role", "a b"):
            asked = Request("GET", "/", (HOST, ("X-Role", value), ("X-Many", value), ("X-Other", value)))
            assert status(port, asked, rules.name) == 200
            assert decide(policy, CALLER, asked).allowed


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_more_than_ascii_is_refused_where_a_regular_expression_looks(branch: str, tmp_path: Path) -> None:
    # For RE2 this is one character, for PCRE two bytes.
    between = HeaderRule("x-role", HeaderMatch.REGEX, "a.b")
    policy, rules = refusing(Permission(False, headers=(between,)))
    with running(branch, [rules], tmp_path) as port:
        for role, answer in (("a\u00e9b", 400), ("\u212a", 400), ("a-b", 403), ("ab", 200)):
            asked = Request("GET", "/", (HOST, ("X-Role", role)))
            assert (status(port, asked, rules.name), decide(policy, CALLER, asked).allowed) == (answer, answer == 200)


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_method_that_only_looks_like_one_is_refused(branch: str, tmp_path: Path) -> None:
    policy, rules = refusing(Permission(False, methods=("GET",)))
    with running(branch, [rules], tmp_path) as port:
        for method, answer in (("GET", 403), ("get", 400), ("GETX", 400), ("G", 400), ("XGET", 400)):
            asked = Request(method, "/", (HOST,))
            assert status(port, asked, rules.name) == answer, method
            assert not decide(policy, CALLER, asked).allowed
        # A tunnel takes another target.
        for method in set(KNOWN_METHODS) - {"GET", "CONNECT"}:
            asked = Request(method, "/", (HOST, ("Content-Length", "0")))
            assert status(port, asked, rules.name) == 200, method
            assert decide(policy, CALLER, asked).allowed


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_where_no_request_decides_none_is_looked_at(branch: str, tmp_path: Path) -> None:
    _, rules = refusing(Permission(False, methods=("GET",)))
    plain = Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, (Permission(True),)),), False, http=True)
    with running(branch, [rules], tmp_path) as port:
        for asked in (Request("GETX", "/", (HOST,)), Request("GET", "/a%00b", (HOST,))):
            assert status(port, asked, rules.name) == 400
            assert status(port, asked, ALLOW) == 200
            assert decide(plain, CALLER, asked).allowed
