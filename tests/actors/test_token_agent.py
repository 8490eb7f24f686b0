from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hcc.actors.messages import CONSUL_WATCHER, SPOE_POOL, TOKEN_AGENT, PolicyChanged, Publish, TokenRefused
from hcc.actors.token_agent import TokenAgent
from hcc.mesh.intentions import Action, Intention, Policy, demands_of
from hcc.mesh.permissions import JwtProvider
from hcc.metrics import Metrics
from hcc.spoe.frames import LENGTH_BYTES, Frame, FrameType, decode_frame
from hcc.spoe.payloads import Message
from hcc.spoe.values import Kind, Value
from hcc.tokens import server
from hcc.tokens.check import TokenChecker
from hcc.tokens.server import LOOK_S, MAX_CONNECTIONS, MAX_TOLD, TokenServer
from tests import spop_frames
from tests.actors.scene import Scene, playing
from tests.actors.stage import DEADLINE_S, eventually
from tests.tokens import entry, known, policy, signer

ES256 = signer("ES256")
GUARDED = Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))
POLICY = policy(GUARDED, known(entry(ES256)))
(DEMAND,) = demands_of(POLICY)
NO = {"allowed": False}


class TokenScene(Scene):
    def __init__(self, directory: Path) -> None:
        self.metrics = Metrics()
        self.path = str(directory / "tokens.sock")
        self.server = TokenServer(self.path, self.metrics)
        super().__init__(TOKEN_AGENT, TokenAgent, {"server": self.server}, (SPOE_POOL, CONSUL_WATCHER))

    def checks(self, verdict: str) -> float:
        return self.metrics.registry.get_sample_value("hcc_token_checks_total", {"verdict": verdict}) or 0.0


