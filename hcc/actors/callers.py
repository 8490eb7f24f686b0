"""Who came to the public listener, for people and metrics: how a caller is shown, and the last so many denied."""

from __future__ import annotations

from dataclasses import replace

from hcc.actors.status import CallerStatus
from hcc.mesh.naming import parts
from hcc.mesh.rules import DENY

MAX_CALLERS = 200
UNKNOWN = "(unknown)"
"""A caller whose certificate says no service of our trust domain."""
OTHER = "(other)"
"""Stands in a label for services beyond the limit: a mesh may be large, and a label value stays for ever."""


def shown(caller: str, home: str) -> str:
    """A caller's name in HAProxy, `web:dc1`, as people write it who are in the datacenter `home`."""
    service, *where = parts(caller)
    return ".".join((service, *where)) if where and where != [home] else service


class Labels:
    """Services that are counted under their names, a bounded number; for one thread."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def of(self, service: str) -> str:
        """The name to count a service under."""
        if service not in self._names and len(self._names) >= MAX_CALLERS:
            return OTHER
        self._names.add(service)
        return service


class Callers:
    """The table, for one thread."""

    def __init__(self) -> None:
        self._callers: dict[str, CallerStatus] = {}
        self._labels = Labels()

    def denied(self, service: str, reason: str, now: float) -> str:
        """Note the denial of a service, empty when its name is not certain; the name to count it under."""
        name = service or UNKNOWN
        # Taken out and put in again, so that the oldest is the first.
        known = self._callers.pop(name, None) or CallerStatus(name, DENY, True, reason, now, 0, None)
        self._callers[name] = replace(known, current=True, reason=reason, denied_at=now, denials=known.denials + 1)
        if len(self._callers) > MAX_CALLERS:
            del self._callers[next(iter(self._callers))]
        return self._labels.of(name)

    def policy_changed(self) -> None:
        """Who was denied so far was denied by another policy."""
        self._callers = {name: replace(one, current=False) for name, one in self._callers.items()}

    def newest(self) -> tuple[CallerStatus, ...]:
        """All of them, the newest denial first."""
        return tuple(reversed(self._callers.values()))
