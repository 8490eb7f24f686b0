"""The configuration text as the Data Plane API keeps it: with a version, a userlist, and in an order of its own.

Source: reference/dataplane-api.md section 5. Pure.
"""

from __future__ import annotations

import re
from collections import Counter

USER = "hcc"
_VERSION = re.compile(r"^# _version=(\d+)\s*$", re.MULTILINE)
_TIME = re.compile(r"(\d+)(ms|s|m|h|d)")
# As HAProxy tells words apart: not by blanks that are quoted.
_WORD = re.compile(r"""(?:[^\s'"\\]+|\\.|'[^']*'|"(?:\\.|[^"\\])*"|\S)+""")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SECTIONS = frozenset((
    "acme", "backend", "cache", "crt-store", "defaults", "fcgi-app", "frontend", "global", "http-errors", "listen",
    "log-forward", "log-profile", "mailers", "peers", "program", "resolvers", "ring", "traces", "userlist",
))  # fmt: skip
# What these set is told by their second word, and the order of two of them means nothing.
_FAMILIES = frozenset(("option", "stats", "timeout"))
# What 3.x calls a `defaults` section without a name.
_UNNAMED = re.compile(r"^defaults unnamed_defaults_\d+$")


def version_of(text: str) -> int:
    """The version in the head of the file; 1 without one, which is what a first write has to name."""
    found = _VERSION.search(text[:400])
    return int(found[1]) if found else 1


def versioned(text: str, version: int) -> str:
    """The text as the Data Plane API would have it at that version."""
    return f"# _version={version}\n\n{bare(text)}"


def bare(text: str) -> str:
    """The text without the lines that the Data Plane API puts at its head."""
    lines = text.splitlines(keepends=True)
    while lines and (not lines[0].strip() or lines[0].startswith("# _")):
        del lines[0]
    return "".join(lines)


def with_user(text: str, password: str) -> str:
    """The text with the userlist by which we log in; it has no other use."""
    return f"{text.rstrip()}\n\nuserlist {USER}\n  user {USER} insecure-password {password}\n"


def differences(sent: str, found: str) -> tuple[str, ...]:
    """In words, what `found` lacks of what was sent, and what it has beyond; empty when both mean the same.

    Sections may come in any order, as may lines that begin with different words; comments, blanks
    between words and the units of times do not count. Lines that begin alike, such as rules, must keep their order.
    """
    wanted, there = _grouped(sent), _grouped(found)
    said: list[str] = []
    for key in sorted({*wanted, *there}):
        said.extend(_group_differences(key, wanted.get(key, []), there.get(key, [])))
    return tuple(said)


def _group_differences(key: tuple[str, str], wanted: list[str], there: list[str]) -> list[str]:
    if wanted == there:
        return []
    missing, extra = Counter(wanted) - Counter(there), Counter(there) - Counter(wanted)
    section = key[0] or "the head"
    said = [f"{section} lacks: {_shown(line)}" for line in missing.elements()]
    said += [f"{section} has instead or besides: {_shown(line)}" for line in extra.elements()]
    return said or [f"{section} has its lines {key[1]} in another order, or stands there in another number"]


def _shown(line: str) -> str:
    """A line for the log; the password of a user is not for it."""
    return f"{line.partition('password ')[0]}password ..." if line.startswith("user ") else line or "the section itself"


def _grouped(text: str) -> dict[tuple[str, str], list[str]]:
    """Lines in order, by section and what they set; a section's own line stands under no word."""
    groups: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in text.splitlines():
        words = _WORD.findall(line)
        if not words or words[0].startswith("#"):
            continue
        if words[0] in _SECTIONS:
            section = _UNNAMED.sub("defaults", " ".join(words))
            groups.setdefault((section, ""), []).append("")
        else:
            kind = " ".join(words[:2]) if words[0] in _FAMILIES else words[0]
            groups.setdefault((section, kind), []).append(" ".join(_plain(word) for word in words))
    return groups


def _plain(word: str) -> str:
    """A time in milliseconds, without a unit; any other word as it is."""
    time = _TIME.fullmatch(word)
    return str(int(time[1]) * _MILLISECONDS[time[2]]) if time else word
