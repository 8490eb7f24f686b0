"""The composition root of `hcc run`: makes everything, starts the actors, and stops all of it in the right order."""

from __future__ import annotations

import logging
import os
import platform
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from hcc.actors.admin import Admin
from hcc.actors.authoriser import Authoriser
from hcc.actors.cert_manager import CertManager
from hcc.actors.child import ChildSpec
from hcc.actors.config_reconciler import ConfigReconciler
from hcc.actors.consul_watcher import ConsulWatcher, Deliver, Ledger
from hcc.actors.draining import Draining
from hcc.actors.lifecycle import ActorError
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    SPOE_GROUP,
    SPOE_POOL,
    TOKEN_AGENT,
    VERIFIER,
    Drain,
    ReloadToken,
)
from hcc.actors.picture import UNENFORCED, Identity
from hcc.actors.process_supervisor import ProcessSupervisor
from hcc.actors.restart import Intensity
from hcc.actors.sources import Sources
from hcc.actors.spoe_pool import SPOEPool
from hcc.actors.supervisor import Supervisor
from hcc.actors.token_agent import TokenAgent
from hcc.actors.tree import Tree, TreeExit, start_tree
from hcc.actors.verifier import Verifier
from hcc.app.allocator import keep_few_arenas
from hcc.app.answers_file import AnswersFile, kept_choice, kept_ledger
from hcc.app.collectors import actor_metrics, pool_metrics, watch_metrics, worker_metrics
from hcc.app.control import Choice, Driven, choose_control, driven
from hcc.app.haproxy_metrics import haproxy_metrics
from hcc.app.head_start import HeadStart
from hcc.app.maintenance import BEGIN_TIMEOUT_S, Maintenance
from hcc.app.peers_file import PeersFile, register_of
from hcc.app.selection import Chosen, choose_proxy
from hcc.app.service_manager import EXTEND_S, ServiceManager
from hcc.app.signals import Signals
from hcc.app.state_directory import LockedError, StateDirectory
from hcc.consul.agent_tls import AgentTls
from hcc.consul.agent_version import AgentVersion
from hcc.consul.assembly import State
from hcc.consul.client import ConsulClient
from hcc.consul.credentials import TokenSource
from hcc.consul.environment import ConsulSettings
from hcc.consul.held_chains import HeldChains
from hcc.consul.keys import WatchKey
from hcc.consul.stats_service import StatsService, stats_definition
from hcc.consul.watch import Watcher
from hcc.errors import HccError, SettingError
from hcc.haproxy.access_log import STDOUT
from hcc.haproxy.backend_counts import BackendCounts
from hcc.haproxy.binary import Found, Program, probe
from hcc.haproxy.caller_maps import CallerMaps
from hcc.haproxy.capabilities import NEWEST, Build, Feature, capabilities_of, is_newer_than_known
from hcc.haproxy.desired import Options
from hcc.haproxy.leaf_map import LeafMap
from hcc.haproxy.model import GlobalOptions
from hcc.haproxy.process import recorded_pid, running_program
from hcc.haproxy.stats_reader import BACKENDS, EVERYTHING, SUMMARY, StatsReader, servers_of
from hcc.log import LastingProblem, set_up_logging
from hcc.mesh.secret import Secret
from hcc.metrics import Metrics
from hcc.peers.prober import Prober
from hcc.settings import Enforcement, RunSettings, VerifyUpstream
from hcc.spoe.pool import WorkerPool
from hcc.spoe.spawner import Spawner
from hcc.tokens.server import TokenServer
from hcc.version import VERSION

