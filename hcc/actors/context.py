"""What an actor is given to live with."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hcc.actors.address import AddressBook
from hcc.actors.lifecycle import Urgent
from hcc.actors.mailbox import DEFAULT_LIMIT
from hcc.actors.timers import Timers


@dataclass(frozen=True, slots=True)
class Services:
    """What all actors of one tree share."""

    book: AddressBook
    timers: Timers
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Context:
    """Who an actor is: made by its supervisor, one for each generation."""

    name: str
    generation: int
    services: Services = field(repr=False)
    report: Callable[[Urgent], object] = field(repr=False)
    """Takes the news to the supervisor."""
    mailbox_limit: int = DEFAULT_LIMIT
    gate: threading.Event | None = field(default=None, repr=False)
    """Opens when all siblings that start together have their mailboxes; the thread waits for it."""
    exited: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when the actor's thread has run its teardown."""
