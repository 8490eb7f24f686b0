"""Admin: shows how the sidecar does, and takes the operator's orders.

Read-only on TCP (`--stats-addr`); orders only on a unix socket of mode 0600. Requests are answered in the server's
own threads from one immutable value, so that they are answered when actors are slow, too.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, unquote

from hcc.actors import readiness
from hcc.actors.actor import Actor
from hcc.actors.draining import Draining
from hcc.actors.explanation import explained, parse_question
from hcc.actors.lifecycle import StopReason, UnknownActorError
from hcc.actors.messages import (
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    SPOE_POOL,
    VERIFIER,
    Drain,
    FactsReported,
    Preview,
    Previewed,
    Publish,
)
from hcc.actors.picture import Identity, picture
from hcc.actors.readiness import missing_parts, reservations
from hcc.actors.sources import ASK_TIMEOUT_S, Sources
from hcc.actors.status import Status, to_json
from hcc.actors.web import ListenError, Response, WebServer, serve_tcp, serve_unix
from hcc.consul.errors import ConsulError
from hcc.consul.stats_service import RENEW_S, StatsService
from hcc.errors import HccError, SettingError
from hcc.haproxy.review import review_json
from hcc.log import set_level
from hcc.metrics import Metrics
from hcc.settings import Enforcement, ListenAddress, VerifyUpstream, parse_log_level

RESTART_TIMEOUT_S = 20.0
PREVIEW_TIMEOUT_S = 20.0
LISTEN_AGAIN_S = 5.0
CONTROL_LOOK_S = 2.0
CLOCK_LOOK_S = 2.0
DEREGISTER_TIMEOUT_S = 2.0
# Who reports facts.
SOURCES = (CONSUL_WATCHER, CERT_MANAGER, CONFIG_RECONCILER, PROCESS_SUPERVISOR, SPOE_POOL, AUTHORISER, VERIFIER)
VERSION_S = 3600.0
VERSION_UNKNOWN_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _ListenAgain:
    """To itself: the stats address was taken; try once more."""


@dataclass(frozen=True, slots=True)
class _LookAtClock:
    """To itself: a leaf expires without a word of anybody."""


@dataclass(frozen=True, slots=True)
class _LookForControl:
    """To itself: see whether operators still find the control socket."""


@dataclass(frozen=True, slots=True)
class _Renew:
    """To itself: time to register the stats address in Consul, again."""


@dataclass(frozen=True, slots=True)
class _AskVersion:
    """To itself: time to see which Consul this is."""


class Admin(Actor):
    """Owns the two servers and what they show."""

    def init(  # noqa: PLR0913 (by name, from one place)
        self,
        *,
        identity: Identity,
        control_socket: Path,
        stats_addr: ListenAddress | None,
        stats_service: StatsService | None,
        intentions: Enforcement,
        verify: VerifyUpstream,
        metrics: Metrics,
        sources: Sources,
        draining: Draining,
        on_readiness: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._identity = identity
        self._control_socket = control_socket
        self._stats_addr = stats_addr
        self._stats_service = stats_service
        self._metrics = metrics
        self._sources = sources
        self._on_readiness = on_readiness
        self._facts = readiness.Facts(intentions=intentions, verify=verify, draining=draining.announced)
        self._control: WebServer | None = None
        self._servers: list[WebServer] = []
        # What Consul was told last about the stats address, in a thread of its own.
        self._registering: threading.Thread | None = None
        self._deregistering: threading.Thread | None = None
        # As it was told last.
        self._missing: tuple[str, ...] | None = None

    def setup(self) -> None:
        if self.context.generation > 1:
            for source in SOURCES:
                self.tell(source, Publish())
        self._serve_operators()
        self._listen()
        self._renew()
        self._ask_version()
        self.after(CLOCK_LOOK_S, _LookAtClock(), key="clock")

    def handle(self, message: object) -> None:
        match message:
            case FactsReported(facts):
                self._facts = _with(self._facts, facts)
                self._note_readiness()
            case Drain():
                self._facts = replace(self._facts, draining=True)
                self._note_readiness()
                self._deregister()
            case _ListenAgain():
                self._listen()
            case _LookAtClock():
                self._note_readiness()
                self.after(CLOCK_LOOK_S, _LookAtClock(), key="clock")
            case _LookForControl():
                self._look_for_control()
            case _Renew():
                self._renew()
            case _AskVersion():
                self._ask_version()

    def teardown(self, reason: StopReason) -> None:
        """Close the servers; requests that are being answered get their answer."""
        if reason is StopReason.SHUTDOWN:
            self._deregister()
            if self._deregistering is not None:
                self._deregistering.join(DEREGISTER_TIMEOUT_S)
        # One that another hcc put in its place is left to it.
        ours = self._control is not None and not self._control.lost()
        for server in (*self._servers, *filter(None, (self._control,))):
            server.close()
        if ours:
            self._control_socket.unlink(missing_ok=True)

    def _serve_operators(self) -> None:
        """Raises ListenError."""
        self._control = serve_unix(self._control_socket, self._answer_operator)
        self.after(CONTROL_LOOK_S, _LookForControl(), key="control")

    def _look_for_control(self) -> None:
        before = self._control
        if before is None or not before.lost():
            self.after(CONTROL_LOOK_S, _LookForControl(), key="control")
            return
        try:
            self._serve_operators()
        except ListenError as exc:
            _log.error("somebody removed the control socket: %s; tried again every %.0f s", exc, LISTEN_AGAIN_S)
            self.after(LISTEN_AGAIN_S, _LookForControl(), key="control")
            return
        _log.warning("somebody removed %s, it is bound anew", self._control_socket)
        before.close()

    def _listen(self) -> None:
        if self._stats_addr is None:
            return
        try:
            self._servers.append(serve_tcp(self._stats_addr, self._answer_anyone))
        except ListenError as exc:
            if str(exc) != self._facts.stats_problem:
                _log.error("--stats-addr: %s; tried again every %.0f s", exc, LISTEN_AGAIN_S)
            self._facts = replace(self._facts, stats_problem=str(exc))
            self.after(LISTEN_AGAIN_S, _ListenAgain(), key="listen")
        else:
            self._facts = replace(self._facts, stats_problem="")

    def _renew(self) -> None:
        if self._stats_service is not None and not self._facts.draining:
            self._registering = _in_background("stats-service", self._stats_service.register)
            self.after(RENEW_S, _Renew(), key="renew")

    def _deregister(self) -> None:
        """While metrics are still served: a Prometheus that finds nobody there takes us for dead, not for stopped."""
        service, registering = self._stats_service, self._registering
        if service is None or self._deregistering is not None:
            return
        self.cancel("renew")

        def deregister() -> None:
            if registering is not None:
                # Else what it asks could come to Consul after us.
                registering.join(DEREGISTER_TIMEOUT_S)
            service.deregister()

        self._deregistering = _in_background("stats-service", deregister)

    def _ask_version(self) -> None:
        # It changes when the agent is replaced; until it is known it is asked for more often.
        _in_background("consul-version", self._sources.consul.refresh)
        self.after(VERSION_S if self._sources.consul.text else VERSION_UNKNOWN_S, _AskVersion(), key="version")

    def _note_readiness(self) -> None:
        missing = missing_parts(self._facts, time.time())
        self._metrics.ready.set(not missing)
        if missing == self._missing:
            return
        if not missing:
            _log.info("ready")
        elif self._missing == ():
            _log.warning("not ready any more: %s", "; ".join(missing))
        self._missing = missing
        self._on_readiness(missing)

    # ------------------------------------------------------------ the servers' threads

    def _answer_anyone(self, method: str, path: str, query: str, accept: str) -> Response:  # noqa: ARG002 (Answer)
        if method not in ("GET", "HEAD"):
            return Response(405, b"expected GET\n")
        shown = {
            "/": self._page,
            "/api/v1/status": lambda: _json(to_json(self._status())),
            "/metrics": lambda: Response(200, *self._metrics.exposition(accept)),
            "/health": lambda: Response(200, b"ok\n"),
            "/ready": self._ready,
        }
        answer = shown.get(path)
        return answer() if answer else Response(404, f"expected one of {', '.join(shown)}\n".encode())

    def _ready(self) -> Response:
        missing = missing_parts(self._facts, time.time())
        text = "".join(f"{part}\n" for part in (*(missing or ("ready",)), *reservations(self._facts)))
        return Response(503 if missing else 200, text.encode())

    def _page(self) -> Response:
        # Loaded by the first who looks: a sidecar that nobody looks at does not pay for a template engine.
        from hcc.actors import page  # noqa: PLC0415

        return Response(200, page.page(self._status()), "text/html; charset=utf-8", page.headers())

    def _status(self) -> Status:
        return picture(self._identity, self._facts, self._sources.observed())

    def _answer_operator(self, method: str, path: str, query: str, accept: str) -> Response:
        try:
            ordered = self._ordered(method, tuple(part for part in path.split("/") if part), query)
        except SettingError as exc:
            return Response(400, f"{exc}\n".encode())
        except UnknownActorError as exc:
            return Response(404, f"{exc}\n".encode())
        except HccError as exc:
            return Response(503, f"{exc}\n".encode())
        return ordered or self._answer_anyone(method, path, query, accept)

    def _ordered(self, method: str, parts: tuple[str, ...], query: str) -> Response | None:
        """The answer to what only operators may ask; None for all else."""
        match method, parts:
            case "GET", ("v1", *words):
                return self._told(tuple(words), query)
            case "POST", ("v1", "actors", name, "restart"):
                return self._restart(unquote(name))
            case "POST", ("v1", "log-level", level):
                return _set_log_level(level)
        return None

    def _told(self, words: tuple[str, ...], query: str) -> Response | None:
        match words:
            case ("about",):
                return _json(asdict(self._identity))
            case ("actors",):
                return _json([asdict(status) for status in self._sources.tree().actors(ASK_TIMEOUT_S)])
            case ("explain",):
                return self._explain(query)
            case ("plan" | "config" | "snapshot" as what,):
                return self._foreseen(what)
        return None

    def _explain(self, query: str) -> Response:
        question, snapshot = parse_question(parse_qs(query, keep_blank_values=True)), self._sources.ledger.page.snapshot
        if snapshot is None or snapshot.policy is None:
            return Response(503, b"no policy yet: Consul has not told the intentions (see hcc status)\n")
        known = (name for name, _ in self._facts.callers.verdicts)
        return _json(asdict(explained(snapshot.policy, snapshot.datacenter, question, self._facts.intentions, known)))

    def _foreseen(self, what: str) -> Response:
        """What would be done, the text of it, or what that is made of."""
        found = self._previewed()
        if what == "config":
            return Response(200, found.config.encode())
        if what == "snapshot":
            return _json(review_json(found.review, self._identity.haproxy))
        maps = (self._sources.tree().ask_actor(name, Preview(), PREVIEW_TIMEOUT_S) for name in (AUTHORISER, VERIFIER))
        operations = (*found.operations, *(change for each in maps for change in cast("tuple[str, ...]", each)))
        told = {"operations": operations, "reasons": found.reasons, "reloads": found.reloads}
        return _json({**told, "left_out": found.left_out})

    def _previewed(self) -> Previewed:
        return cast("Previewed", self._sources.tree().ask_actor(CONFIG_RECONCILER, Preview(), PREVIEW_TIMEOUT_S))

    def _restart(self, name: str) -> Response:
        _log.info("the operator restarts actor %s", name)
        generation = self._sources.tree().restart(name, RESTART_TIMEOUT_S)
        status = next(
            one for one in self._sources.tree().actors(ASK_TIMEOUT_S) if one.name.casefold() == name.casefold()
        )
        return _json({"name": status.name, "generation": generation})


def _set_log_level(text: str) -> Response:
    level = parse_log_level(text)
    _log.warning("the operator sets the log level to %s", level)
    set_level(level)
    return _json({"level": level})


# Where in `Facts` each kind goes.
_PLACES: dict[type[object], str] = {
    readiness.ReconcilerFacts: "reconciler",
    readiness.CredentialFacts: "credentials",
    readiness.PolicyFacts: "policy",
    readiness.HAProxyFacts: "haproxy",
    readiness.ConsulFacts: "consul",
    readiness.CallerFacts: "callers",
    readiness.PeerFacts: "peers",
}


def _with(facts: readiness.Facts, news: object) -> readiness.Facts:
    return replace(facts, **{_PLACES[type(news)]: news})  # type: ignore[arg-type]  # the table says that it fits


def _in_background(name: str, call: Callable[[], None]) -> threading.Thread | None:
    """Call Consul in a thread of its own: a handler must not wait for an agent that does not answer.

    None where no thread is left: it is not called then, but the next time.
    """

    def run() -> None:
        try:
            call()
        except ConsulError as exc:
            _log.warning("%s: %s", name, exc)

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        _log.warning("%s: no thread to ask Consul in (%s)", name, exc)
        return None
    return thread


def _json(value: object) -> Response:
    return Response(200, json.dumps(value).encode() + b"\n", "application/json")
