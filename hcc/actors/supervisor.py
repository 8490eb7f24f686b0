"""The supervisor: starts its children, listens to their hearts, restarts each of them alone.

It never waits for a child but in its own teardown: stops, back-offs and heartbeats are timers. What to do
about a child that ended is decided in `restart`. When that says give up, the supervisor raises, and so
becomes a failed child of its own parent.
"""

import logging
import threading

from hcc.actors.actor import Actor
from hcc.actors.address import dismiss
from hcc.actors.child import Child, ChildSpec
from hcc.actors.context import Context
from hcc.actors.lifecycle import (
    ActorDownError,
    ActorFailedError,
    ActorState,
    Alive,
    BeatDue,
    Exited,
    Heartbeat,
    ListActors,
    RestartChild,
    RestartDue,
    RestartIntensityError,
    StaleGenerationError,
    Started,
    StopDue,
    StopReason,
    describe,
)
from hcc.actors.restart import GiveUp, Ignore, Intensity, Restart, decide

__all__ = ["ChildSpec", "Supervisor"]

logger = logging.getLogger(__name__)


class Supervisor(Actor):
    """One for one: a child that ends is restarted alone, its siblings do not notice."""

    def init(self, *, children: tuple[ChildSpec, ...], intensity: Intensity) -> None:
        self._specs = children
        self._intensity = intensity
        self._group: tuple[float, ...] = ()
        self._children: dict[str, Child] = {}
        self._book = self.context.services.book

    def setup(self) -> None:
        for spec in self._specs:
            self._children[spec.name] = Child(spec, self._book.enlist(spec.name, self.context.name))
        gate = threading.Event()
        try:
            for child in self._children.values():
                self._start(child, gate)
        finally:
            gate.set()

    def handle(self, message: object) -> object | None:
        match message:
            case ListActors():
                return self._book.statuses()
            case RestartChild(name, answer):
                self._children[name].waiters.append(answer)
                self._restart(self._children[name])
            case Alive(name, generation) | Started(name, generation) | Exited(name, generation):
                self._on_news(self._children[name], generation, message)
            case BeatDue(name, generation) | StopDue(name, generation) | RestartDue(name, generation):
                self._on_due(self._children[name], generation, message)
            case _:
                logger.warning("%s does not handle %s", self.context.name, type(message).__name__)
        return None

    def teardown(self, reason: StopReason) -> None:
        for child in reversed(self._children.values()):
            self._stop_and_wait(child, reason)

    # ------------------------------------------------------------ what is heard

    def _on_news(self, child: Child, generation: int, message: Alive | Started | Exited) -> None:
        match message:
            case Exited() if generation == child.stopping:
                self._on_stopped(child, message)
            case Exited() if generation == child.generation:
                self._on_exit(child, message)
            case Started() if generation == child.generation:
                self._book.mark(child.spec.name, generation, ActorState.RUNNING)
                child.answer()
            case Alive() if generation == child.generation:
                child.beat_answered = True
            case Exited():
                logger.info("Abandoned actor %s (generation %d) has ended", child.spec.name, generation)
            case _:
                logger.debug("News of an old generation: %s", message)

    def _on_due(self, child: Child, generation: int, message: BeatDue | StopDue | RestartDue) -> None:
        match message:
            case StopDue() if generation == child.stopping:
                self._abandon(child, f"did not stop within {child.spec.stop_bound_s:g} s")
                self._start(child)
            case BeatDue() if generation == child.generation and child.ref is not None:
                self._beat(child)
            case RestartDue() if generation == child.generation and child.ref is None:
                self._start(child)
            case _:
                logger.debug("A timer of an old generation: %s", message)

    def _on_stopped(self, child: Child, exited: Exited) -> None:
        """The child ended as it was told to: start its successor."""
        self.cancel(f"stop {child.spec.name}")
        if exited.error is not None:
            self._book.note_error(child.spec.name, exited.error)
        child.gone()
        self._start(child)

    def _on_exit(self, child: Child, exited: Exited) -> None:
        """The child ended by itself."""
        child.gone()
        self._fence(child)
        self._ended(child, exited)

    def _on_hung(self, child: Child) -> None:
        """The child did not answer its heartbeat."""
        error = f"did not answer a heartbeat within {child.spec.beat_bound_s:g} s"
        generation = child.generation
        self._fence(child)
        self._abandon(child, error)
        self._ended(child, Exited(child.spec.name, generation, StopReason.FAILURE, error))

    def _ended(self, child: Child, exited: Exited) -> None:
        name = child.spec.name
        if exited.error is not None:
            self._book.note_error(name, exited.error)
        why = exited.error or "it stopped itself"
        child.answer(ActorFailedError(f"Actor {name} ended before it was up: {why}"))
        self._decide(child, exited)

    # ------------------------------------------------------------ what is done

    def _decide(self, child: Child, exited: Exited) -> None:
        name, now = child.spec.name, self.context.services.clock()
        history = child.history(self._group)
        decision = decide(
            restart_type=child.spec.restart,
            failed=exited.reason is StopReason.FAILURE,
            history=history,
            intensity=self._intensity,
            now=now,
            jitter=self.context.services.jitter(),
        )
        match decision:
            case GiveUp(reason):
                why = exited.error or "it stopped itself"
                raise RestartIntensityError(f"{name} ended again, {reason}; the last time: {why}")
            case Ignore():
                state = ActorState.FAILED if exited.error else ActorState.STOPPED
                self._book.mark(name, child.generation, state)
            case Restart(delay_s):
                history = history.with_restart(now, self._intensity.window_s)
                child.own, self._group = history.own, history.group
                logger.warning("Actor %s restarts in %.2f s", name, delay_s)
                self.after(delay_s, RestartDue(name, child.generation), f"restart {name}")

    def _restart(self, child: Child) -> None:
        """Restart it on the operator's word: stop it first if it runs, and do not count it."""
        name = child.spec.name
        if child.stopping is not None:
            return
        if child.ref is None:
            self.cancel(f"restart {name}")
            self._start(child)
            return
        child.stopping = child.generation
        self._fence(child)
        dismiss(child.ref, StopReason.RESTART)
        self.after(child.spec.stop_bound_s, StopDue(name, child.stopping), f"stop {name}")

    def _start(self, child: Child, gate: threading.Event | None = None) -> None:
        spec, generation = child.spec, child.generation
        context = Context(
            name=spec.name,
            generation=generation,
            services=self.context.services,
            report=self.address.tell,
            mailbox_limit=spec.mailbox_limit,
            gate=gate,
        )
        try:
            child.ref = spec.factory.start(context, **spec.kwargs)
        except StaleGenerationError:
            raise
        except Exception as error:  # noqa: BLE001 - for example no thread to be had: a failure of the child
            logger.error("Actor %s (generation %d) could not be started: %s", spec.name, generation, describe(error))
            self.address.tell(Exited(spec.name, generation, StopReason.FAILURE, describe(error)))
            return
        child.context = context
        child.beat_answered = True
        self._beat(child)

    def _beat(self, child: Child) -> None:
        """Send a heartbeat, or replace the child if it has not answered the last one."""
        spec = child.spec
        if not child.beat_answered:
            self._on_hung(child)
            return
        child.beat_answered = False
        self._book.tell(spec.name, Heartbeat(), generation=child.generation)
        self.after(spec.beat_bound_s, BeatDue(spec.name, child.generation), f"beat {spec.name}")

    def _abandon(self, child: Child, error: str) -> None:
        """Go on without waiting for the child's thread."""
        name = child.spec.name
        logger.error("Actor %s is abandoned: it %s", name, error)
        self._book.note_error(name, error)
        if child.ref is not None:
            self._book.abandon(name, child.ref)
        child.gone()

    def _fence(self, child: Child) -> None:
        """From here on nothing of the child's present generation counts."""
        generation = self._book.retire(child.spec.name, child.generation, ActorState.RESTARTING)
        if generation is None:
            raise StaleGenerationError(f"The supervisor {self.context.name} was replaced.")
        child.generation = generation
        self.cancel(f"beat {child.spec.name}")

    def _stop_and_wait(self, child: Child, reason: StopReason) -> None:
        """End one child for good; its successor, if any, is another supervisor's."""
        child.answer(ActorDownError(child.spec.name))
        if child.ref is None or child.context is None:
            self._book.mark(child.spec.name, child.generation, ActorState.STOPPED)
            return
        if self._book.retire(child.spec.name, child.generation, ActorState.STOPPED) is None:
            return
        dismiss(child.ref, reason)
        if not child.context.exited.wait(child.spec.stop_bound_s):
            self._abandon(child, f"did not stop within {child.spec.stop_bound_s:g} s")