# Restarts of one group before it fails upwards; at the root hcc then exits.
INTENSITY = Intensity(max_restarts=10, window_s=60.0)
STOP_TIMEOUT_S = 20.0
POOL_CLOSE_S = 2.0
# Beyond the time to drain: HAProxy is told to end at once, then killed.
DRAIN_SLACK_S = 5.0
# Before it: for what ConfigReconciler is doing.
REST_TIMEOUT_S = 5.0
POLL_S = 0.1
# Envoy's default drain time; after a reload the old worker may serve its connections this long.
HARD_STOP_AFTER_MS = 600_000
# A page with 10,000 endpoints may take HAProxy longer than a scrape, which asks for a summary.
PAGE_TIMEOUT_S = 3.0
# A second thread makes each request dearer by a tenth, and the application needs processors, too; one does 20,000 http
# requests or 1,000 new TLS connections a second.
MAX_THREADS = 4
CORES_PER_THREAD = 2
MAX_CONNECTIONS = 10_000

WATCHDOG_ASK_S = 5.0
# The state directory is looked for this often.
KEEP_S = 2.0

_log = logging.getLogger(__name__)


def run(settings: RunSettings, consul: ConsulSettings, head_start: HeadStart, signals: Signals) -> int:
    """Run one sidecar until it is told to stop; the exit code: 0 stopped, 1 given up.

    The zygote of `head_start` sees our end when it comes to nothing.

    Raises:
        HccError: it could not be started.
    """
    keep_few_arenas()
    set_up_logging(settings.log_level, settings.log_format)
    manager = ServiceManager(os.environ)
    metrics = Metrics()
    agent = consul_agent(consul, metrics)
    found, build = head_start.found, head_start.build()
    choice = choose_control(settings, build)
    _say_what_runs(settings, found, build, choice)

    def without_agent() -> Chosen | None:
        manager.readiness(("Consul has not told of this proxy",))
        manager.alive()
        return kept_choice(Path(settings.state_dir), settings.selection) if settings.cached_start else None

    chosen = choose_proxy(settings.selection, agent.make_client, signals.stop, without_agent)
    if chosen is None:
        return 0
    directory = StateDirectory(settings.state_dir, chosen.proxy_id)
    try:
        shares_stdout = settings.access_log == STDOUT
        if (other := _other_that_runs(directory, found, build)) is not None:
            found, build = other
            choice = choose_control(settings, build)
            _say_what_runs(settings, found, build, choice)
        haproxy = driven(choice, found.binary, directory.layout, shares_stdout=shares_stdout)
        parts = Parts(build, Program(found.binary, build), head_start.zygote, haproxy, directory)
        sidecar = Sidecar(settings, agent, chosen, parts, Watchers(manager, metrics))
        end = sidecar.run(signals)
    except BaseException:
        directory.release()
        raise
    if end is End.DRAINED:
        directory.remove()
    else:
        directory.release()
    return 1 if end is End.GAVE_UP else 0


@dataclass(frozen=True, slots=True)
class Agent:
    """How to talk to the Consul agent."""

    make_client: Callable[[], ConsulClient]
    tokens: TokenSource


@dataclass(frozen=True, slots=True)
class Parts:
    """What a sidecar is made of outside this process, and where it is kept."""

    build: Build
    program: Program
    zygote: Spawner
    haproxy: Driven
    directory: StateDirectory


@dataclass(frozen=True, slots=True)
class Watchers:
    """Who is told how a sidecar does: the service manager that started it, and whoever reads the metrics."""

    manager: ServiceManager
    metrics: Metrics


class End(Enum):
    """How a sidecar ended."""

    DRAINED = "drained"
    """Nothing of it is left."""
    LEFT = "left"
    """HAProxy and the SPOE workers go on, for the next hcc."""
    GAVE_UP = "gave up"
    """As left, but not because anybody wanted it."""


_STOPPING = {End.DRAINED: "draining", End.LEFT: "stopping, HAProxy goes on"}


