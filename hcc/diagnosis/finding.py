"""What a check found, as a value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is: as it should be; worth a look though it serves; it does not serve; not looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: the thing: `HAProxy`, `token: service:write on web`.
        text: what was found.
        remedy: what to do about it; empty when all is well.
    """

    subject: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings that belong together, under a heading."""

    title: str
    findings: tuple[Finding, ...]


def ok(subject: str, text: str) -> Finding:
    """As it should be."""
    return Finding(subject, Level.OK, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """It serves, but somebody should look."""
    return Finding(subject, Level.WARNING, text, remedy)


def failed(subject: str, text: str, remedy: str) -> Finding:
    """It cannot serve so."""
    return Finding(subject, Level.FAILED, text, remedy)


def skipped(subject: str, text: str) -> Finding:
    """Not looked at; the text says why."""
    return Finding(subject, Level.SKIPPED, text)


def any_failed(sections: Iterable[Section]) -> bool:
    """Whether there is something that keeps the sidecar from serving."""
    return any(finding.level is Level.FAILED for section in sections for finding in section.findings)
