"""The base of all actors: a mailbox, a thread, and the promise that every end is reported.

Subclasses define `init`, `setup`, `handle` and `teardown`. pykka's own hooks are final here, because they
have exits that pykka does not report (an exception in `on_start`) or answers by stopping every actor
there is (`SystemExit` in a handler).
"""

import itertools
import logging
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, final

import pykka

from hcc.actors.address import Address
from hcc.actors.context import Context
from hcc.actors.lifecycle import (
    ActorFailedError,
    Alive,
    Due,
    Exited,
    Heartbeat,
    StaleGenerationError,
    Started,
    Stop,
    StopReason,
    describe,
)
from hcc.actors.mailbox import Mailbox
from hcc.errors import HccError

logger = logging.getLogger(__name__)


class Actor(pykka.ThreadingActor):
    """An actor under supervision.

    What ends it, and restarts it alone: any exception in `init`, in `setup`, or in `handle` of a message
    that was told; any exception but HccError in `handle` of a message that was asked (the caller gets the
    error either way); an orderly `self.stop()`; a handler that does not return for longer than the
    child's `heartbeat_s`.
    """

    use_daemon_thread = True

    @final
    def __init__(self, context: Context, **kwargs: object) -> None:
        super().__init__()
        self.context = context
        self._kwargs = kwargs
        self._initialised = False
        self._failure: str | None = None
        self._stop_reason = StopReason.SHUTDOWN
        self._armed: dict[str, int] = {}
        self._serials = itertools.count()
        self._mailbox.owner = context.name
        self._mailbox.limit = context.mailbox_limit

    # ------------------------------------------------------------ what subclasses define

    def init(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - each subclass names its own
        """Take the arguments of the child's specification; nothing that can block or needs a teardown."""

    def setup(self) -> None:
        """Acquire what the actor owns, in its own thread, within its `heartbeat_s`; messages wait."""

    def handle(self, message: object) -> object | None:
        """Deal with one message; the result is the answer, if it was asked."""
        raise NotImplementedError(f"{type(self).__name__} does not handle {type(message).__name__}")

    def teardown(self, reason: StopReason) -> None:
        """Release what the actor owns; once on every path.

        Also when `setup` failed halfway; not when `init` failed, which owns nothing. The actor may be
        fenced out already: what it tells from here may be dropped.
        """

    # ------------------------------------------------------------ what subclasses use

    @property
    def address(self) -> Address:
        """Where helper threads send to; goes stale with this generation."""
        return Address(self.context.name, self.context.generation, self.context.services.book)

    @final
    def tell(self, name: str, message: object) -> bool:
        """True when the message was queued; False, counted, when it is down or this actor was replaced."""
        book = self.context.services.book
        if not book.is_current(self.context.name, self.context.generation):
            book.count_drop(name)
            return False
        return book.tell(name, message)

    @final
    def after(self, seconds: float, message: object, key: str | None = None) -> None:
        """Handle `message` in that many seconds; a timer with the same key is replaced. Own thread only."""
        serial = next(self._serials)
        if key is not None:
            self._armed[key] = serial
        self.context.services.timers.schedule(seconds, self.address, Due(message, key, serial), key)

    @final
    def after_about(self, seconds: float, message: object, key: str) -> None:
        """As `after`, a tenth sooner or later: the sidecars of one host are not all to do it at the same moment."""
        self.after(seconds * random.uniform(0.9, 1.1), message, key)  # noqa: S311

    @final
    def cancel(self, key: str) -> None:
        """Forget the timer with that key, even if its message is queued already. Own thread only."""
        if self._armed.pop(key, None) is not None:
            self.context.services.timers.cancel(self.address, key)

    # ------------------------------------------------------------ pykka's hooks

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox()

    @final
    def _start_actor_loop(self) -> None:
        """Take over the name, then start the thread, so that nothing told by `setup` can come too early."""
        name, generation = self.context.name, self.context.generation
        if not self.context.services.book.admit(name, generation, self.actor_ref, self._mailbox):
            pykka.ActorRegistry.unregister(self.actor_ref)
            raise StaleGenerationError(f"Generation {generation} of actor {name} is no longer wanted.")
        try:
            threading.Thread(target=self._run, name=f"actor-{name}", daemon=self.use_daemon_thread).start()
        except RuntimeError:
            pykka.ActorRegistry.unregister(self.actor_ref)
            raise

    @final
    def on_start(self) -> None:
        try:
            self.init(**self._kwargs)
            self._initialised = True
            self.setup()
        except BaseException as error:  # noqa: BLE001 - SystemExit would leave a dead actor that claims to live
            self._fail(error)
        else:
            self.context.report(Started(self.context.name, self.context.generation))

    @final
    def on_receive(self, message: object) -> object | None:
        try:
            return self._dispatch(message)
        except BaseException as error:  # noqa: BLE001 - SystemExit would make pykka stop all actors
            if not (self._answer_error(error) and isinstance(error, HccError)):
                self._fail(error)
            return None

    @final
    def on_stop(self) -> None:
        """Nothing: the teardown runs in `_end`, whatever the way out."""

    @final
    def on_failure(self, *_: object) -> None:
        """Nothing: no exception gets as far as pykka."""

    # ------------------------------------------------------------ the actor's thread

    @property
    def _mailbox(self) -> Mailbox:
        return cast("Mailbox", self.actor_inbox)

    def _run(self) -> None:
        with suppress(OSError):  # shown by top; the kernel keeps 15 bytes
            Path("/proc/thread-self/comm").write_bytes(f"actor-{self.context.name}".encode()[:15])
        if self.context.gate is not None:
            self.context.gate.wait()
        try:
            self._actor_loop()
        except BaseException as error:  # noqa: BLE001 - the thread ends here
            self._fail(error)
        finally:
            self._end()

    def _dispatch(self, message: object) -> object | None:
        match message:
            case Stop(reason):
                self._stop_reason = reason
                self._leave()
            case Heartbeat():
                self.context.report(Alive(self.context.name, self.context.generation))
            case Due():
                self._fire(message)
            case _:
                return self.handle(message)
        return None

    def _fire(self, due: Due) -> None:
        """Handle a timer's message unless it was cancelled or replaced while it was queued."""
        if due.key is not None:
            if self._armed.get(due.key) != due.serial:
                return
            del self._armed[due.key]
        self.handle(due.message)

    def _answer_error(self, error: BaseException) -> bool:
        """Give the error to the caller, if there is one."""
        envelope = self._mailbox.current
        if envelope is None or envelope.reply_to is None:
            return False
        if not isinstance(error, Exception):  # SystemExit must not travel into the caller's thread
            error = ActorFailedError(f"Actor {self.context.name} failed while it answered: {describe(error)}")
        envelope.reply_to.set_exception((type(error), error, error.__traceback__))
        envelope.reply_to = None
        return True

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = describe(error)
        name, generation = self.context.name, self.context.generation
        logger.error("Actor %s (generation %d) failed: %s", name, generation, describe(error))
        logger.debug("Traceback of actor %s (generation %d)", name, generation, exc_info=error)
        self._leave()

    def _leave(self) -> None:
        pykka.ActorRegistry.unregister(self.actor_ref)
        self.actor_stopped.set()

    def _end(self) -> None:
        """The one way out: refuse what is queued, tear down, tell the supervisor."""
        self._leave()
        self._mailbox.close()
        if self._initialised:
            self._tear_down()
        self.context.services.timers.forget(self.address)
        self.context.exited.set()
        reason = StopReason.FAILURE if self._failure else self._stop_reason
        self.context.report(Exited(self.context.name, self.context.generation, reason, self._failure))

    def _tear_down(self) -> None:
        try:
            self.teardown(StopReason.FAILURE if self._failure else self._stop_reason)
        except BaseException as error:  # noqa: BLE001 - the report must follow
            self._fail(error)