class Sidecar:
    """One sidecar's parts, and their life from start to stop."""

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        chosen: Chosen,
        parts: Parts,
        watchers: Watchers,
    ) -> None:
        build, haproxy, directory = parts.build, parts.haproxy, parts.directory
        self._settings = settings
        self._directory = directory
        self._directory_problem = LastingProblem(_log)
        self._program = parts.program
        self._maintenance = Maintenance(agent.make_client, chosen.proxy_id)
        self._manager = manager = watchers.manager
        self._metrics = watchers.metrics
        self._at_rest = threading.Event()
        self._drained = threading.Event()
        self._draining = Draining()
        self._gave_up: TreeExit | None = None
        # Another hcc has our directory.
        self._replaced = False
        self._tree: Tree | None = None
        layout = directory.layout
        sockets = tuple(layout.agent_socket(number) for number in range(1, settings.spoe_workers + 1))
        self._pool = WorkerPool(sockets, zygote=parts.zygote)
        self._process = haproxy.process
        self._dataplane = haproxy.dataplane
        process = _global_options(directory, settings.access_log)
        verify = settings.verify_upstream
        options = Options(
            process=process,
            agent_sockets=sockets,
            identities=layout.identities,
            verdicts=layout.verdicts,
            rules=layout.rules,
            ticket_keys=layout.ticket_keys,
            ticket_secret=Secret(os.urandom(32).hex()),
            intentions=settings.intentions,
            leaves=layout.leaves if verify.checks_answers else "",
            token_socket=layout.token_socket,
            descriptors=_descriptors(),
            patterns=haproxy.control.capabilities.has(Feature.LOOKAHEAD),
            route_timeouts=haproxy.control.capabilities.has(Feature.SET_TIMEOUT),
        )
        self._tokens = TokenServer(layout.token_socket, self._metrics)
        running = haproxy.control.running()
        maps = CallerMaps(layout, haproxy.control.capabilities)
        leaves = LeafMap(layout, haproxy.control.capabilities)
        for prepared in (maps, leaves):
            prepared.prepare(running=running)
        version = str(build.version)
        self._metrics.haproxy_info.labels(version, build.openssl, settings.control).set(1)
        ledger = Ledger(State(chosen.proxy_id))
        enforced = settings.intentions is not Enforcement.AUDIT
        pool = {"pool": self._pool, "metrics": self._metrics, "enforced": enforced}
        identity = Identity(
            proxy_id=chosen.proxy_id,
            service_id=chosen.service_id,
            pid=os.getpid(),
            started_at=time.time(),
            hcc=VERSION,
            python=platform.python_version(),
            haproxy=version,
            openssl=build.openssl,
            control=settings.control,
        )
        self._metrics.collect_from(lambda: actor_metrics(self.tree))
        self._metrics.collect_from(lambda: watch_metrics(one.state() for one in ledger.watchers))
        self._metrics.collect_from(lambda: pool_metrics(self._pool.workers()))
        self._metrics.collect_from(
            lambda: worker_metrics(self._pool.counters, refused_tokens=self._tokens.refused_total, enforced=enforced)
        )
        stats = partial(StatsReader, layout.stats_socket, master=layout.master_socket)
        everything = stats(EVERYTHING, PAGE_TIMEOUT_S)
        scraped = everything if settings.metrics_per_endpoint else stats(SUMMARY)
        self._metrics.collect_from(lambda: haproxy_metrics(scraped.read, lambda: ledger.snapshot))
        if settings.cached_start:
            ledger = kept_ledger(AnswersFile(directory.path, settings.selection, chosen), ledger.state)
        self._specs = (
            ChildSpec(
                ADMIN,
                Admin,
                {
                    "identity": identity,
                    "control_socket": directory.control_socket,
                    "stats_addr": settings.stats_addr,
                    "stats_service": _stats_service(settings, chosen, agent.make_client),
                    "intentions": settings.intentions,
                    "verify": verify,
                    "metrics": self._metrics,
                    "sources": Sources(
                        tree=self.tree,
                        ledger=ledger,
                        stats=everything.read,
                        consul=AgentVersion(agent.make_client),
                    ),
                    "draining": self._draining,
                    "on_readiness": manager.readiness,
                },
            ),
            ChildSpec(
                SPOE_GROUP,
                Supervisor,
                {
                    "children": (ChildSpec(SPOE_POOL, SPOEPool, pool),),
                    "intensity": INTENSITY,
                },
            ),
            ChildSpec(TOKEN_AGENT, TokenAgent, {"server": self._tokens}),
            ChildSpec(
                AUTHORISER,
                Authoriser,
                {"maps": maps, "metrics": self._metrics, "resync_s": settings.resync_s, "cuts": enforced},
            ),
            ChildSpec(
                VERIFIER,
                Verifier,
                {
                    "mode": verify,
                    "register": register_of(PeersFile(directory.path), running=running),
                    "make_prober": Prober,
                    "leaves": leaves,
                    "counts": BackendCounts(
                        stats(BACKENDS).read,
                        (lambda backend: stats(servers_of(backend), PAGE_TIMEOUT_S).read()) if verify.probes else None,
                    ),
                    "metrics": self._metrics,
                    "resync_s": settings.resync_s,
                },
            ),
            ChildSpec(
                CONFIG_RECONCILER,
                ConfigReconciler,
                {
                    "control": haproxy.control,
                    "options": options,
                    "probes": verify.probes,
                    "metrics": self._metrics,
                    "resync_s": settings.resync_s,
                    "draining": self._draining,
                    "on_rest": self._at_rest.set,
                },
                # A check, a reload and many runtime commands may take long with thousands of servers.
                heartbeat_s=300.0,
            ),
            ChildSpec(
                PROCESS_SUPERVISOR,
                ProcessSupervisor,
                {
                    "process": self._process,
                    "version": version,
                    "metrics": self._metrics,
                    "on_drained": self._drained.set,
                    "draining": self._draining,
                    "dataplane": haproxy.dataplane,
                },
                heartbeat_s=15.0,
            ),
            ChildSpec(
                CERT_MANAGER,
                CertManager,
                {"leaf_path": layout.leaf, "roots_path": layout.roots, "metrics": self._metrics},
            ),
            ChildSpec(
                CONSUL_WATCHER,
                ConsulWatcher,
                {
                    "make_watcher": _watcher_maker(agent),
                    "ledger": ledger,
                    "tokens": agent.tokens,
                    "metrics": self._metrics,
                },
            ),
        )

    def tree(self) -> Tree:
        """The running tree.

        Raises:
            ActorError: it is not there yet.
        """
        if self._tree is None:
            raise ActorError("the actors are just being started; ask again")
        return self._tree

    def run(self, signals: Signals) -> End:
        """Run until told to stop, or until the actors give up.

        Raises:
            SpoePoolError: the SPOE workers cannot be started.
        """
        self._pool.start()
        self._tree = start_tree(self._specs, intensity=INTENSITY, on_exit=lambda cause: self._give_up(cause, signals))
        if self._settings.drain_maintenance:
            self._maintenance.end(signals.stop)
        end = End.GAVE_UP
        try:
            self._wait(signals)
            if self._gave_up is None:
                end = End.LEFT if self._settings.on_exit == "leave" else End.DRAINED
                self._manager.stopping(_STOPPING[end], self._longest_end_s(end))
            if end is End.DRAINED:
                self._drain(signals)
        finally:
            self._tree.stop(STOP_TIMEOUT_S)
            self._tokens.close()
            if self._dataplane is not None:
                self._dataplane.stop()
        if end is End.DRAINED:
            self._pool.close(POOL_CLOSE_S)
            self._end_haproxy()
            _log.info("stopped")
            return end
        if self._replaced:
            # Nobody can tell our HAProxy anything any more, and it holds the ports.
            self._process.kill()
            self._pool.close(POOL_CLOSE_S)
        # The SPOE workers see our end and decide on by the last policy, until the next hcc relieves them.
        self._pool.leave()
        self._process.release()
        if self._gave_up is not None:
            left = "HAProxy is ended" if self._replaced else "HAProxy goes on without hcc"
            _log.critical("giving up, %s: %s", left, self._gave_up.cause)
        else:
            _log.info("stopped; HAProxy goes on, for the next hcc to adopt")
        return end

    def _wait(self, signals: Signals) -> None:
        """Return when told to stop, or when the actors gave up; meanwhile the service manager hears that we live."""
        manager = self._manager
        beat_s = (manager.watchdog_s or EXTEND_S) / 3 if manager.listens else float("inf")
        due_s = time.monotonic() + beat_s
        while not signals.stop.is_set() and self._gave_up is None:
            signals.any.wait(min(beat_s, KEEP_S))
            signals.any.clear()
            self._keep_directory()
            self._look_at_program(signals)
            if time.monotonic() >= due_s and self._answers():
                due_s = time.monotonic() + beat_s
                manager.alive()
            if signals.reload.is_set():
                signals.reload.clear()
                manager.reloading()
                self.tree().tell(CONSUL_WATCHER, ReloadToken())
                manager.reloaded()

    def _keep_directory(self) -> None:
        """Whoever has a file in it puts that back: a cleaner of temporary files, or a logout, takes all of it."""
        try:
            if self._directory.keep():
                _log.error("somebody removed %s, it is made anew", self._directory.path)
        except LockedError as exc:
            # To put anything back would take it from that one, which would put it back, too.
            self._replaced, self._gave_up = True, TreeExit(str(exc))
        except (HccError, OSError) as exc:
            self._directory_problem.say(f"{self._directory.path} is gone: {exc}")
            return
        self._directory_problem.over()

    def _look_at_program(self, signals: Signals) -> None:
        """What another version needs to be told was decided at the start, so that only the next hcc can drive it."""
        replacement = self._program.replacement()
        if replacement is not None:
            cause = f"HAProxy was upgraded to {replacement.label()}: hcc has to be started again to drive that one"
            self._give_up(TreeExit(cause), signals)

    def _answers(self) -> bool:
        """Whether the root, which watches all others, answers."""
        try:
            return bool(self.tree().actors(WATCHDOG_ASK_S))
        except ActorError:
            return False

    def _give_up(self, cause: TreeExit, signals: Signals) -> None:
        self._gave_up = cause
        signals.any.set()

    def _longest_end_s(self, end: End) -> float:
        settings = self._settings
        drain_s = settings.drain_delay_s + settings.drain_timeout_s + DRAIN_SLACK_S
        drain_s += BEGIN_TIMEOUT_S + REST_TIMEOUT_S
        return STOP_TIMEOUT_S + POOL_CLOSE_S + (drain_s if end is End.DRAINED else 0.0)

    def _drain(self, signals: Signals) -> None:
        settings = self._settings
        timeout_s = settings.drain_timeout_s
        _log.info("stopping: open connections have %.0f s to finish; a second signal cuts them", timeout_s)
        self._draining.announced = True
        self.tree().tell(ADMIN, Drain())
        if settings.drain_maintenance:
            self._maintenance.begin()
        signals.hurry.wait(settings.drain_delay_s)
        self._draining.frozen = True
        # All others go on, however long what is open may take: who is denied is cut, and endpoints come and go.
        self.tree().tell(CONFIG_RECONCILER, Drain())
        # The new worker of a reload that is under way would listen again where we are about to close.
        _wait_for(self._at_rest, signals, REST_TIMEOUT_S)
        self._draining.begin(timeout_s)
        self.tree().tell(PROCESS_SUPERVISOR, Drain())
        _wait_for(self._drained, signals, timeout_s + DRAIN_SLACK_S)

    def _end_haproxy(self) -> None:
        """Make sure: after a hurried stop, or when ProcessSupervisor could not do it."""
        if self._process.pid:
            self._process.kill()
            self._process.reap()


