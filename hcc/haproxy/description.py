"""HAProxy's description, by which is told what it runs: in it stands the digest of the structure. Pure.

Source: HAProxy configuration.txt section 3.1, `description`; management.txt, `show info`.
"""

from __future__ import annotations

import re

_MARK = "hcc"
_LINE = re.compile(rf"^\s*description {_MARK}:(\w+)\s*$", re.MULTILINE)


def description(structure: str) -> str:
    """The line of section `global`, without indentation."""
    return f"description {_MARK}:{structure}"


def structure_of(text: str) -> str:
    """The structure that a configuration has, empty without one of ours."""
    found = _LINE.search(text)
    return found[1] if found else ""


def structure_told(told: str) -> str:
    """The structure that a HAProxy with this description runs, empty where it is none of ours."""
    mark, _, structure = told.partition(":")
    return structure if mark == _MARK else ""
