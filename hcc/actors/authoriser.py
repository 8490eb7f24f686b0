"""Authoriser: whom the SPOE workers let in, HAProxy lets in by itself from then on, as long as the policy does.

Thin: `CallerBook` decides, `CallerMaps` acts. HAProxy's maps outlive this actor, and hcc itself; a new one goes on
with what it finds there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from hcc.actors.actor import Actor
from hcc.actors.backoff import Retries
from hcc.actors.callers import Labels
from hcc.actors.lifecycle import StopReason
from hcc.actors.line_wait import LineWait
from hcc.actors.messages import (
    ADMIN,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    CallersChanged,
    CallersMet,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    PolicyChanged,
    Preview,
    Publish,
    WorkerReplaced,
)
from hcc.actors.readiness import CallerFacts
from hcc.haproxy.caller_maps import CallerMaps, DeniedSessions
from hcc.haproxy.control import ControlError
from hcc.haproxy.cut_debt import CutDebt, Reach
from hcc.haproxy.hold import Hold
from hcc.haproxy.map_text import MapChange, MapTextError, map_change
from hcc.haproxy.sight import Sight
from hcc.haproxy.wanted import Wanted, WantedRules, denies_some
from hcc.log import LastingProblem
from hcc.mesh.caller import caller_key, caller_name, key_name, named_caller
from hcc.mesh.caller_book import CallerBook
from hcc.mesh.caller_certificate import certificate_digest, remembered_caller
from hcc.mesh.intentions import Policy
from hcc.mesh.judgement import Judgement, may_deny_anew
from hcc.mesh.rules import ALLOW, DENY
from hcc.metrics import Metrics

STORE_S = 2.0
EXPIRY_S = 60.0
RETRY_S = 0.5
MAX_RETRY_S = 10.0
# New certificates of callers that HAProxy knows are told to it together.
GATHER_S = 0.05
# A call that was let in just before its caller was denied may not have been there to be cut.
CUT_AGAIN_S = 0.5
# Until the master tells again of workers that stop.
AFTER_RELOAD_S = 0.5
# A worker that stops and did not answer may go on at any moment.
MAX_STOPPING_RETRY_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Store:
    """To itself: write the map of identities, for the next start of HAProxy."""


@dataclass(frozen=True, slots=True)
class _StorePolicy:
    """To itself: write verdicts and rules, which the disk did not take."""


@dataclass(frozen=True, slots=True)
class _Expire:
    """To itself: forget certificates that have expired."""


@dataclass(frozen=True, slots=True)
class _LookForLines:
    """To itself: see whether new callers have got their server lines."""


@dataclass(frozen=True, slots=True)
class _Remember:
    """To itself: tell HAProxy of new certificates."""


@dataclass(frozen=True, slots=True)
class _Resync:
    """To itself: compare what HAProxy remembers with what it should."""

    coalesce_key: ClassVar[str] = "resync"


@dataclass(frozen=True, slots=True)
class _CutAgain:
    """To itself: cut what came in while others were being cut."""


@dataclass(frozen=True, slots=True)
class _TellStopping:
    """To itself: have workers that stop after a reload go by the verdicts, and end sessions of callers denied there."""


@dataclass(frozen=True, slots=True)
class _EndHold:
    """To itself: wait no longer for HAProxy to look at what rules look at."""


class Authoriser(Actor):
    """Owns HAProxy's maps of callers and rules."""

    def init(self, *, maps: CallerMaps, metrics: Metrics, resync_s: float, cuts: bool = True) -> None:
        self._maps = maps
        self._resync_s = resync_s
        self._metrics = metrics
        # Whether sessions of callers end that become denied.
        self._cuts = cuts
        self._book = CallerBook()
        self._labels = Labels()
        self._judgement: Judgement | None = None
        # As ProcessSupervisor told, which says it again to whoever asks.
        self._haproxy_is_up = False
        self._master = 0
        self._debt = CutDebt()
        self._cut_retries, self._stopping_retries = Retries(), Retries()
        self._stopping_problem = LastingProblem(_log)
        # Keys of callers that workers let in since the maps were brought up to date.
        self._met: set[str] = set()
        self._without_line = LineWait()
        self._gathering = False
        # Until when new callers are only noted.
        self._rest_until_s = 0.0
        # What is in HAProxy now, as far as we know; None while it could not be read.
        self._verdicts: dict[str, str] | None = {}
        # Who has a server line, as told last.
        self._told: tuple[str, ...] | None = None
        self._rules: dict[str, str] = {}
        self._wanted_rules = WantedRules(maps.before_rules)
        # Sets of rules of which it was told that HAProxy would not take them.
        self._left_out: tuple[str, ...] = ()
        self._hold = Hold()
        self._stored = True
        # What is on disk of verdicts and rules, as far as we know, and why the rest is not there.
        self._stored_policy: tuple[dict[str, str], dict[str, str]] | None = None
        self._disk_problem = LastingProblem(_log)
        self._retries = Retries()

    @property
    def _policy(self) -> Policy | None:
        return self._judgement.policy if self._judgement is not None else None

    def setup(self) -> None:
        if not self._maps.remembers:
            return
        if self.context.generation > 1:
            for source in (CONSUL_WATCHER, PROCESS_SUPERVISOR):
                self.tell(source, Publish())
        self._read_back()
        self.after(EXPIRY_S, _Expire(), key="expire")
        self.after_about(self._resync_s, _Resync(), key="resync")

    def handle(self, message: object) -> object | None:
        if isinstance(message, Preview):
            return self._differences() if self._maps.remembers else ()
        if self._maps.remembers:
            self._deal_with(message)
        return None

    def _deal_with(self, message: object) -> None:
        match message:
            case PolicyChanged(policy):
                is_first = self._policy is None
                self._take(policy)
                self._decide()
                self._remember()
                if is_first:
                    # What runs was told by a predecessor, which may have ended before it had told all.
                    self._tell_stopping_soon()
            case CallersMet(calls):
                self._meet(calls)
                self._remember_soon()
            case HAProxyUp() | WorkerReplaced() | _Resync():
                if not isinstance(message, _Resync):
                    self._note_worker(message)
                self.after_about(self._resync_s, _Resync(), key="resync")
                self._resync(drift=isinstance(message, _Resync) and not self._is_behind())
                if isinstance(message, _Resync):
                    self._put_back()
                elif isinstance(message, WorkerReplaced):
                    # During a reload the master tells of no workers that stop: they may not have heard of a denial.
                    self.after(AFTER_RELOAD_S, _TellStopping(), key="stopping-after-reload")
            case HAProxyDown():
                self._haproxy_is_up = False
                self._put_back()
            case Publish():
                self._publish()
            case _:
                self._handle_timer(message)

    def _handle_timer(self, message: object) -> None:
        match message:
            case _Store():
                self._store()
            case _StorePolicy():
                self._store_policy()
            case _Expire():
                self._expire()
            case _LookForLines():
                self._look_for_lines()
            case _Remember():
                self._remember()
            case _EndHold():
                self._hold.end()
                self._decide()
                self._tell_stopping_soon()
            case _CutAgain():
                self._cut_again()
            case _TellStopping():
                self._tell_stopping()

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """Leave on disk what is remembered."""
        if not self._stored:
            self._store()

    # ---- callers

    def _meet(self, calls: tuple[tuple[bytes, str], ...]) -> None:
        for der, peer in calls:
            caller = remembered_caller(der)
            if caller is None or self._policy is None:
                continue
            if caller.identity.trust_domain != self._policy.trust_domain.lower():
                # A worker decided by the policy before.
                continue
            source = self._labels.of(caller.identity.service)
            self._metrics.decisions.labels(source, self._policy.destination, ALLOW).inc()
            self._met.add(caller_key(caller.identity))
            self._book.note_peer(peer, caller_name(caller.identity))
            digest = certificate_digest(der)
            if digest not in self._book:
                self._book.remember(digest, caller)
                self._store_soon()

    def _remember_soon(self) -> None:
        """At once where there is a caller that is new, or denied; more certificates of the others can wait."""
        if any((self._verdicts or {}).get(key, DENY) == DENY for key in self._met):
            self._remember_within(0.0)
        elif self._met:
            self._remember_within(GATHER_S)

    def _remember_within(self, delay_s: float) -> None:
        """After that time, or after the rest if it is longer."""
        delay_s = max(delay_s, self._rest_until_s - time.monotonic())
        if delay_s <= 0.0:
            self._remember()
        elif not self._gathering:
            self._gathering = True
            self.after(delay_s, _Remember(), key="remember")

    def _is_behind(self) -> bool:
        """Whether there is something to be done that was asked for: after a failure, or with callers just met."""
        return bool(self._retries.failing or self._met or self._without_line.names)

    def _remember(self) -> None:
        """Bring the maps to what the book says, and rest as long if that took long.

        It takes the longer the more callers there are, and while they come fast a policy must not wait for them all.
        """
        began_s = time.monotonic()
        self._bring_up_to_date()
        took_s = time.monotonic() - began_s
        self._rest_until_s = began_s + 2 * took_s if took_s > GATHER_S else 0.0

    def _bring_up_to_date(self) -> None:
        # The verdict first, a caller without one is asked about.
        self._gathering = False
        self.cancel("remember")
        if self._policy is None:
            return
        callers, decided = set(self._book.callers), set(self._verdicts or ())
        if callers != decided:
            self._await_lines({key_name(key) for key in callers - decided})
            self._decide()
        # A worker may have decided by the policy before.
        met, self._met = self._met, set()
        if any((self._verdicts or {}).get(key) == DENY for key in met):
            self._debt = self._debt.found(denied=True)
            self._try(self._cut_due)
        news = self._book.take_news(but=self._without_line.names)
        change = MapChange(
            added=tuple((digest, text) for digest, text in news.items() if text is not None),
            removed=tuple(digest for digest, text in news.items() if text is None),
        )
        if change:
            # Where none runs, the next one starts with what is on disk.
            self._try(lambda: self._maps.change_identities(change))
            self._store_soon()
        self._report()

    def _await_lines(self, callers: set[str]) -> None:
        # Where nobody is cut, it matters to nobody whose a session is.
        if not self._cuts or not self._maps.has_lines:
            return
        self._look_for_lines_in(self._without_line.begin(callers, time.monotonic()))

    def _look_for_lines(self) -> None:
        try:
            found = self._maps.lines()
        except ControlError:
            found = frozenset()
        before = len(self._without_line.names)
        self._look_for_lines_in(self._without_line.looked(found, time.monotonic()))
        if len(self._without_line.names) < before:
            self._remember_within(0.0)

    def _look_for_lines_in(self, delay_s: float | None) -> None:
        if delay_s is not None:
            self.after(delay_s, _LookForLines(), key="lines")

    def _wanted_identities(self, found: Mapping[str, str]) -> dict[str, str]:
        """Those that HAProxy is to have; those of a caller that has no line yet only if it has them already."""
        wanted = self._book.identities()
        if not self._without_line.names:
            return wanted
        told = self._book.identities(but=self._without_line.names)
        return {digest: text for digest, text in wanted.items() if digest in told or digest in found}

    def _expire(self) -> None:
        self.after(EXPIRY_S, _Expire(), key="expire")
        if self._book.forget_expired(time.time()):
            self._remember()

    # ---- policy

    def _take(self, policy: Policy) -> None:
        before, now = self._judgement, Judgement(policy)
        self._judgement = now
        self._wanted_rules.take(now, (self._verdicts or {}).values())
        self._see(self._hold.sight)
        # Names of lines do not say their trust domain: nobody of the old one is who the name says now.
        strangers = self._book.keep_only(policy.trust_domain.lower())
        # A caller need not be in the book to have sessions: its certificate has expired, or it came while hcc was away.
        denies = before is not None and may_deny_anew(before, now)
        self._debt = self._debt.taken(policy.version, denies=denies, strangers=strangers)

    def _note_worker(self, news: HAProxyUp | WorkerReplaced) -> None:
        before, self._master = self._master, news.pid if isinstance(news, HAProxyUp) else self._master
        known = self._haproxy_is_up and self._master == before
        self._haproxy_is_up = True
        if isinstance(news, WorkerReplaced):
            self._see(news.sight)
        elif not known:
            self._see(None)

    def _see(self, sight: Sight | None) -> None:
        """Note what the worker that runs looks at, and which rules have to wait for one that looks at more."""
        end_s = self._hold.see(self._judgement, sight, runs=self._haproxy_is_up)
        if end_s is not None:
            self.after(end_s, _EndHold(), key="hold")

    def _decide(self) -> None:
        if self._judgement is None:
            return
        if self._verdicts is None:
            # An entry that is there is not to be added a second time: HAProxy goes by the first.
            self._try(self._repair)
            self._tell_stopping_soon()
        else:
            self._tell_haproxy(self._verdicts, self._judgement)
        # Enforced first: a disk may be slow, or full. A HAProxy that starts meanwhile is compared as soon as it runs.
        self._store_policy()
        self._report()

    def _tell_haproxy(self, found: dict[str, str], judgement: Judgement) -> None:
        wanted = self._wanted(judgement, found)
        self._debt = self._debt.found(denied=wanted.denies)
        # Rules that are new first, those that are old last: a verdict must always find its rules. One that finds none
        # denies, so verdicts do not wait for rules that HAProxy does not take.
        added = self._rules == wanted.rules or self._try(lambda: self._replace_rules(self._rules | wanted.rules))
        change = map_change(found, wanted.verdicts)
        if change and not self._try(lambda: self._change_verdicts(change, wanted.verdicts)):
            # Some of it may have been done.
            self._verdicts = None
            self._tell_stopping_soon()
            return
        if change.changed or change.removed:
            self._tell_stopping_soon()
        self._verdicts = wanted.verdicts
        self._hold.note(wanted.held)
        if self._debt.is_due(runs=self._haproxy_is_up):
            self._try(self._cut_due)
        self._tell_who_calls()
        if added and self._rules != wanted.rules:
            self._try(lambda: self._replace_rules(wanted.rules))

    def _change_verdicts(self, change: MapChange, wanted: dict[str, str]) -> None:
        if not self._maps.change_verdicts(change, wanted):
            self._expect_no_map()

    def _expect_none(self) -> None:
        """Raises ControlError where a HAProxy runs that cannot be told: it goes on by what it remembers."""
        if self._haproxy_is_up and not self._maps.listening():
            raise ControlError("HAProxy runs, but nobody listens on its sockets")

    def _expect_no_map(self) -> None:
        """Raises ControlError where a HAProxy with verdicts runs: only while nobody listened could they not be told."""
        self._expect_none()
        if self._haproxy_is_up and self._maps.verdicts() is not None:
            raise ControlError("HAProxy runs, but nobody listened on its sockets for a moment")

    def _replace_rules(self, rules: dict[str, str]) -> None:
        self._maps.replace_rules(rules)
        self._rules = rules

    def _wanted(self, judgement: Judgement, found: Mapping[str, str]) -> Wanted:
        """Of a HAProxy that has these verdicts."""
        decided = self._book.verdicts(judgement)
        held = self._hold.held(decided, found)
        rules = self._rules_with(judgement, held)
        return Wanted(decided | held, held, rules, denies_some(judgement, found, decided))

    def _rules_with(self, judgement: Judgement, held: Mapping[str, str]) -> dict[str, str]:
        """Those that HAProxy is to have, while it holds these verdicts."""
        rules = self._wanted_rules.entries(judgement, held.values(), self._hold.sight)
        names = self._wanted_rules.left_out
        if names and names != self._left_out:
            _log.error("permissions of %d intentions are too long for HAProxy, their requests are denied", len(names))
        self._left_out = names
        return rules

    def _cut_due(self) -> None:
        self._cut(self._debt.due)

    def _cut(self, reach: Reach) -> None:
        """End every session whose caller is denied, and others as far as that reaches."""
        if not self._cuts or self._judgement is None:
            return
        self._expect_none()
        cut = self._maps.cut(self._denied_sessions(self._judgement, reach))
        before, self._debt = self._debt, self._debt.cut(runs=self._haproxy_is_up)
        if before.denial:
            self.after(CUT_AGAIN_S, _CutAgain(), key="cut-again")
            self._tell_stopping_soon()
        self._note_cut(cut)

    def _cut_again(self) -> None:
        if self._try(lambda: self._cut(self._debt.again)):
            self._cut_retries.reset()
        else:
            delay_s = self._cut_retries.next_delay_s(time.monotonic(), RETRY_S, MAX_RETRY_S)
            self.after(delay_s, _CutAgain(), key="cut-again")
        self._debt = self._debt.repeated()
        self._tell_stopping_soon()

    def _tell_stopping_soon(self) -> None:
        """Not now: one of them that hangs must hold up nothing that is enforced elsewhere."""
        self.after(0.0, _TellStopping(), key="stopping")

    def _tell_stopping(self) -> None:
        if self._judgement is None:
            return
        wanted = self._verdicts if self._verdicts is not None else self._book.verdicts(self._judgement)
        # A denial waits for nothing; all else, where it is not known by what the current worker goes, until it is.
        waits = self._hold.untold if self._verdicts is not None else wanted.keys()
        left = {key for key in waits if wanted.get(key, DENY) != DENY}
        sessions = None
        # Without lines an address that somebody else has now would be taken for who had it before: only while it is new
        # that somebody is denied, all are cut.
        if self._cuts and (self._maps.has_lines or self._debt.stopping):
            sessions = self._denied_sessions(self._judgement, self._debt.in_stopping)
        cut, failure = self._maps.tell_stopping(wanted, left, sessions)
        self._note_cut(cut)
        # Where no HAProxy runs none stops.
        if failure is None or not self._haproxy_is_up:
            self._debt = self._debt.told()
            self._stopping_retries.reset()
            self._stopping_problem.over()
            return
        if self._stopping_retries.failing:
            # Once is nothing: up to HAProxy 3.0 the master does not listen while it loads.
            self._stopping_problem.say(
                "workers of HAProxy that stop may not know who is denied; they are told until they do"
            )
        _log.debug("workers that stop: %s", failure)
        delay_s = self._stopping_retries.next_delay_s(time.monotonic(), RETRY_S, MAX_STOPPING_RETRY_S)
        self.after(delay_s, _TellStopping(), key="stopping")

    def _denied_sessions(self, judgement: Judgement, reach: Reach) -> DeniedSessions:
        trust_domain = judgement.policy.trust_domain

        def denied(caller: str | None) -> bool:
            if caller is None:
                return reach.unknown
            return reach.everybody or judgement.denies(named_caller(caller, trust_domain))

        return DeniedSessions(denied, self._book.owner)

    def _note_cut(self, cut: tuple[str | None, ...]) -> None:
        if cut:
            self._metrics.sessions_cut.inc(len(cut))
            names = sorted({caller or "unknown" for caller in cut})
            _log.warning("cut %d sessions of callers that are denied now: %s", len(cut), ", ".join(names))

    # ---- HAProxy

    def _read_back(self) -> None:
        """Go on with what is there: in HAProxy's memory, or on disk while none runs."""
        try:
            identities, verdicts = self._maps.identities(), self._maps.verdicts()
        except (ControlError, MapTextError) as exc:
            _log.warning("what HAProxy remembers of its callers cannot be read: %s", exc)
            identities, self._verdicts = None, None
        else:
            self._verdicts = verdicts or {}
        self._book.restore(identities if identities is not None else self._maps.stored_identities())
        self._book.take_news()
        self._book.forget_expired(time.time())

    def _resync(self, *, drift: bool) -> None:
        """Make HAProxy remember what it should, whatever it remembers: it may be a new one.

        With `drift` it should be so already, and what is repaired is counted.
        """
        if self._policy is None:
            return
        self._try(lambda: self._repaired(drift=drift))
        self._tell_stopping_soon()
        self._store_policy()
        self._report()

    def _differences(self) -> tuple[str, ...]:
        """How HAProxy's memory differs from what it should be; raises ControlError."""
        judgement = self._judgement
        verdicts, identities, rules = self._maps.verdicts(), self._maps.identities(), self._maps.rules()
        if judgement is None or verdicts is None or identities is None:
            return ()
        wanted = self._wanted(judgement, verdicts)
        changes = {
            "verdicts": map_change(verdicts, wanted.verdicts),
            "identities": map_change(identities, self._wanted_identities(identities)),
            "rules": map_change(rules or {}, wanted.rules),
        }
        return tuple(f"change {len(change)} {name} of callers" for name, change in changes.items() if change)

    def _repaired(self, *, drift: bool) -> None:
        repaired = self._repair()
        if drift and repaired:
            self._metrics.drift.inc()
            _log.warning("HAProxy remembered otherwise than it should: %s", "; ".join(repaired))

    def _repair(self) -> tuple[str, ...]:
        """What was repaired, in words."""
        judgement = self._judgement
        if judgement is None:
            return ()
        verdicts, identities, rules = self._maps.verdicts(), self._maps.identities(), self._maps.rules()
        if verdicts is None or identities is None:
            # None runs, or one without public listener: the next one starts with what is on disk.
            self._expect_no_map()
            self._verdicts, self._rules = self._book.verdicts(judgement), self._rules_with(judgement, {})
            return ()
        repaired: list[str] = []
        wanted, wanted_identities = self._wanted(judgement, verdicts), self._wanted_identities(identities)
        refused = self._repair_rules(rules, wanted.rules, repaired)
        self._book.take_news(but=self._without_line.names)
        self._debt = self._debt.found(denied=wanted.denies)
        change = map_change(verdicts, wanted.verdicts)
        if change:
            repaired.append(f"{len(change)} verdicts")
            self._verdicts = None
            self._maps.change_verdicts(change, wanted.verdicts)
        self._verdicts = wanted.verdicts
        self._hold.note(wanted.held)
        self._tell_who_calls()
        if self._debt.is_due(runs=self._haproxy_is_up):
            self._cut_due()
        change = map_change(identities, wanted_identities)
        if change:
            repaired.append(f"{len(change)} identities")
            self._maps.change_identities(change)
        if refused is not None:
            raise refused
        return tuple(repaired)

    def _repair_rules(
        self, found: dict[str, str] | None, wanted: dict[str, str], repaired: list[str]
    ) -> ControlError | None:
        """Why HAProxy does not take them; verdicts must not wait for that."""
        self._rules = wanted if found is None else found
        if list(self._rules.items()) == list(wanted.items()):
            return None
        try:
            self._replace_rules(wanted)
        except ControlError as exc:
            return exc
        repaired.append("rules")
        return None

    def _try(self, act: Callable[[], object]) -> bool:
        """Whether it was done; if not, all is compared again soon."""
        try:
            act()
        except (ControlError, MapTextError, OSError) as exc:
            delay = self._retries.next_delay_s(time.monotonic(), RETRY_S, MAX_RETRY_S)
            _log.error("HAProxy's memory of callers is not up to date; next try in %.1f s: %s", delay, exc)
            self.after(delay, _Resync(), key="resync")
            return False
        self._retries.reset()
        return True

    def _store_soon(self) -> None:
        if self._stored:
            self._stored = False
            self.after(STORE_S, _Store(), key="store")

    def _store(self) -> None:
        self._stored = True
        if not self._write(lambda: self._maps.store_identities(self._book.identities())):
            self._store_soon()

    def _put_back(self) -> None:
        """What a HAProxy that starts is to start with: somebody else may have damaged it."""
        self._stored_policy = None
        self._store()
        self._store_policy()

    def _store_policy(self) -> None:
        """Write what a HAProxy that starts is to start with, unless it is there."""
        if self._judgement is None:
            return
        # Of rules those that HAProxy took: with others it would not start.
        wanted = self._book.verdicts(self._judgement), self._rules
        if wanted == self._stored_policy:
            return
        self._stored_policy = None

        def write() -> None:
            # Verdicts first: where they cannot be written they are emptied, and one without its rules denies.
            self._maps.store_verdicts(wanted[0])
            self._maps.store_rules(wanted[1])

        if self._write(write):
            self._stored_policy = wanted
        else:
            self.after(STORE_S, _StorePolicy(), key="store-policy")

    def _write(self, act: Callable[[], object]) -> bool:
        """Whether the disk took it; if not, that is said once."""
        try:
            act()
        except OSError as exc:
            self._disk_problem.say(
                f"what HAProxy remembers of its callers cannot be written for its next start: {exc.strerror}"
            )
            return False
        self._disk_problem.over()
        return True

    # ---- others

    def _tell_who_calls(self) -> None:
        """Also that nobody does: until then every line that runs stays.

        Who is denied keeps its line. Nobody gets there past the verdict, and if it were added anew when the caller is
        allowed again, the first sessions would come before it.
        """
        callers = tuple(sorted({key_name(key) for key in self._verdicts or ()}))
        if callers != self._told:
            self._told = callers
            self.tell(CONFIG_RECONCILER, CallersChanged(callers))

    def _publish(self) -> None:
        if self._told is not None:
            self.tell(CONFIG_RECONCILER, CallersChanged(self._told))
        self._report()

    def _report(self) -> None:
        self._metrics.callers_remembered.set(len(self._book))
        verdicts = ((key_name(key), verdict) for key, verdict in (self._verdicts or {}).items())
        facts = CallerFacts(tuple(sorted(verdicts)), len(self._book))
        self.tell(ADMIN, FactsReported(facts))
