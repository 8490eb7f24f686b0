"""What one `hcc run` is made of: every part in this process, and the specification of each actor."""

from __future__ import annotations

import os
import platform
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hcc.actors.admin import Admin
from hcc.actors.authoriser import Authoriser
from hcc.actors.cert_manager import CertManager
from hcc.actors.child import ChildSpec
from hcc.actors.config_reconciler import ConfigReconciler
from hcc.actors.consul_watcher import ConsulWatcher, Deliver
from hcc.actors.draining import Draining
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
)
from hcc.actors.picture import Identity
from hcc.actors.process_supervisor import ProcessSupervisor
from hcc.actors.restart import Intensity
from hcc.actors.sources import Sources
from hcc.actors.spoe_pool import SPOEPool
from hcc.actors.supervisor import Supervisor
from hcc.actors.token_agent import TokenAgent
from hcc.actors.tree import Tree
from hcc.actors.verifier import Verifier
from hcc.app.answers_file import AnswersFile, kept_ledger, unkept_ledger
from hcc.app.collectors import actor_metrics, pool_metrics, watch_metrics, worker_metrics
from hcc.app.control import Driven
from hcc.app.haproxy_metrics import haproxy_metrics
from hcc.app.peers_file import PeersFile, register_of
from hcc.app.selection import Chosen
from hcc.app.service_manager import ServiceManager
from hcc.app.state_directory import StateDirectory
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
from hcc.haproxy.backend_counts import BackendCounts
from hcc.haproxy.binary import Program
from hcc.haproxy.caller_maps import CallerMaps
from hcc.haproxy.capabilities import Feature
from hcc.haproxy.desired_terms import Options
from hcc.haproxy.files import remove
from hcc.haproxy.layout import MOST_AGENTS
from hcc.haproxy.leaf_map import LeafMap
from hcc.haproxy.model import GlobalOptions
from hcc.haproxy.process import most_descriptors
from hcc.haproxy.stats_reader import BACKENDS, EVERYTHING, SUMMARY, StatsReader, servers_of
from hcc.mesh.secret import Secret
from hcc.metrics import Metrics
from hcc.peers.prober import Prober
from hcc.settings import Enforcement, RunSettings
from hcc.spoe.pool import WorkerPool
from hcc.spoe.spawner import Spawner
from hcc.tokens.server import TokenServer
from hcc.version import VERSION

# Restarts of one group before it fails upwards; at the root hcc then exits.
INTENSITY = Intensity(max_restarts=10, window_s=60.0)
# Envoy's default drain time; after a reload the old worker may serve its connections this long.
HARD_STOP_AFTER_MS = 600_000
# A page with 10,000 endpoints may take HAProxy longer than a scrape, which asks for a summary.
PAGE_TIMEOUT_S = 3.0
# A second thread makes each request dearer by a tenth, and the application needs processors, too; one does 20,000 http
# requests or 1,000 new TLS connections a second.
MAX_THREADS = 4
CORES_PER_THREAD = 2
MAX_CONNECTIONS = 10_000
# A check, a reload and many runtime commands may take long with thousands of servers.
RECONCILER_HEARTBEAT_S = 300.0
# Several questions to a HAProxy that is slow, each bounded (`caller_maps.TIMEOUT_S`, `leaf_map.TIMEOUT_S`): a successor
# would begin with the same.
MAPS_HEARTBEAT_S = 30.0
SUPERVISOR_HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class Agent:
    """How to talk to the Consul agent."""

    make_client: Callable[[], ConsulClient]
    tokens: TokenSource


@dataclass(frozen=True, slots=True)
class Parts:
    """What a sidecar is made of outside this process, and where it is kept."""

    program: Program
    zygote: Spawner
    haproxy: Driven
    directory: StateDirectory


@dataclass(frozen=True, slots=True)
class Watchers:
    """Who is told how a sidecar does: the service manager that started it, and whoever reads the metrics."""

    manager: ServiceManager
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Ending:
    """How far the end of a sidecar has come, between the main thread and the actors that bring it about."""

    draining: Draining
    at_rest: threading.Event
    """ConfigReconciler does nothing any more."""
    drained: threading.Event
    """HAProxy has ended."""


