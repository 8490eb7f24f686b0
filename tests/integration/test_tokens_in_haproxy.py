"""Real HAProxy has tokens checked where its rules leave a request to one, and lets nothing on without an answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import capabilities
from hcc.haproxy.map_text import map_file
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.names import TOKEN_AGENT
from hcc.haproxy.render_rules import needs_experimental, refused, rule_lines
from hcc.haproxy.render_spoe import spoe_agent
from hcc.haproxy.render_tokens import TOKENS, token_backend, token_lines, token_places, token_question
from hcc.haproxy.request_rules import rule_entries
from hcc.mesh.intentions import Action, Intention, Policy, demands_of, rule_sets
from hcc.mesh.permissions import JwtProvider, PathMatch, PathRule, Permission
from hcc.metrics import Metrics
from hcc.tokens.check import Outcome
from hcc.tokens.server import TokenServer, _actions
from tests import binaries
from tests.tokens import entry, known, policy, segment, signer

pytestmark = pytest.mark.integration
ES256 = signer("ES256", "main")
OKTA = JwtProvider("okta")
ADMIN = JwtProvider("okta", ((("role",), "admin"),))
LONG_S = 10.0


def under(path: str, *jwt: JwtProvider) -> Permission:
    return Permission(allow=True, path=PathRule(PathMatch.PREFIX, path), jwt=jwt or None)


def wanted(*places: dict[str, dict[str, str]]) -> Policy:
    rules = (under("/pay", OKTA), under("/admin", ADMIN), under("/free"))
    return policy(Intention("web", Action.PERMISSIONS, 9, rules), known(entry(ES256, Locations=list(places))))


CONFIGURATION = """
global
  {experimental}
  nbthread 2
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 1s
frontend public
  bind fd@{fd}
  filter spoe engine {engine} config {spoe}
  http-request set-var(txn.verdict) str({rules_name})
{rules}
  use_backend refusals if {refused}
  default_backend app
backend refusals
  http-request deny deny_status 403
