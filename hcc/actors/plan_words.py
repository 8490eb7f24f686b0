"""A plan and what came of it, for people. Pure."""

from __future__ import annotations

from dataclasses import replace

from hcc.actors.status import PlanStatus
from hcc.haproxy.control import Applied, ApplyError
from hcc.haproxy.origin import origin
from hcc.haproxy.plan import Install, Operation, Plan, Reload, WriteConfig
from hcc.mesh.snapshot import Snapshot

# More operations than this are counted, not listed.
MAX_LISTED = 8
FAILED, APPLIED = "failed", "applied"


def shown(steps: Plan) -> tuple[Operation, ...]:
    """What changes HAProxy; to write down a moment later what was done is part of having done it."""
    return tuple(operation for operation in steps.operations if not isinstance(operation, WriteConfig))


def line(steps: Plan) -> str:
    """Why, and what, in one line of the log."""
    words = steps.describe()
    listed = "; ".join(words[:MAX_LISTED])
    more = "" if len(words) <= MAX_LISTED else f"{listed}; and {len(words) - MAX_LISTED} more"
    return f"{'; '.join(steps.reasons)}: {more or listed}"


def plan_status(steps: Plan, applied: Applied, at: float, took_s: float, *, drift: bool) -> PlanStatus:
    """The plan among those that were carried out last; it began `at` (Unix seconds)."""
    return PlanStatus(
        at=at,
        took_s=took_s,
        outcome=FAILED if applied.failure else APPLIED,
        reasons=steps.reasons,
        operations=tuple(one.describe() for one in steps.operations[:MAX_LISTED]),
        operation_count=len(steps.operations),
        reloaded=applied.reloaded,
        drift=drift,
        failure=str(applied.failure or ""),
    )


def with_origin(applied: Applied, steps: Plan, snapshot: Snapshot | None) -> Applied:
    """The same; a failure says what in Consul is behind the line that HAProxy names, if there is something."""
    failure = applied.failure
    if failure is None or not failure.line or snapshot is None:
        return applied
    texts = (one.rendered.config for one in steps.operations if isinstance(one, Reload | Install))
    found = next((origin(text, failure.line, snapshot) for text in texts), "")
    if not found:
        return applied
    told = ApplyError(f"{failure}; it comes from {found}", failure.operation, failure.line, failure.excerpt)
    return replace(applied, failure=told)