def consul_agent(consul: ConsulSettings, metrics: Metrics) -> Agent:
    """The agent of these settings; its clients share one TLS context, as one takes long to make.

    Raises:
        SettingError: the token file or a certificate file cannot be used.
    """
    tls, tokens = AgentTls(consul), TokenSource(consul)

    def count(outcome: str) -> None:
        metrics.consul_requests.labels(outcome).inc()

    return Agent(lambda: ConsulClient(consul, tokens, tls=tls, count=count), tokens)


def _wait_for(event: threading.Event, signals: Signals, timeout_s: float) -> None:
    """Return when it happened, when told to hurry, or when that time is over."""
    deadline = time.monotonic() + timeout_s
    while not event.wait(POLL_S) and not signals.hurry.is_set() and time.monotonic() < deadline:
        pass


def _watcher_maker(agent: Agent) -> Callable[[WatchKey, Deliver], Watcher]:
    chains = HeldChains()
    return lambda key, deliver: Watcher(
        key, agent.make_client, deliver, refresh_token=agent.tokens.reload, chains=chains
    )


def _stats_service(
    settings: RunSettings, chosen: Chosen, make_client: Callable[[], ConsulClient]
) -> StatsService | None:
    if not settings.stats_service_register or settings.stats_addr is None:
        return None
    service_id = chosen.service_id or chosen.proxy_id
    definition = stats_definition(service_id, chosen.service or service_id, chosen.address, settings.stats_addr)
    return StatsService(make_client, definition)


