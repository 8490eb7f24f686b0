"""One thread that keeps one thing of Consul known: asks, waits, asks again, and tells what changed.

Source: reference/consul.md section 2.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from hcc.consul.answers import Answer, Registration
from hcc.consul.client import ConsulClient
from hcc.consul.errors import (
    ConsulCutOffError,
    ConsulNotFoundError,
    ConsulPermissionError,
    ConsulStatusError,
    ConsulUnavailableError,
    InterruptedPollError,
)
from hcc.consul.fetch import POLL_S, Fetched, Position, fetch
from hcc.consul.held_chains import HeldChains
from hcc.consul.keys import ChainWatch, IntentionsWatch, WatchKey
from hcc.consul.names import Names, look_up
from hcc.consul.options import is_ip
from hcc.consul.pacing import (
    HURRY_S,
    MAX_IDLE_PAUSE_S,
    MAX_INTENTIONS_PAUSE_S,
    MAX_NOT_FOUND_RETRY_S,
    MAX_RETRY_S,
    MAX_UNAVAILABLE_RETRY_S,
    Pace,
    after_change,
    after_failure,
    after_wakeup,
)
from hcc.consul.watch_state import WatchState
from hcc.errors import HccError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchValue:
    """News.

    Args:
        index: Consul's, 0 where the endpoint has none.
        at: when it came, by the watcher's clock.
        recovered: the first answer after an error; it may say the same as the one before.
    """

    value: Answer
    index: int
    at: float
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class WatchFailed:
    """The last question failed; what was told before stays true until told otherwise.

    Args:
        error: why; a `ConsulError`, a `SettingError`, or a bug of ours.
        retry_s: seconds until the next try.
        since: when the first failure in this row came, by the watcher's clock.
    """

    error: Exception
    retry_s: float
    since: float


WatchEvent = WatchValue | WatchFailed
_CUT_OFF = "expected an answer of Consul's servers, found that the agent has lost them and repeats what it knows"


class Watcher:
    """Watches one key in a daemon thread of its own.

    Args:
        key: what to watch.
        client_factory: called in the thread, once for as long as it waits at the agent; the client is ours alone.
        deliver: called with every event, in the thread or in one that looked up a host name; must not block.
        clock: monotonic seconds.
        jitter: a new number 0 <= x < 1 on each call.
        lookup: the address of a host name, OSError when it has none.
        refresh_token: called when the token was refused; says whether there is a new one to try at once.
        chains: where the watch of a discovery chain takes a place before it waits at the agent; None: all wait.
    """

    def __init__(  # noqa: PLR0913 - the edges are given by name
        self,
        key: WatchKey,
        client_factory: Callable[[], ConsulClient],
        deliver: Callable[[WatchKey, WatchEvent], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        lookup: Callable[[str], tuple[str, ...]] = look_up,
        refresh_token: Callable[[], bool] = lambda: False,
        chains: HeldChains | None = None,
    ) -> None:
        self.key = key
        self.last_answer_at: float | None = None
        self._client_factory = client_factory
        self._deliver = deliver
        self._clock = clock
        self._jitter = jitter
        self._refresh_token = refresh_token
        self._names = Names(lookup, self._renamed)
        # Guards what was told last.
        self._telling = threading.Lock()
        self._chains = chains if isinstance(key, ChainWatch) else None
        self._has_place = False
        self._stopped = threading.Event()
        # Ends a pause: we are to stop, or to ask sooner.
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._client: ConsulClient | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {key.label()}", daemon=True)
        self._position = Position()
        self._pace = Pace()
        # What Consul said last, and what of it was told: with addresses for names.
        self._answer: Answer | None = None
        self._value: Answer | None = None
        self._began_at = clock()
        # Since when it fails, and why; replaced as one, since other threads read it.
        self._failing: tuple[float, str] | None = None
        self._error: HccError | None = None
        # The last question failed, and not because of what it asked.
        self._away = False
        # The last question failed for want of a right.
        self._refused = False

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, breaking off a question that waits; returns at once, and nothing is delivered afterwards."""
        with self._lock:
            self._stopped.set()
            self._woken.set()
            if self._client is not None:
                self._client.interrupt()
        self._names.stop()

    def hurry(self, *, allowed: bool = False) -> None:
        """Ask soon, if Consul was away: it answered somebody else. What it refused is not asked sooner.

        Args:
            allowed: there is another token, or somebody else was refused until now; ask soon if this was, too.
        """
        if self._away or (allowed and self._refused):
            self._woken.set()

    def state(self) -> WatchState:
        """How it does now. Any thread may call this."""
        now, failing, answered_at = self._clock(), self._failing, self.last_answer_at
        age_s = now - (self._began_at if answered_at is None else answered_at)
        if failing is None:
            return WatchState(self.key, age_s, answered_at is not None)
        return WatchState(self.key, age_s, answered_at is not None, now - failing[0], failing[1])

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; whether it came in time."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                if self._woken.wait(self._turn()):
                    self._woken.clear()
                    self._stopped.wait(HURRY_S * self._jitter())
        finally:
            self._hang_up()
            if self._chains is not None and self._has_place:
                self._chains.give_back()

    def _turn(self) -> float:
        """Ask once; the seconds to wait before the next time."""
        try:
            client = self._connected()
            asked_at = self._clock()
            fetched = self._fetched(client)
            if (error := self._why_nothing_new(fetched)) is not None:
                return self._failed(error)
            if fetched.lacking is not None:
                self._told_in_part(fetched.value)
                return self._failed(fetched.lacking)
            held_s = self._clock() - asked_at
            return self._arrived(fetched if held_s >= client.wait_s else self._in_this_history(fetched), held_s)
        except InterruptedPollError:
            return 0.0
        except HccError as exc:
            return self._failed(exc)
        except Exception as exc:
            # A bug of ours must not end the watch unseen: the last good answer would stay for ever.
            log.exception("watch of %s", self.key.label())
            return self._failed(exc)

    def _fetched(self, client: ConsulClient) -> Fetched:
        if self._chains is None or self._has_place or self._chains.take():
            self._has_place = self._chains is not None
            return fetch(client, self.key, self._position, self._stopped.wait)
        with self._chains.turn():
            try:
                found = fetch(client, self.key, Position(), self._stopped.wait, cached=True)
            finally:
                self._hang_up()
        # Spread, so that those who began together do not go on asking together.
        return Fetched(found.value, Position(), self._chains.poll_s * (0.5 + self._jitter()), found.cut_off_s)

    def _why_nothing_new(self, fetched: Fetched) -> HccError | None:
        """Why what the agent repeats from its cache tells nothing of Consul; None where it does, or says otherwise.

        An agent that lost its servers fails the question that waits for news, and answers the next one from its cache.
        """
        if fetched.cut_off_s is None or fetched.value != self._answer:
            return None
        failing = self._failing
        # In its first second the agent says 0 all the same.
        has_just_failed = failing is not None and self._clock() - failing[0] < 1.0
        if not fetched.cut_off_s and not has_just_failed:
            return None
        return ConsulUnavailableError(_CUT_OFF) if failing is None else self._error

    def _in_this_history(self, fetched: Fetched) -> Fetched:
        """What came before the wait was over, without an index that nothing may ever exceed again.

        Servers that get an older snapshot end all questions at once with what they knew; they then count from less.
        """
        ended = fetched.position.index == self._position.index
        return replace(fetched, position=replace(fetched.position, index=0)) if ended else fetched

    def _connected(self) -> ConsulClient:
        if self._client is None:
            client = self._client_factory()
            with self._lock:
                self._client = client
                if self._stopped.is_set():
                    client.interrupt()
        return self._client

    def _hang_up(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _arrived(self, fetched: Fetched, held_s: float) -> float:
        # Not under the lock, or those who look names up would wait for us, and we for them.
        self._names.ask(fetched.value)
        with self._telling:
            return self._told(fetched, held_s)

    def _told(self, fetched: Fetched, held_s: float) -> float:
        now = self._clock()
        self._answer = fetched.value
        value = self._names.resolved(self._answer)
        if isinstance(value, Registration) and not is_ip(value.proxy.local_address):
            # Nothing in Consul changes when the name gets an address.
            fetched = Fetched(value, Position(), POLL_S)
        recovered, self._failing, self._away = self._failing is not None, None, False
        self._position = fetched.position
        self.last_answer_at = now
        is_news = value != self._value
        pause_s = self._pause_s(fetched.poll_s, held_s, now, is_news=is_news)
        if is_news or recovered:
            self._value = value
            self._tell(WatchValue(value, fetched.position.index, now, recovered))
        return pause_s

    def _told_in_part(self, value: Answer) -> None:
        """Tell what is new of an answer to which another one was lacking; that has failed all the same."""
        with self._telling:
            self.last_answer_at = now = self._clock()
            if value != self._value:
                self._answer = self._value = value
                self._tell(WatchValue(value, 0, now))

    def _pause_s(self, poll_s: float, held_s: float, now: float, *, is_news: bool) -> float:
        """The seconds to wait after an answer, by the pace so far."""
        if poll_s:
            self._pace = replace(self._pace, failures=0)
            return poll_s
        if is_news:
            self._pace, pause_s = after_change(self._pace, now)
        else:
            limit_s = MAX_INTENTIONS_PAUSE_S if isinstance(self.key, IntentionsWatch) else MAX_IDLE_PAUSE_S
            self._pace, pause_s = after_wakeup(self._pace, held_s, limit_s)
        return pause_s

    def _renamed(self) -> None:
        """A host has another address than when the last answer was told; called in a thread of `Names`."""
        with self._telling:
            if self._answer is None or self._failing is not None:
                return
            value = self._names.resolved(self._answer)
            if value != self._value:
                self._value = value
                self._tell(WatchValue(value, self._position.index, self._clock()))

    def _failed(self, error: Exception) -> float:
        now = self._clock()
        since = self._failing[0] if self._failing else now
        with self._telling:
            self._failing = (since, str(error))
        self._error = error if isinstance(error, HccError) else None
        self._away, self._refused = _is_outage(error), isinstance(error, ConsulPermissionError)
        # Whatever comes next is asked for at once: after an error the indexes may be of another agent.
        self._position = Position(certain=self._position.certain)
        if self._refused and self._has_new_token():
            self._pace = Pace()
        self._pace, retry_s = after_failure(
            self._pace,
            self._jitter(),
            retry_after_s=error.retry_after_s if isinstance(error, ConsulStatusError) else 0.0,
            limit_s=_longest_retry_s(self.key, error),
        )
        self._tell(WatchFailed(error, retry_s, since))
        return retry_s

    def _has_new_token(self) -> bool:
        try:
            return self._refresh_token()
        except HccError as exc:
            log.warning("%s", exc)
            return False

    def _tell(self, event: WatchEvent) -> None:
        if not self._stopped.is_set():
            self._deliver(self.key, event)


def _is_outage(error: Exception) -> bool:
    """Whether it says nothing about the question: any other would have failed as well."""
    return isinstance(error, ConsulUnavailableError | ConsulCutOffError) or (
        isinstance(error, ConsulStatusError) and error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def _longest_retry_s(key: WatchKey, error: Exception) -> float:
    if isinstance(key, IntentionsWatch) and _is_outage(error):
        return MAX_INTENTIONS_PAUSE_S
    match error:
        case ConsulNotFoundError():
            return MAX_NOT_FOUND_RETRY_S
        case ConsulUnavailableError() | ConsulCutOffError() | ConsulStatusError(code=HTTPStatus.INTERNAL_SERVER_ERROR):
            return MAX_UNAVAILABLE_RETRY_S
        case _:
            return MAX_RETRY_S
