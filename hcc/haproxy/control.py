"""The interface through which HAProxy is controlled: `direct` and `dataplane` have it.

One owner thread calls it. A second one may do one thing meanwhile: apply a plan that does nothing but write. Every
method is bounded in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hcc.errors import PeerError
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.model import ActualServers, Bind, Desired
from hcc.haproxy.plan import Actual, Operation, Plan
from hcc.haproxy.render import Rendered


class ControlError(PeerError):
    """HAProxy could not be asked or told. Of a change of several steps, as of verdicts, some may have been done."""


class ApplyError(ControlError):
    """An operation failed.

    Args:
        operation: in words, as `Operation.describe` gives it.
        line: of the configuration text HAProxy complained about, 0 when it named none.
        excerpt: that line.
    """

    def __init__(self, message: str, operation: str = "", line: int = 0, excerpt: str = "") -> None:
        super().__init__(message)
        self.operation = operation
        self.line = line
        self.excerpt = excerpt


@dataclass(frozen=True, slots=True)
class Taken:
    """An address that somebody else listens on, or that cannot be bound for the reason given."""

    bind: Bind
    reason: str

    def __str__(self) -> str:
        """In words."""
        return f"cannot listen on {self.bind}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a plan.

    Args:
        done: operations carried out, in order.
        pending: deletions of servers, and slots to be freed, that still have connections: in maintenance now, to be
            planned again later.
        reloaded: whether a new worker runs.
        failure: why the rest was left, None when all was done or is pending.
    """

    done: tuple[Operation, ...]
    pending: tuple[Operation, ...] = ()
    reloaded: bool = False
    failure: ApplyError | None = None


class Control(Protocol):
    """Reads and changes one HAProxy."""

    @property
    def capabilities(self) -> Capabilities:
        """What this HAProxy can do; `render` wants them."""

    def running(self) -> bool:
        """Whether a worker runs now, ours or that of an earlier hcc; one that does not answer within 2 s counts."""

    def unguarded(self) -> bool:
        """Whether a public listener runs that refuses nobody, or it cannot be told that none does."""

    def servers(self) -> ActualServers:
        """The servers of what runs: for `render` to keep each in its slot, and where Consul's are not known.

        Raises:
            ControlError: as `read_actual`.
        """

    def glance(self) -> Actual | None:
        """What runs by the last `read_actual` and what was done since, when the same worker is still there to run it.

        One question, however many servers there are. What somebody else changed is not seen, nor what is on disk.
        None when only `read_actual` can tell.

        Raises:
            ControlError: as `read_actual`.
        """

    def read_actual(self, rendered: Rendered) -> Actual:
        """What runs and what is on disk, as far as it concerns `rendered`.

        Raises:
            ControlError: a worker runs but does not answer, or answers something unknown.
        """

    def taken(self, desired: Desired, actual: Actual) -> tuple[Taken, ...]:
        """The addresses of `desired` that a reload could not bind, other than what our own HAProxy has."""

    def apply(self, plan: Plan) -> Applied:
        """Carry out a plan up to its first failure; a failed install, reload or write leaves the last good files."""