def _descriptors() -> int:
    """How many HAProxy may have, 0 for any number."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if hard_limit == resource.RLIM_INFINITY else hard_limit


def _global_options(directory: StateDirectory, access_log: str) -> GlobalOptions:
    return GlobalOptions(
        stats_socket=directory.layout.stats_socket,
        spoe_directory=directory.layout.directory,
        hard_stop_after_ms=HARD_STOP_AFTER_MS,
        threads=max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // CORES_PER_THREAD)),
        max_connections=MAX_CONNECTIONS,
        access_log=access_log,
    )


def _other_that_runs(directory: StateDirectory, found: Found, build: Build) -> tuple[Found, Build] | None:
    """The program of a HAProxy that an earlier hcc left running, where it has to be told other things than ours.

    Its master starts anew by its own path in each reload: ours would not come, whatever the text says.
    """
    path = running_program(directory.layout.pid_file)
    try:
        if not path or Path(path).samefile(found.binary):
            return None
        runs = probe(path)
    except (OSError, SettingError):
        return None
    if capabilities_of(build).can_the_same(capabilities_of(runs)):
        return None
    _log.warning(
        "not %s is used but %s, until hcc was stopped with it: an earlier hcc left it running, process %d",
        build.label(),
        runs.label(),
        recorded_pid(directory.layout.pid_file),
    )
    return Found(path, "the HAProxy that runs"), runs


def _say_what_runs(settings: RunSettings, found: Found, build: Build, choice: Choice) -> None:
    _log.info("hcc %s, %s from %s: %s", VERSION, build.label(), found.origin, found.binary)
    if is_newer_than_known(build.version):
        _log.warning("HAProxy %s is newer than what this hcc knows, it is treated like %s", build.text, NEWEST.branch)
    _log.info("control: %s", choice.reason)
    if not choice.capabilities.has(Feature.LOOKAHEAD):
        _log.warning(
            "this HAProxy is built without PCRE: layer-7 permissions deny, some routes of upstreams are not followed"
        )
    _say_what_is_verified(settings.verify_upstream, choice)
    if settings.intentions in UNENFORCED:
        _log.warning("%s", UNENFORCED[settings.intentions])


def _say_what_is_verified(verify: VerifyUpstream, choice: Choice) -> None:
    looks = choice.capabilities.has(Feature.SERVER_CERTIFICATE)
    if verify is VerifyUpstream.OFF or (verify is VerifyUpstream.RESPONSE and not looks):
        _log.warning("it is not verified who upstreams' instances are: any service of the mesh could pose as one")
    elif verify.checks_answers and not looks:
        _log.warning("this HAProxy cannot look at what servers show: instances are verified by probes alone")
