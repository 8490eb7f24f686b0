"""The table of faults: what is injected, what is promised, how it is done; and what a run of it found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from tests.e2e.faults.scene import Scene

RECORDS = "FAULT_RECORDS"
"""Variable with the file that records are appended to; without it nothing is written."""


class Lost(Enum):
    """Which requests may fail."""

    NONE = "none"
    GAP = "those of the gap"
    """From the injection until the fault is mended."""
    FEW = "those in flight"
    """At most FEW of them."""


FEW = 10


@dataclass(frozen=True)
class Fault:
    """One row.

    Args:
        run: injects (calling `Scene.inject` at that moment), waits until all is mended, and puts back what it took.
        slow: takes long, and so runs in `make faults` only.
    """

    group: str
    injected: str
    promised: str
    lost: Lost
    run: Callable[[Scene], None]
    slow: bool = False

    @property
    def id(self) -> str:
        return f"{self.group}-{self.injected}".replace(" ", "_").replace(",", "")


@dataclass(frozen=True)
class Record:
    """What one run of a row found. `outage_s` is the time from the injection to the last failed request."""

    group: str
    injected: str
    promised: str
    haproxy: str
    sent: int
    failed: int
    outage_s: float
    mended_s: float
    good: bool

    def append(self) -> None:
        """Add it to the file of this run, if one is wanted."""
        if path := os.environ.get(RECORDS):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")


FAULTS: list[Fault] = []


def fault(
    group: str, injected: str, promised: str, lost: Lost = Lost.NONE, *, slow: bool = False
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Enter a function into the table."""

    def enter(run: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS.append(Fault(group, injected, promised, lost, run, slow))
        return run

    return enter