class Composition:
    """All that one sidecar has in this process, made and not yet started. It outlives its actors.

    Args:
        tree: the running actors; raises ActorError while there are none.

    Attributes:
        pool: the SPOE workers.
        tokens: who answers HAProxy about tokens.
    """

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        chosen: Chosen,
        parts: Parts,
        watchers: Watchers,
        ending: Ending,
        tree: Callable[[], Tree],
    ) -> None:
        self._settings, self._agent, self._chosen, self._parts = settings, agent, chosen, parts
        self._metrics, self._manager = watchers.metrics, watchers.manager
        self._ending = ending
        self._tree = tree
        self._enforced = settings.intentions is not Enforcement.AUDIT
        self._layout = layout = parts.directory.layout
        self._agent_sockets = tuple(layout.agent_socket(number) for number in range(1, settings.spoe_workers + 1))
        # An earlier hcc's workers end once their place is gone: those of which we have none would decide by its policy.
        remove(*(layout.agent_socket(number) for number in range(settings.spoe_workers + 1, MOST_AGENTS + 1)))
        self.pool = WorkerPool(self._agent_sockets, zygote=parts.zygote)
        self.tokens = TokenServer(layout.token_socket, self._metrics)
        capabilities = parts.haproxy.control.capabilities
        self._running = parts.haproxy.control.running()
        self._maps = CallerMaps(layout, capabilities)
        self._leaves = LeafMap(layout, capabilities)
        for prepared in (self._maps, self._leaves):
            prepared.prepare(running=self._running)
        begin = kept_ledger if settings.cached_start else unkept_ledger
        self._ledger = begin(AnswersFile(parts.directory.path, settings.selection, chosen), State(chosen.proxy_id))
        self._stats = partial(StatsReader, layout.stats_socket, master=layout.master_socket)
        self._everything = self._stats(EVERYTHING, PAGE_TIMEOUT_S)
        self._collect()

    def specs(self) -> tuple[ChildSpec, ...]:
        """Every actor, in the order of their start: who is told comes before who tells."""
        return (
            self._admin(),
            self._spoe_group(),
            ChildSpec(TOKEN_AGENT, TokenAgent, {"server": self.tokens}),
            self._authoriser(),
            self._verifier(),
            self._config_reconciler(),
            self._process_supervisor(),
            self._cert_manager(),
            self._consul_watcher(),
        )

    def _collect(self) -> None:
        """What somebody else counts is asked for at each scrape."""
        metrics, settings = self._metrics, self._settings
        self._show_version(str(self._parts.program.build.version))
        metrics.collect_from(lambda: actor_metrics(self._tree))
        metrics.collect_from(lambda: watch_metrics(one.state() for one in self._ledger.page.watchers))
        metrics.collect_from(lambda: pool_metrics(self.pool.workers()))
        metrics.collect_from(
            lambda: worker_metrics(
                self.pool.counters, refused_tokens=self.tokens.refused_total, enforced=self._enforced
            )
        )
        scraped = self._everything if settings.metrics_per_endpoint else self._stats(SUMMARY)
        metrics.collect_from(lambda: haproxy_metrics(scraped.read, lambda: self._ledger.page.snapshot))

    def _show_version(self, version: str) -> None:
        """That of the HAProxy that runs, where it is known; its OpenSSL is taken for that of the program."""
        info = self._metrics.haproxy_info
        info.clear()
        info.labels(version, self._parts.program.build.openssl, self._settings.control).set(1)

    def _admin(self) -> ChildSpec:
        settings, agent = self._settings, self._agent
        sources = Sources(
            tree=self._tree,
            ledger=self._ledger,
            stats=self._everything.read,
            consul=AgentVersion(agent.make_client),
        )
        arguments = {
            "identity": self._identity(),
            "control_socket": self._parts.directory.control_socket,
            "stats_addr": settings.stats_addr,
            "stats_service": _stats_service(settings, self._chosen, agent.make_client),
            "intentions": settings.intentions,
            "verify": settings.verify_upstream,
            "metrics": self._metrics,
            "sources": sources,
            "draining": self._ending.draining,
            "on_readiness": self._manager.readiness,
        }
        return ChildSpec(ADMIN, Admin, arguments)

    def _spoe_group(self) -> ChildSpec:
        arguments = {"pool": self.pool, "metrics": self._metrics, "enforced": self._enforced}
        children = (ChildSpec(SPOE_POOL, SPOEPool, arguments),)
        return ChildSpec(SPOE_GROUP, Supervisor, {"children": children, "intensity": INTENSITY})

    def _authoriser(self) -> ChildSpec:
        arguments = {
            "maps": self._maps,
            "metrics": self._metrics,
            "resync_s": self._settings.resync_s,
            "cuts": self._enforced,
        }
        return ChildSpec(AUTHORISER, Authoriser, arguments, heartbeat_s=MAPS_HEARTBEAT_S)

    def _verifier(self) -> ChildSpec:
        verify = self._settings.verify_upstream
        counts = BackendCounts(
            self._stats(BACKENDS).read,
            (lambda backend: self._stats(servers_of(backend), PAGE_TIMEOUT_S).read()) if verify.probes else None,
        )
        arguments = {
            "mode": verify,
            "register": register_of(PeersFile(self._parts.directory.path), running=self._running),
            "make_prober": Prober,
            "leaves": self._leaves,
            "counts": counts,
            "metrics": self._metrics,
            "resync_s": self._settings.resync_s,
        }
        return ChildSpec(VERIFIER, Verifier, arguments, heartbeat_s=MAPS_HEARTBEAT_S)

    def _config_reconciler(self) -> ChildSpec:
        arguments = {
            "control": self._parts.haproxy.control,
            "options": self._options(),
            "probes": self._settings.verify_upstream.probes,
            "metrics": self._metrics,
            "resync_s": self._settings.resync_s,
            "draining": self._ending.draining,
            "on_rest": self._ending.at_rest.set,
        }
        return ChildSpec(CONFIG_RECONCILER, ConfigReconciler, arguments, heartbeat_s=RECONCILER_HEARTBEAT_S)

    def _process_supervisor(self) -> ChildSpec:
        haproxy = self._parts.haproxy
        arguments = {
            "process": haproxy.process,
            "installed": str(self._parts.program.build.version),
            "on_version": self._show_version,
            "metrics": self._metrics,
            "on_drained": self._ending.drained.set,
            "draining": self._ending.draining,
            "dataplane": haproxy.dataplane,
        }
        return ChildSpec(PROCESS_SUPERVISOR, ProcessSupervisor, arguments, heartbeat_s=SUPERVISOR_HEARTBEAT_S)

    def _cert_manager(self) -> ChildSpec:
        arguments = {"leaf_path": self._layout.leaf, "roots_path": self._layout.roots, "metrics": self._metrics}
        return ChildSpec(CERT_MANAGER, CertManager, arguments)

    def _consul_watcher(self) -> ChildSpec:
        arguments = {
            "make_watcher": _watcher_maker(self._agent),
            "ledger": self._ledger,
            "tokens": self._agent.tokens,
            "metrics": self._metrics,
        }
        return ChildSpec(CONSUL_WATCHER, ConsulWatcher, arguments)

    def _identity(self) -> Identity:
        build = self._parts.program.build
        return Identity(
            proxy_id=self._chosen.proxy_id,
            service_id=self._chosen.service_id,
            pid=os.getpid(),
            started_at=time.time(),
            hcc=VERSION,
            python=platform.python_version(),
            haproxy=str(build.version),
            openssl=build.openssl,
            control=self._settings.control,
        )

    def _options(self) -> Options:
        settings, layout = self._settings, self._layout
        capabilities = self._parts.haproxy.control.capabilities
        process = GlobalOptions(
            stats_socket=layout.stats_socket,
            state_directory=layout.directory,
            hard_stop_after_ms=HARD_STOP_AFTER_MS,
            threads=max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // CORES_PER_THREAD)),
            max_connections=MAX_CONNECTIONS,
            access_log=settings.access_log,
        )
        return Options(
            process=process,
            agent_sockets=self._agent_sockets,
            identities=layout.identities,
            verdicts=layout.verdicts,
            rules=layout.rules,
            ticket_keys=layout.ticket_keys,
            ticket_secret=Secret(os.urandom(32).hex()),
            intentions=settings.intentions,
            leaves=layout.leaves if settings.verify_upstream.checks_answers else "",
            token_socket=layout.token_socket,
            descriptors=_descriptors(layout.pid_file),
            patterns=capabilities.has(Feature.LOOKAHEAD),
            route_timeouts=capabilities.has(Feature.SET_TIMEOUT),
        )


def consul_agent(consul: ConsulSettings, metrics: Metrics) -> Agent:
    """The agent of these settings; its clients share one TLS context, as one takes long to make.

    Raises:
        SettingError: the token file or a certificate file cannot be used.
    """
    tls, tokens = AgentTls(consul), TokenSource(consul)

    def count(outcome: str) -> None:
        metrics.consul_requests.labels(outcome).inc()

    return Agent(lambda: ConsulClient(consul, tokens, tls=tls, count=count), tokens)


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


def _descriptors(pid_file: str) -> int:
    """How many HAProxy may have, 0 for any number: as many as we, and no more than one that runs was started with."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = 0 if hard_limit == resource.RLIM_INFINITY else hard_limit
    return min((most for most in (ours, most_descriptors(pid_file)) if most), default=0)
