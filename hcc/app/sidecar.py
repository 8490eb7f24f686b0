"""The life of `hcc run`: finds out what to run, starts the actors, and stops all of it in the right order."""

from __future__ import annotations

import logging
import os
import threading
import time
from enum import Enum
from pathlib import Path

from hcc.actors.draining import Draining
from hcc.actors.lifecycle import ActorError
from hcc.actors.messages import (
    ADMIN,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    Drain,
    ReloadToken,
)
from hcc.actors.picture import UNENFORCED
from hcc.actors.tree import Tree, TreeExit, start_tree
from hcc.app.allocator import keep_few_arenas
from hcc.app.answers_file import kept_choice
from hcc.app.collectors import log_metrics
from hcc.app.composition import INTENSITY, Agent, Composition, Ending, Parts, Watchers, consul_agent
from hcc.app.control import Choice, choose_control, driven
from hcc.app.head_start import HeadStart
from hcc.app.maintenance import BEGIN_TIMEOUT_S, Maintenance
from hcc.app.selection import Chosen, choose_proxy
from hcc.app.service_manager import EXTEND_S, ServiceManager
from hcc.app.signals import Signals
from hcc.app.state_directory import LockedError, StateDirectory
from hcc.consul.environment import ConsulSettings
from hcc.errors import HccError, SettingError
from hcc.haproxy.access_log import STDOUT
from hcc.haproxy.binary import Found, Probe, Program
from hcc.haproxy.capabilities import NEWEST, Build, Feature, capabilities_of, is_newer_than_known
from hcc.haproxy.process import lost_program, recorded_pid, running_program
from hcc.log import LastingProblem, set_up_logging
from hcc.metrics import Metrics
from hcc.settings import RunSettings, VerifyUpstream
from hcc.version import VERSION

STOP_TIMEOUT_S = 20.0
POOL_CLOSE_S = 2.0
# Beyond the time to drain: HAProxy is told to end at once, then killed.
DRAIN_SLACK_S = 5.0
# Before it: for what ConfigReconciler is doing.
REST_TIMEOUT_S = 5.0
POLL_S = 0.1
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
    log = set_up_logging(settings.log_level, settings.log_format)
    manager = ServiceManager(os.environ)
    metrics = Metrics()
    metrics.collect_from(lambda: log_metrics(log.dropped))
    agent = consul_agent(consul, metrics)
    found, program = head_start.found, head_start.program()
    choice = choose_control(settings, program.build)
    _say_what_runs(settings, found, program.build, choice)

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
        if (other := _other_that_runs(directory, found, program.build)) is not None:
            found, program = other
            choice = choose_control(settings, program.build)
            _say_what_runs(settings, found, program.build, choice)
        haproxy = driven(choice, found.binary, directory.layout, shares_stdout=shares_stdout)
        parts = Parts(program, head_start.zygote, haproxy, directory)
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

    def __init__(self, settings: RunSettings, agent: Agent, chosen: Chosen, parts: Parts, watchers: Watchers) -> None:
        self._settings = settings
        self._directory = parts.directory
        self._directory_problem = LastingProblem(_log)
        self._program = parts.program
        self._maintenance = Maintenance(agent.make_client, chosen.proxy_id)
        self._manager = watchers.manager
        self._process = parts.haproxy.process
        self._dataplane = parts.haproxy.dataplane
        self._ending = Ending(Draining(), threading.Event(), threading.Event())
        self._gave_up: TreeExit | None = None
        # Another hcc has our directory.
        self._replaced = False
        self._tree: Tree | None = None
        made = Composition(settings, agent, chosen, parts, watchers, self._ending, self.tree)
        self._pool, self._tokens = made.pool, made.tokens
        self._specs = made.specs()

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
        self._ending.draining.announced = True
        self.tree().tell(ADMIN, Drain())
        if settings.drain_maintenance:
            self._maintenance.begin()
        signals.hurry.wait(settings.drain_delay_s)
        self._ending.draining.frozen = True
        # All others go on, however long what is open may take: who is denied is cut, and endpoints come and go.
        self.tree().tell(CONFIG_RECONCILER, Drain())
        # The new worker of a reload that is under way would listen again where we are about to close.
        _wait_for(self._ending.at_rest, signals, REST_TIMEOUT_S)
        self._ending.draining.begin(timeout_s)
        self.tree().tell(PROCESS_SUPERVISOR, Drain())
        _wait_for(self._ending.drained, signals, timeout_s + DRAIN_SLACK_S)

    def _end_haproxy(self) -> None:
        """Make sure: after a hurried stop, or when ProcessSupervisor could not do it."""
        if self._process.pid:
            self._process.kill()
            self._process.reap()


def _wait_for(event: threading.Event, signals: Signals, timeout_s: float) -> None:
    """Return when it happened, when told to hurry, or when that time is over."""
    deadline = time.monotonic() + timeout_s
    while not event.wait(POLL_S) and not signals.hurry.is_set() and time.monotonic() < deadline:
        pass


def _other_that_runs(directory: StateDirectory, found: Found, build: Build) -> tuple[Found, Program] | None:
    """The program of a HAProxy that an earlier hcc left running, where it has to be told other things than ours.

    Its master starts anew by its own path in each reload: ours would not come, whatever the text says. Where that path
    is gone it cannot be reloaded, and what it is started with next is ours.
    """
    pid_file = directory.layout.pid_file
    pid, path, lost = recorded_pid(pid_file), running_program(pid_file), lost_program(pid_file)
    if lost:
        text = "process %d, which an earlier hcc left running, cannot be reloaded: its program %s is gone"
        _log.warning(f"{text}; to have every change, end it: HAProxy is then started anew", pid, lost)
    try:
        if not path or (not lost and Path(path).samefile(found.binary)):
            return None
        runs = Probe(f"/proc/{pid}/exe" if lost else path).program()
    except (OSError, SettingError):
        return None
    if capabilities_of(build).can_the_same(capabilities_of(runs.build)):
        return None
    _log.warning(
        "not %s is used but %s, until hcc was stopped with it: an earlier hcc left it running, process %d",
        build.label(),
        runs.build.label(),
        pid,
    )
    return Found(found.binary if lost else path, "the HAProxy that runs"), runs


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
