"""ConsulWatcher: asks Consul everything that matters for one proxy, and tells the others what it means together.

Each question has a thread of its own (`hcc.consul.watch`); which questions there are is decided by
`hcc.consul.assembly` from the answers so far. What Consul said last stays when it stops answering.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hcc.actors.actor import Actor
from hcc.actors.changes import Changes, noted
from hcc.actors.keeping import Keeper
from hcc.actors.lifecycle import StaleGenerationError, StopReason
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    SPOE_POOL,
    TOKEN_AGENT,
    VERIFIER,
    CredentialsOffered,
    FactsReported,
    PolicyChanged,
    Publish,
    ReloadToken,
    SnapshotChanged,
)
from hcc.actors.readiness import ConsulFacts
from hcc.consul.abilities import Lack
from hcc.consul.answers import IntentionList
from hcc.consul.assembly import State, snapshot, updated, wanted
from hcc.consul.credentials import TokenSource
from hcc.consul.errors import ConsulPermissionError
from hcc.consul.keys import ChainWatch, EndpointsWatch, QueryWatch, WatchKey
from hcc.consul.watch import Watcher, WatchEvent, WatchFailed, WatchValue
from hcc.errors import SettingError
from hcc.log import LastingProblem
from hcc.mesh.intentions import Policy
from hcc.mesh.remembered import forget_gone
from hcc.mesh.snapshot import Snapshot
from hcc.metrics import Metrics

_log = logging.getLogger(__name__)

Deliver = Callable[[WatchKey, WatchEvent], None]
MakeWatcher = Callable[[WatchKey, Deliver], Watcher]

# Answers kept from an earlier hcc are not served from while Consul may still confirm one of them within this time.
CONFIRM_S = 2.0
# Where the policy alone changed, HAProxy's maps are told of it first: to look at all the rest, which is as it was,
# would take the interpreter from that.
POLICY_FIRST_S = 0.02
# When tokens come to be demanded, Consul is asked who signs them. That takes milliseconds. Where it takes longer than
# this the policy is told as it is, and denies what it leaves to tokens.
PROVIDERS_WITHIN_S = 1.0
# Answers that changed are kept on disk within this; a policy sooner: the next hcc may have to start without Consul, and
# must not let in who was denied. That takes the interpreter at most this part of the time.
KEEP_WITHIN_S = 5.0
KEEP_POLICY_WITHIN_S = 0.5
KEEP_SHARE = 0.1
# How long the end waits for a disk.
KEEP_AT_END_S = 3.0
# Until watches are started that there was no thread for.
FOLLOW_AGAIN_S = 1.0
_OF_UPSTREAMS = (ChainWatch, EndpointsWatch, QueryWatch)
# An agent names the server that it could not reach: with each try another one, and the port of its own side.
_NUMBERS = re.compile(r"[0-9a-f.:]*[0-9][0-9a-f.:]*")


@dataclass(slots=True)
class Page:
    """What one generation of the actor knows and does; only that one writes here.

    Any thread may read this: each of it is a value, replaced as a whole.

    Args:
        state: the latest answers.
        snapshot: the newest that was told, None before the first.
        changes: when Consul told otherwise about endpoints.
        watchers: those that run.
        unconfirmed: what an earlier hcc was told and Consul has not told this one.
        confirming: whether Consul still has time to, and nobody was told anything of it.
    """

    state: State
    snapshot_version: int = 0
    lacks: frozenset[Lack] = frozenset()
    snapshot: Snapshot | None = None
    changes: Changes = field(default_factory=dict)
    watchers: tuple[Watcher, ...] = ()
    unconfirmed: frozenset[WatchKey] = frozenset()
    confirming: bool = False


class Ledger:
    """What outlives the actor.

    A successor that started from nothing would first tell of a proxy without leaf and upstreams, and HAProxy would be
    told to drop them. It begins a page of its own, with what is on the last one: a predecessor that hung, was abandoned
    and wakes up later writes where nobody reads any more.

    Args:
        state: the answers to begin with.
        keeper: puts answers where the next hcc finds them; None where that is not wanted.

    Attributes:
        page: of the generation that works now. Any thread may read this.
    """

    def __init__(
        self, state: State, *, unconfirmed: frozenset[WatchKey] = frozenset(), keeper: Keeper | None = None
    ) -> None:
        self.page = Page(state, unconfirmed=unconfirmed, confirming=bool(unconfirmed))
        self.keeper = keeper
        self._generation = 0
        self._turning = threading.Lock()

    def turn(self, generation: int) -> Page:
        """A page for this generation.

        Raises:
            StaleGenerationError: a later one has begun.
        """
        with self._turning:
            if generation < self._generation:
                raise StaleGenerationError(f"Generation {self._generation} goes on with what was known.")
            self._generation, self.page = generation, replace(self.page)
            return self.page

    def keep(self, page: Page) -> None:
        """Have the answers of that page kept, if it is the present one."""
        with self._turning:
            if page is self.page and self.keeper is not None:
                self.keeper.keep(page.state)


@dataclass(frozen=True, slots=True)
class _News:
    """From a watching thread."""

    key: WatchKey
    event: WatchEvent


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """To itself: Consul had its time to confirm what was kept."""


@dataclass(frozen=True, slots=True)
class _TellSnapshot:
    """To itself: who hears of the policy alone has heard of it."""


@dataclass(frozen=True, slots=True)
class _TellPolicy:
    """To itself: nobody has said in time who signs the tokens that the policy demands."""


@dataclass(frozen=True, slots=True)
class _Keep:
    """To itself: time to keep the answers."""


@dataclass(frozen=True, slots=True)
class _FollowAgain:
    """To itself: start the watches that there was no thread for."""


class ConsulWatcher(Actor):
    """Owns the watches and what they said."""

    def init(self, *, make_watcher: MakeWatcher, ledger: Ledger, tokens: TokenSource, metrics: Metrics) -> None:
        self._make_watcher = make_watcher
        self._ledger = ledger
        self._page = ledger.turn(self.context.generation)
        self._tokens = tokens
        self._metrics = metrics
        self._watchers: dict[WatchKey, Watcher] = {}
        self._failing: dict[WatchKey, Exception] = {}
        self._scarcity = LastingProblem(_log)
        self._told: Snapshot | None = None
        # When the answers are to be kept, by `time.monotonic`.
        self._keep_at_s = float("inf")
        self._snapshot_waits = False
        # Whether the policy told is that of before, as it is not known who signs the tokens that the new one demands.
        self._policy_waits = False

    def setup(self) -> None:
        # Of a predecessor that was abandoned: they hold connections to the agent, and places among the held chains.
        for watcher in self._page.watchers:
            watcher.stop()
        self._follow()
        if self._page.confirming:
            self.after(CONFIRM_S, _Unconfirmed(), key="confirm")
            # All may be: a predecessor failed just then.
            self._go_on_if_heard()
        self._tell_changes()

    def handle(self, message: object) -> None:
        match message:
            case _News(key, event) if key in self._watchers:
                self._hear(key, event)
            case Publish():
                self._publish()
            case ReloadToken():
                self._reload_token()
            case _Unconfirmed():
                self._stop_confirming()
            case _TellSnapshot() if self._told is not None:
                self._tell_snapshot(self._told)
            case _TellPolicy():
                self._tell_changes(at_last=True)
            case _Keep():
                self._keep()
            case _FollowAgain():
                self._follow()

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """End all watches; each interrupts its own request. What was not kept yet is kept now."""
        self._keep_only(frozenset())
        self._keep()
        if self._ledger.keeper is not None and self._ledger.page is self._page:
            self._ledger.keeper.finish(KEEP_AT_END_S)

    def _hear(self, key: WatchKey, event: WatchEvent) -> None:
        match event:
            case WatchFailed():
                self._note_failure(key, event)
                self._go_on_if_heard()
            case WatchValue():
                self._note_success(key)
                if isinstance(event.value, IntentionList):
                    self._say_lacks(event.value.lacks)
                state = updated(self._page.state, key, event.value)
                if state is not self._page.state:
                    self._page.state = state
                    self._follow()
                self._confirm(key)
                self._tell_changes()
                self._keep_soon(KEEP_WITHIN_S)

    def _confirm(self, key: WatchKey) -> None:
        """Note that Consul itself said this."""
        if not self._page.unconfirmed:
            return
        self._page.unconfirmed = (self._page.unconfirmed - {key}) & wanted(self._page.state)
        if not self._page.unconfirmed and not self._page.confirming:
            _log.info("Consul has confirmed or renewed every answer of the earlier run")
        self._go_on_if_heard()
        self._report()

    def _go_on_if_heard(self) -> None:
        """Go on with what is known once each watch has heard something: an answer, or that there is none for it.

        A watch that fails says nothing of the others: an upstream's datacenter may be gone, or a right be missing, and
        the intentions come a moment later. Where the agent is down all of them fail at once.
        """
        if all(key in self._failing for key in self._page.unconfirmed):
            self._stop_confirming()

    def _stop_confirming(self) -> None:
        """Go on with what is known, confirmed or not."""
        if not self._page.confirming:
            return
        self._page.confirming = False
        self.cancel("confirm")
        if self._page.unconfirmed:
            _log.warning(
                "serving from the answers of an earlier run until Consul confirms them: %s",
                ", ".join(_labels(self._page.unconfirmed)),
            )
        self._tell_changes()

    def _keep_soon(self, within_s: float) -> None:
        keeper = self._ledger.keeper
        if keeper is None or not self._has_more_for(keeper):
            return
        wait_s = 0.0 if keeper.empty else max(within_s, keeper.busy_s / KEEP_SHARE)
        at_s = time.monotonic() + wait_s
        if at_s < self._keep_at_s:
            self._keep_at_s = at_s
            self.after(wait_s, _Keep(), key="keep")

    def _keep(self) -> None:
        self._keep_at_s = float("inf")
        keeper = self._ledger.keeper
        if keeper is not None and self._has_more_for(keeper):
            self._ledger.keep(self._page)

    def _has_more_for(self, keeper: Keeper) -> bool:
        """Whether what is told is not kept yet; without a leaf it is of no use to anybody."""
        told = self._told
        return told is not None and told.leaf is not None and not keeper.has(self._page.state)

    def _follow(self) -> None:
        """Run exactly the watches that are wanted now; where no thread is left, those that run, and others later."""
        keys = wanted(self._page.state)
        self._keep_only(keys)
        # Who may call us first, should there not be threads for all.
        missing = sorted(keys - self._watchers.keys(), key=lambda key: (isinstance(key, _OF_UPSTREAMS), repr(key)))
        new = {key: self._make_watcher(key, self._deliver) for key in missing}
        self._watchers |= new
        # Before they start: a successor must find all that run.
        self._page.watchers = tuple(self._watchers.values())
        for number, watcher in enumerate(new.values()):
            try:
                watcher.start()
            except RuntimeError as exc:
                self._keep_only(keys - set(missing[number:]))
                text = f"no thread to ask Consul in ({exc}); questions that are asked go on, others are tried again"
                self._scarcity.say(text)
                self.after(FOLLOW_AGAIN_S, _FollowAgain(), key="follow")
                return
        self._scarcity.over()

    def _keep_only(self, keep: frozenset[WatchKey]) -> None:
        for key in [key for key in self._watchers if key not in keep]:
            self._watchers.pop(key).stop()
            self._failing.pop(key, None)
        self._page.watchers = tuple(self._watchers.values())

    def _deliver(self, key: WatchKey, event: WatchEvent) -> None:
        # Called in the watch's own thread; the address fences out threads of an earlier generation.
        self.address.tell(_News(key, event))

    def _note_failure(self, key: WatchKey, event: WatchFailed) -> None:
        self._metrics.watch_failures.labels(type(key).__name__).inc()
        reason = str(event.error)
        if key not in self._failing or _NUMBERS.sub("", str(self._failing[key])) != _NUMBERS.sub("", reason):
            _log.warning("%s: %s; the last good answer stays, asking again", key.label(), reason)
        self._failing[key] = event.error
        self._report()

    def _note_success(self, key: WatchKey) -> None:
        self._metrics.watch_answers.labels(type(key).__name__).inc()
        failed = self._failing.pop(key, None)
        if failed is not None:
            _log.info("%s: Consul answers again", key.label())
            self._hurry(allowed=isinstance(failed, ConsulPermissionError))
            self._report()

    def _hurry(self, *, allowed: bool) -> None:
        for key in self._failing:
            self._watchers[key].hurry(allowed=allowed)

    def _say_lacks(self, lacks: frozenset[Lack]) -> None:
        """One line for each missing ability, once as long as it is missing."""
        for lack in sorted(lacks - self._page.lacks, key=lambda one: one.name):
            _log.info("missing in this Consul: %s", lack.value)
        self._page.lacks = lacks

    def _tell_changes(self, *, at_last: bool = False) -> None:
        """Tell each neighbour what changed for it since it was told last; `at_last` a policy that waits, too."""
        if self._page.confirming:
            return
        new, old = snapshot(self._page.state, self._page.snapshot_version + 1), self._told
        if new is not None:
            new = self._with_whole_policy(new, None if at_last or old is None else old.policy)
        if new is None or (old is not None and replace(new, version=old.version) == old):
            return
        self._page.snapshot_version = new.version
        self._page.changes = noted(self._page.changes, self._page.snapshot, new, time.time())
        self._page.snapshot = new
        self._told = new
        forget_gone(sum(len(target.endpoints) for state in new.upstreams for target in state.targets))
        self._warn_of_registration(new, old)
        if new.leaf and new.roots and (old is None or (new.leaf, new.roots) != (old.leaf, old.roots)):
            self.tell(CERT_MANAGER, CredentialsOffered(new.leaf, new.roots))
        if new.policy and (old is None or new.policy != old.policy):
            self._metrics.policy_version.set(new.policy.version)
            self._tell_policy(new.policy)
        if old is None or not _differ_in_policy_alone(old, new):
            self._tell_snapshot(new)
        elif not self._snapshot_waits:
            self._snapshot_waits = True
            self.after(POLICY_FIRST_S, _TellSnapshot(), key="snapshot")
        self._keep_soon(KEEP_WITHIN_S if old is not None and new.policy == old.policy else KEEP_POLICY_WITHIN_S)
        if old is None:
            self._report()

    def _with_whole_policy(self, new: Snapshot, before: Policy | None) -> Snapshot:
        """The snapshot, for a moment with the policy of before: half of the new one would deny, and cut sessions."""
        waits = new.policy is not None and before is not None and _lacks_providers(new.policy, before)
        if waits and not self._policy_waits:
            self.after(PROVIDERS_WITHIN_S, _TellPolicy(), key="policy")
        elif not waits:
            self.cancel("policy")
        self._policy_waits = waits
        return replace(new, policy=before) if waits else new

    def _publish(self) -> None:
        told = self._told
        self._report()
        if told is None:
            return
        if told.leaf and told.roots:
            self.tell(CERT_MANAGER, CredentialsOffered(told.leaf, told.roots))
        if told.policy:
            self._tell_policy(told.policy)
        self._tell_snapshot(told)

    def _tell_snapshot(self, told: Snapshot) -> None:
        self._snapshot_waits = False
        self.cancel("snapshot")
        for hearer in (VERIFIER, CONFIG_RECONCILER):
            self.tell(hearer, SnapshotChanged(told))

    def _tell_policy(self, policy: Policy) -> None:
        for hearer in (AUTHORISER, SPOE_POOL, TOKEN_AGENT):
            self.tell(hearer, PolicyChanged(policy))

    def _report(self) -> None:
        failing = tuple(f"{key.label()}: {error}" for key, error in self._failing.items())
        stale = _labels(self._page.unconfirmed) if self._told is not None else ()
        self._metrics.stale_answers.set(len(stale))
        self.tell(ADMIN, FactsReported(ConsulFacts(self._told is not None, failing, stale)))

    def _reload_token(self) -> None:
        try:
            changed = self._tokens.reload()
        except SettingError as exc:
            _log.error("the old token stays: %s", exc)
            return
        _log.info("token file read again, %s", "the token changed" if changed else "the same token")
        if changed:
            self._hurry(allowed=True)

    @staticmethod
    def _warn_of_registration(new: Snapshot, old: Snapshot | None) -> None:
        known = old.proxy.warnings if old is not None else ()
        for warning in new.proxy.warnings:
            if warning not in known:
                _log.warning("registration of %s: %s", new.proxy.id, warning)


def _differ_in_policy_alone(old: Snapshot, new: Snapshot) -> bool:
    """Whether there was a whole policy before, and nothing but that changed."""
    before = old.policy
    if before is None or not before.complete or new.policy == before:
        return False
    return replace(new, version=old.version, policy=before) == old


def _lacks_providers(policy: Policy, before: Policy) -> bool:
    """Whether the policy before was whole, and this one of the same service is not."""
    alike = (policy.destination, policy.trust_domain) == (before.destination, before.trust_domain)
    return alike and before.complete and not policy.complete


def _labels(keys: frozenset[WatchKey]) -> tuple[str, ...]:
    return tuple(sorted(key.label() for key in keys))
