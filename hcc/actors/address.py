"""Names instead of references: who is behind a name now, and which messages come too late.

The book is the only state that actors, supervisors and admin threads share. Every entry has a generation that
only grows; whoever acts for an older one is refused.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pykka

from hcc.actors.lifecycle import (
    ActorDownError,
    ActorState,
    ActorStatus,
    ActorTimeoutError,
    Stop,
    StopReason,
    UnknownActorError,
)
from hcc.actors.mailbox import Mailbox


@dataclass(frozen=True, slots=True)
class Address:
    """One generation of one actor, as a place to send to."""

    name: str
    generation: int
    book: "AddressBook" = field(repr=False)

    def tell(self, message: object) -> bool:
        """True when the message was queued; False, counted, when that generation is down or was replaced."""
        return self.book.tell(self.name, message, generation=self.generation)


@dataclass(slots=True)
class _Entry:
    name: str
    parent: str | None
    generation: int = 1
    state: ActorState = ActorState.STOPPED
    ref: pykka.ActorRef[Any] | None = None
    mailbox: Mailbox | None = None
    starts: int = 0
    started_at: float = 0.0
    last_error: str | None = None
    dropped: int = 0
    zombies: int = 0

    def retire(self, state: ActorState) -> None:
        self.generation += 1
        self.state = state
        self.ref = None
        if self.mailbox is not None:
            self.dropped += self.mailbox.dropped
            self.mailbox = None

    def status(self, now: float) -> ActorStatus:
        mailbox = self.mailbox
        return ActorStatus(
            name=self.name,
            state=self.state,
            generation=self.generation,
            restarts=max(0, self.starts - 1),
            last_error=self.last_error,
            mailbox_depth=mailbox.depth() if mailbox else 0,
            uptime_s=now - self.started_at if self.ref else 0.0,
            parent=self.parent,
            dropped=self.dropped + (mailbox.dropped if mailbox else 0),
            zombies=self.zombies,
        )


class AddressBook:
    """All actors of one tree by name; safe for any thread, and no method waits for an actor except `ask`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    # ------------------------------------------------------------ for everyone

    def tell(self, name: str, message: object, generation: int | None = None) -> bool:
        """True when the message was queued; False, counted, when the actor is down or another generation."""
        with self._lock:
            entry = self._entries.get(name)
            fits = entry is not None and generation in (None, entry.generation)
            ref = entry.ref if entry is not None and fits else None
        if ref is not None:
            try:
                ref.tell(message)
            except pykka.ActorDeadError:
                pass
            else:
                return True
        self.count_drop(name)
        return False

    def ask(self, name: str, message: object, timeout_s: float) -> object:
        """The actor's answer. Not for actors: two that ask each other wait for ever.

        Raises:
            UnknownActorError: nobody has that name.
            ActorDownError: it is not running, or stopped before it came to this request.
            ActorTimeoutError: no answer in time.
            Exception: what the actor raised while it answered.
        """
        ref = self._ref(name)
        if ref is None:
            raise ActorDownError(name)
        try:
            return ref.ask(message, timeout=timeout_s)
        except pykka.ActorDeadError as error:
            raise ActorDownError(name) from error
        except pykka.Timeout as error:
            raise ActorTimeoutError(name, timeout_s) from error

    def resolve(self, name: str) -> tuple[str, str | None]:
        """The actor's name as it is written, whatever the case of `name`, and its parent's name.

        Raises:
            UnknownActorError: nobody has that name.
        """
        with self._lock:
            for entry in self._entries.values():
                if entry.name.casefold() == name.casefold():
                    return entry.name, entry.parent
            raise UnknownActorError(name, self._entries)

    def statuses(self) -> tuple[ActorStatus, ...]:
        """All actors, parents before children, in order of start."""
        now = self._clock()
        with self._lock:
            return tuple(entry.status(now) for entry in self._entries.values())

    def is_current(self, name: str, generation: int) -> bool:
        with self._lock:
            entry = self._entries.get(name)
            return entry is not None and entry.generation == generation

    def count_drop(self, name: str) -> None:
        with self._lock:
            if entry := self._entries.get(name):
                entry.dropped += 1

    # ------------------------------------------------------------ for supervisors

    def enlist(self, name: str, parent: str | None) -> int:
        """The generation that the actor is going to start with."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = _Entry(name, parent)
            elif entry.ref is not None:
                entry.retire(ActorState.STOPPED)
            return entry.generation

    def admit(self, name: str, generation: int, ref: pykka.ActorRef[Any], mailbox: Mailbox) -> bool:
        """Put a new actor behind its name; False when its generation is no longer wanted."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.generation != generation or entry.ref is not None:
                return False
            entry.ref, entry.mailbox = ref, mailbox
            entry.state = ActorState.STARTING
            entry.starts += 1
            entry.started_at = self._clock()
            return True

    def mark(self, name: str, generation: int, state: ActorState) -> bool:
        """Write down a state; False when the generation is an old one."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.generation != generation:
                return False
            entry.state = state
            return True

    def retire(self, name: str, generation: int, state: ActorState) -> int | None:
        """Fence out a generation: the next one's number; None when somebody else did so before."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.generation != generation:
                return None
            entry.retire(state)
            return entry.generation

    def note_error(self, name: str, error: str) -> None:
        with self._lock:
            if entry := self._entries.get(name):
                entry.last_error = error

    def abandon(self, name: str, ref: pykka.ActorRef[Any]) -> None:
        """Give up waiting for an actor, and for its descendants if it has any.

        Its thread cannot be ended from outside: it finds the Stop when its handler returns, if ever.
        Descendants are fenced out and told to stop, because nobody supervises them any longer.
        """
        with self._lock:
            if entry := self._entries.get(name):
                entry.zombies += 1
            orphans = self._orphans(name)
        for left in (ref, *orphans):
            dismiss(left, StopReason.RESTART)
        if isinstance(ref.actor_inbox, Mailbox):
            ref.actor_inbox.close()

    def _orphans(self, parent: str) -> list[pykka.ActorRef[Any]]:
        refs: list[pykka.ActorRef[Any]] = []
        for entry in [entry for entry in self._entries.values() if entry.parent == parent]:
            if entry.ref is not None:
                refs.append(entry.ref)
            entry.retire(ActorState.STOPPED)
            refs += self._orphans(entry.name)
        return refs

    def _ref(self, name: str) -> pykka.ActorRef[Any] | None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                raise UnknownActorError(name, self._entries)
            return entry.ref


def dismiss(ref: pykka.ActorRef[Any], reason: StopReason) -> None:
    """Tell an actor to stop; one that is already stopping is left alone."""
    try:
        ref.tell(Stop(reason))
    except pykka.ActorDeadError:
        return
