"""An actor's mailbox: control first, then a bounded lane in which newer state replaces older.

Takes the place of pykka's unbounded queue; pykka calls `put`, `get` and `empty`.
"""

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from pykka.messages import _ActorStop

from hcc.actors.lifecycle import ActorDownError, ActorError, MailboxFullError, Urgent

if TYPE_CHECKING:
    from pykka._envelope import Envelope

DEFAULT_LIMIT = 1000


class Mailbox:
    """Two lanes for one reader and any number of writers.

    A message with a `coalesce_key` (a str) takes the place of a queued one with the same key. When the
    bounded lane is full, its oldest message is dropped and counted; the sender of a dropped request gets
    an error.
    """

    def __init__(self) -> None:
        self.owner = ""
        self.limit = DEFAULT_LIMIT
        self.dropped = 0
        self.current: Envelope[Any] | None = None
        """The envelope handed out last; read by the actor's own thread only."""
        self._closed = False
        self._changed = threading.Condition()
        self._control: deque[Envelope[Any]] = deque()
        self._lane: OrderedDict[object, Envelope[Any]] = OrderedDict()

    def put(self, envelope: "Envelope[Any]", /) -> None:
        """Queue a message; never blocks and never raises."""
        key = _lane_key(envelope)
        with self._changed:
            loser, error = self._place(key, envelope)
            self._changed.notify()
        if loser is not None:
            _refuse(loser, error)

    def get(self) -> "Envelope[Any]":
        """The next message; waits until there is one."""
        with self._changed:
            self.current = None
            while not (self._control or self._lane):
                self._changed.wait()
            self.current = self._control.popleft() if self._control else self._lane.popitem(last=False)[1]
            return self.current

    def empty(self) -> bool:
        with self._changed:
            return not (self._control or self._lane)

    def depth(self) -> int:
        """How many messages wait."""
        with self._changed:
            return len(self._control) + len(self._lane)

    def close(self) -> None:
        """Accept nothing more; requests get an error, messages are dropped, control messages stay."""
        with self._changed:
            self._closed = True
            lane = [*self._lane.values()]
            self._lane.clear()
            self.dropped += len(lane)
            requests = [envelope for envelope in self._control if envelope.reply_to is not None]
            self._control = deque(envelope for envelope in self._control if envelope.reply_to is None)
        for envelope in (*lane, *requests):
            _refuse(envelope, ActorDownError(self.owner))

    def _place(self, key: object | None, envelope: "Envelope[Any]") -> tuple["Envelope[Any] | None", ActorError]:
        """Queue it; returns the envelope that lost its place, if any, and what to tell its sender."""
        if self._closed:
            self.dropped += 1
            return envelope, ActorDownError(self.owner)
        full = MailboxFullError(f"The mailbox of actor {self.owner} is full ({self.limit} messages).")
        if key is None:
            self._control.append(envelope)
            return None, full
        self._lane[key] = envelope
        if len(self._lane) <= self.limit:
            return None, full
        self.dropped += 1
        return self._lane.popitem(last=False)[1], full


def _lane_key(envelope: "Envelope[Any]") -> object | None:
    """What identifies the message's place in the bounded lane; None for the control lane."""
    if isinstance(envelope.message, (Urgent, _ActorStop)):
        return None
    if envelope.reply_to is not None:
        return envelope
    return getattr(envelope.message, "coalesce_key", None) or envelope


def _refuse(envelope: "Envelope[Any]", error: ActorError) -> None:
    """Answer a request that nobody will handle."""
    if envelope.reply_to is None:
        return
    if isinstance(envelope.message, _ActorStop):
        envelope.reply_to.set(None)
    else:
        envelope.reply_to.set_exception((type(error), error, None))