class HAProxy:
    """Its side of one connection."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(path)
        self.sock.sendall(spop_frames.hello())
        assert self._receive().kind == FrameType.AGENT_HELLO

    def ask(self, token: str, demand: str = DEMAND) -> dict[str, object]:
        """The variables that are set."""
        texts = {"demand": demand, "caller": "a|b|web", "method": "GET", "path": "/x"}
        texts |= {"header.authorization": f"Bearer {token}"}
        args = [(name.encode(), Value(Kind.STRING, text.encode())) for name, text in texts.items()]
        args += [(b"headers.authorization", Value(Kind.INT64, 1)), (b"query", Value(Kind.NULL))]
        return self.send(Message(b"token", tuple(args)))

    def send(self, message: Message) -> dict[str, object]:
        self.sock.sendall(spop_frames.notify(message, stream_id=3))
        frame = self._receive()
        assert (frame.kind, frame.stream_id) == (FrameType.ACK, 3)
        return {
            each.name.decode(): each.value.data.decode() if isinstance(each.value.data, bytes) else each.value.data
            for each in spop_frames.decode_actions(frame.payload)
        }

    def _receive(self) -> Frame:
        length = int.from_bytes(self._exactly(LENGTH_BYTES), "big")
        return decode_frame(self._exactly(length))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "the agent closed the connection"
            data += piece
        return data


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[TokenScene]:
    made = TokenScene(tmp_path)
    try:
        with playing(made):
            yield made
    finally:
        made.server.close()


@pytest.fixture
def haproxy(scene: TokenScene) -> Iterator[HAProxy]:
    made = HAProxy(scene.path)
    with made.sock:
        yield made


def given(scene: TokenScene, haproxy: HAProxy) -> None:
    """The policy, and wait until it counts."""
    scene.tell(PolicyChanged(POLICY))
    eventually(lambda: haproxy.ask(ES256.token()) != NO, "the policy")


def test_a_good_token_is_answered_with_the_demand_that_it_fulfils(scene: TokenScene, haproxy: HAProxy) -> None:
    assert haproxy.ask(ES256.token()) == NO, "without a policy"
    given(scene, haproxy)
    assert haproxy.ask(ES256.token()) == {"token": DEMAND, "strip": ",authorization,"}
    assert haproxy.ask(ES256.token()[:-2]) == NO
    assert haproxy.ask(ES256.token(), "token-other") == NO
    assert haproxy.ask(ES256.token(), "") == NO
    assert haproxy.send(Message(b"caller", ((b"der", Value(Kind.BINARY, b"x")),))) == NO
    assert scene.checks("good") >= 2


def test_a_demand_that_haproxy_heard_of_first_is_waited_for_once(
    scene: TokenScene, haproxy: HAProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "NEWER_WITHIN_S", 5.0)
    later = threading.Timer(0.2, lambda: scene.tell(PolicyChanged(POLICY)))
    later.start()
    assert haproxy.ask(ES256.token()) != NO
    later.join()
    monkeypatch.setattr(server, "NEWER_WITHIN_S", 0.3)
    started_s = time.monotonic()
    for _ in range(20):
        assert haproxy.ask(ES256.token(), "token-other") == NO
    # Each of them would be six seconds.
    assert 0.3 <= time.monotonic() - started_s < 6.0


def test_a_refusal_is_told_of_so_many_in_a_second_and_quotes_no_token(scene: TokenScene, haproxy: HAProxy) -> None:
    given(scene, haproxy)
    token = ES256.token(exp=1)
    refused = scene.checks("refused")
    for _ in range(3 * MAX_TOLD):
        assert haproxy.ask(token) == NO
    assert scene.checks("refused") == refused + 3 * MAX_TOLD
    told = scene.expect(SPOE_POOL, TokenRefused, lambda one: "expired" in one.reason)
    assert told == TokenRefused("web", "the token for GET /x is refused: okta: the token has expired")
    # The last second may have begun before, and another since.
    assert len(scene.heard[SPOE_POOL]) < 3 * MAX_TOLD


def test_another_policy_counts_at_once_whatever_was_good_before(scene: TokenScene, haproxy: HAProxy) -> None:
    given(scene, haproxy)
    token = ES256.token()
    assert haproxy.ask(token) != NO
    scene.tell(PolicyChanged(policy(GUARDED, known(entry(signer("RS256"))))))
    eventually(lambda: haproxy.ask(token) == NO, "the other keys")
    assert haproxy.ask(signer("RS256").token()) != NO
    scene.tell(PolicyChanged(policy(Intention("web", Action.ALLOW, 9), known())))
    eventually(lambda: haproxy.ask(signer("RS256").token()) == NO, "no demand")


def test_an_older_policy_counts_neither_late_nor_when_it_was_begun_with_before_a_newer_one(
    scene: TokenScene, haproxy: HAProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = replace(policy(GUARDED, known(entry(signer("RS256")))), version=6), replace(POLICY, version=7)
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(TokenChecker):
        def __init__(self, policy: Policy, *more: Any) -> None:
            if policy is older:
                begun.set()
                goes_on.wait()
            super().__init__(policy, *more)

    monkeypatch.setattr("hcc.tokens.check.TokenChecker", Slow)
    hung = threading.Thread(target=scene.server.set_policy, args=(older,))
    hung.start()
    assert begun.wait(DEADLINE_S)
    scene.server.set_policy(newer)
    goes_on.set()
    hung.join()
    assert haproxy.ask(ES256.token()) != NO

    scene.server.set_policy(older)
    assert haproxy.ask(ES256.token(jti="another")) != NO


def test_a_restarted_agent_serves_again_and_asks_for_the_policy(scene: TokenScene, haproxy: HAProxy) -> None:
    given(scene, haproxy)
    scene.restart()
    scene.expect(CONSUL_WATCHER, Publish)
    again = HAProxy(scene.path)
    with again.sock:
        assert again.ask(ES256.token()) != NO


def test_nothing_that_comes_in_ends_the_thread(
    scene: TokenScene, haproxy: HAProxy, caplog: pytest.LogCaptureFixture
) -> None:
    given(scene, haproxy)
    for garbage in (b"", b"\0\0\0\x05hello", b"\xff" * 100, spop_frames.hello()[:7]):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(scene.path)
            sock.sendall(garbage)
    assert haproxy.ask(ES256.token()) != NO
    odd = (
        (b"demand", Value(Kind.BOOL, True)),
        (b"\xff", Value(Kind.STRING, b"\xff")),
        (b"query", Value(Kind.IPV4, b"abcd")),
    )
    assert haproxy.send(Message(b"token", odd)) == NO
    assert not scene.exits


def test_a_fault_of_ours_ends_one_connection_without_its_text(
    scene: TokenScene, haproxy: HAProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(scene, haproxy)

    def fail(*_: object) -> None:
        raise RuntimeError("a token")

    with monkeypatch.context() as patched:
        patched.setattr("hcc.tokens.check._decoded", fail)
        with pytest.raises(AssertionError, match="closed"):
            haproxy.ask(ES256.token(jti="new"))
    assert "RuntimeError" in caplog.text
    assert "a token" not in caplog.text.replace("about a token", "")
    again = HAProxy(scene.path)
    with again.sock:
        assert again.ask(ES256.token()) != NO


def test_a_thread_that_dies_is_started_again(scene: TokenScene, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failed = TokenServer._accept, threading.Event()

    def fail_once(server: TokenServer, *given: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError
        accept(server, *given)

    monkeypatch.setattr(TokenServer, "_accept", fail_once)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(scene.path)
        scene.expect(CONSUL_WATCHER, Publish)
    haproxy = HAProxy(scene.path)
    with haproxy.sock:
        given(scene, haproxy)
    turns: list[float] = []

    def lost() -> bool:
        turns.append(time.monotonic())
        return False

    # Looked at in each turn.
    monkeypatch.setattr(scene.server._listener, "lost", lost)
    waits = "it waits for what comes, although its predecessor left the bell ringing"
    eventually(lambda: any(b - a > LOOK_S / 2 for a, b in itertools.pairwise(tuple(turns))), waits)
    assert len(turns) < 10, waits


def test_a_socket_that_somebody_removed_is_bound_anew_and_who_is_connected_goes_on(scene: TokenScene) -> None:
    known_before = HAProxy(scene.path)
    Path(scene.path).unlink()

    eventually(Path(scene.path).is_socket, "another socket")

    new = HAProxy(scene.path)
    for haproxy in (known_before, new):
        assert haproxy.ask("nothing") == NO
        haproxy.sock.close()


def test_who_comes_beyond_the_limit_is_closed_and_the_others_are_answered(scene: TokenScene, haproxy: HAProxy) -> None:
    with ExitStack() as held:
        others = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MAX_CONNECTIONS)]
        for sock in others:
            sock.settimeout(10)
            sock.connect(scene.path)
        assert others[-1].recv(1) == b""
        assert haproxy.ask("nothing") == NO
        others[0].close()
        again = HAProxy(scene.path)
        with again.sock:
            assert again.ask("nothing") == NO