backend app
{tokens}
  http-request return status 200 content-type text/plain lf-string "%[req.hdr(authorization)]|%[req.hdr(x-token)]"
{agent}
"""


@dataclass
class Gate:
    """HAProxy under rules, and who checks tokens for it."""

    port: int
    server: TokenServer
    told: list[str] = field(default_factory=list)

    def ask(self, path: str, *lines: str) -> tuple[int, str]:
        """Status and body of one request with these header lines."""
        with self.kept() as connection:
            return one(connection, path, *lines)

    @contextlib.contextmanager
    def kept(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Somebody answers in the block."""
        stop = threading.Event()
        thread = threading.Thread(
            target=self.server.serve, args=(stop, lambda who, why: self.told.append(f"{who}: {why}"))
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self.server.wake()
            thread.join(LONG_S)
            assert not thread.is_alive()


def one(connection: http.client.HTTPConnection, path: str, *lines: str) -> tuple[int, str]:
    connection.putrequest("GET", path)
    for line in lines:
        name, _, value = line.partition(": ")
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@contextlib.contextmanager
def running(branch: str, directory: Path, by: Policy, processing_timeout_ms: int = 5_000) -> Iterator[Gate]:
    """The time is for a thread of the test's own process, which may wait for a core."""
    (rules,) = rule_sets(by)
    maps = directory / "rules.map"
    maps.write_text(map_file(rule_entries((rules,), ())))
    able = capabilities(probe(binaries.haproxy(branch)).version)
    asked = Authorisation(
        "agents",
        ("/s",),
        Mode.HTTP,
        "/i",
        "/v",
        str(maps),
        token_socket=str(directory / "t.sock"),
        token_places=token_places(by),
        processing_timeout_ms=processing_timeout_ms,
    )
    agent = spoe_agent(TOKENS, asked, "5m", "token", TOKEN_AGENT)
    question = token_question(asked.token_places, "caller=str(a|b|web) method=method path=path")
    (directory / "spoe.cfg").write_text("\n".join((*agent, *question, "")))
    server = TokenServer(asked.token_socket, Metrics())
    server.set_policy(by)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = CONFIGURATION.format(
            fd=listener.fileno(),
            engine=TOKENS,
            spoe=directory / "spoe.cfg",
            rules_name=rules.name,
            rules="\n".join(rule_lines(asked, "txn.verdict", able)),
            refused=refused(asked, "txn.verdict"),
            tokens="\n".join(token_lines(asked)),
            agent="\n".join(token_backend(asked, able)),
            experimental="expose-experimental-directives" if needs_experimental(asked, able) else "",
        )
        (directory / "haproxy.cfg").write_text(text)
        log = (directory / "haproxy.log").open("wb")
        command = [binaries.haproxy(branch), "-db", "-f", str(directory / "haproxy.cfg")]
        with log, subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(listener.fileno(),)) as process:
            try:
                yield Gate(listener.getsockname()[1], server)
                assert process.poll() is None, (directory / "haproxy.log").read_text()
            finally:
                process.kill()
                server.close()


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_request_that_a_token_decides_gets_on_with_a_good_one_alone(branch: str, tmp_path: Path) -> None:
    good, admin = f"Authorization: Bearer {ES256.token()}", f"Authorization: Bearer {ES256.token(role='admin')}"
    bad = f"{good[:-8]}AAAAAAAA"
    with running(branch, tmp_path, wanted()) as gate, gate.served():
        assert gate.ask("/pay", good) == (200, "|"), "the application gets no token that it is not to get"
        assert gate.ask("/free", good) == (200, f"{good[15:]}|"), "no token decides there"
        assert gate.ask("/free")[0] == 200
        assert [gate.ask("/other")[0], gate.ask("/other", good)[0]] == [403, 403]
        assert [gate.ask("/pay")[0], gate.ask("/pay", bad)[0], gate.ask("/pay", good, good)[0]] == [403] * 3
        assert [gate.ask("/admin", good)[0], gate.ask("/admin", admin)[0]] == [403, 200]
        token = ES256.token()
        assert gate.ask(f"/pay?a=b&access_token={token}")[0] == 200
        assert gate.ask(f"/pay?access_token={token}&access_token={token}")[0] == 403
        # More than a frame takes, and more than a token may be.
        assert gate.ask("/pay", f"Authorization: Bearer {ES256.token(much='x' * 9_000)}")[0] == 403
        assert gate.ask("/pay", good, f"X-Much: {'x' * 8_000}")[0] == 200
        assert gate.told[0] == "web: the token for GET /pay is refused: okta: there is no token"
        assert not any(part in line for line in gate.told for part in good.split(".")[1:])


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_a_token_may_be_at_more_places_than_a_line_of_the_configuration_has_words(branch: str, tmp_path: Path) -> None:
    tenants = range(11)
    rule = under("/pay", *(JwtProvider(f"tenant-{number}") for number in tenants))
    places = {number: [f"x-{number}-{place}" for place in range(10)] for number in tenants}
    entries = (
        entry(ES256, name=f"tenant-{number}", Locations=[{"Header": {"Name": name}} for name in places[number]])
        for number in tenants
    )
    by = policy(Intention("web", Action.PERMISSIONS, 9, (rule, under("/free"))), known(*entries))
    with running(branch, tmp_path, by) as gate, gate.served():
        asked = (f"{places[number][number - 1]}: {ES256.token()}" for number in tenants)
        assert [gate.ask("/pay", line)[0] for line in asked] == [200] * len(tenants)
        assert [gate.ask("/pay")[0], gate.ask("/free")[0]] == [403, 200]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_each_request_of_a_kept_connection_is_decided_by_itself(branch: str, tmp_path: Path) -> None:
    good = f"Authorization: Bearer {ES256.token()}"
    with running(branch, tmp_path, wanted()) as gate, gate.served(), gate.kept() as kept:
        asked = (("/pay", good), ("/pay", ""), ("/free", ""), ("/admin", good), ("/pay", good), ("/pay", "X: y"))
        found = [one(kept, path, *filter(None, (line,)))[0] for path, line in asked]
        assert found == [200, 403, 200, 403, 200, 403]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_without_an_answer_in_time_it_is_denied_and_others_are_not_held_up(branch: str, tmp_path: Path) -> None:
    good = f"Authorization: Bearer {ES256.token()}"
    by = wanted()
    with running(branch, tmp_path, by, 2_000) as gate:
        with gate.served():
            assert gate.ask("/pay", good)[0] == 200
        before = time.monotonic()
        assert gate.ask("/pay", good)[0] == 403, "nobody answers, though somebody could be connected to"
        assert time.monotonic() - before < LONG_S / 2
        assert gate.ask("/free")[0] == 200
        with gate.served():
            assert gate.ask("/pay", good)[0] == 200
            gate.server.set_policy(policy(Intention("web", Action.ALLOW, 9), known()))
            assert gate.ask("/pay", good)[0] == 403, "a demand that is none any more"
            gate.server.set_policy(by)
            assert gate.ask("/pay", good)[0] == 200
        gate.server._listener.close()
        assert gate.ask("/pay", good)[0] == 403
        assert gate.ask("/free")[0] == 200


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_an_answer_about_another_demand_lets_nobody_on(branch: str, tmp_path: Path) -> None:
    good = f"Authorization: Bearer {ES256.token()}"
    by = wanted()
    one_demand, other = sorted(demands_of(by))
    with running(branch, tmp_path, by) as gate, gate.served(), pytest.MonkeyPatch.context() as patched:
        assert gate.ask("/pay", good)[0] == 200
        for said in (other[:-1], f"{other}0", "", "token-", "true", f"{one_demand},{other}"):
            patched.setattr(gate.server, "_answer", lambda *_, said=said: _actions(said, Outcome(True)))
            assert [gate.ask("/pay", good)[0], gate.ask("/admin", good)[0]] == [403, 403], said
        patched.setattr(gate.server, "_answer", lambda *_: _actions(other, Outcome(True)))
        assert sorted((gate.ask("/pay", good)[0], gate.ask("/admin", good)[0])) == [200, 403]


@pytest.mark.parametrize("branch", binaries.HAPROXY_BRANCHES)
def test_tokens_are_found_in_headers_and_cookies_of_any_name(branch: str, tmp_path: Path) -> None:
    places = ({"Header": {"Name": "X-Token", "ValuePrefix": "T "}}, {"Cookie": {"Name": "jwt"}})
    token = ES256.token()
    with running(branch, tmp_path, wanted(*places)) as gate, gate.served():
        assert gate.ask("/pay", f"x-token: T {token}", "Authorization: mine") == (200, "mine|")
        assert gate.ask("/pay", f"Cookie: a=b; jwt={token}; c=d") == (200, "|")
        assert gate.ask("/pay", f"Cookie: jwt={token}; jwt={token}")[0] == 403
        assert gate.ask("/pay", f"Authorization: Bearer {token}")[0] == 403
        none = f"{segment({'alg': 'none'})}.{token.split('.')[1]}."
        # Go splits at each semicolon; HAProxy's own `req.cook` sees the second one alone.
        assert gate.ask("/pay", f'Cookie: a="; jwt={none}; b="; jwt={token}')[0] == 403
        assert gate.ask("/pay", f"X-Token: t {none}", f"Cookie: jwt={token}")[0] == 403
        assert gate.ask("/pay", f"Cookie: jwt={none}")[0] == 403
