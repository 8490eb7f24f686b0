"""Typed reading of foreign JSON: every value is checked where it is taken, and an error says where that was.

Consul leaves empty fields out or sends null for them, so absent, null and empty mean the same here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hcc.consul.errors import ConsulAnswerError

_MAX_SHOWN = 60
_NS_PER_MS = 1_000_000
_UNITS_MS = {
    "ns": 1e-6,
    "us": 1e-3,
    "\u00b5s": 1e-3,
    "\u03bcs": 1e-3,
    "ms": 1.0,
    "s": 1e3,
    "m": 6e4,
    "h": 3.6e6,
}
_DURATION = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h))+")
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
# Nanoseconds of 31 years. Python refuses to read a number of thousands of digits.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object, and where it stands in the answer.

    Every method raises ConsulAnswerError when the field is of another type than asked for.
    """

    values: Mapping[str, object]
    path: str

    def text(self, name: str) -> str:
        """A text, empty when absent."""
        value = self.values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(name, "a text")
        return value

    def required(self, name: str) -> str:
        """A text that must not be empty."""
        return self.text(name) or self._missing(name)

    def number(self, name: str) -> int:
        """A whole number, 0 when absent."""
        value = self.values.get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "a whole number")
        return value

    def decimal(self, name: str) -> float:
        """A number, 0 when absent."""
        value = self.values.get(name)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.error(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false, false when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, "true or false")
        return bool(value)

    def duration_ms(self, name: str) -> int:
        """Milliseconds of a Go duration (`5s`) or of a whole number of nanoseconds, 0 when absent."""
        value = self.values.get(name)
        if value is None or value == "":
            return 0
        duration = go_duration_ms(value)
        if duration is None:
            raise self.error(name, "a duration such as 5s, or nanoseconds")
        return duration

    def child(self, name: str) -> Fields:
        """An object, empty when absent."""
        value = self.values.get(name)
        return fields({} if value is None else value, f"{self.path}.{name}".lstrip("."))

    def required_child(self, name: str) -> Fields:
        """An object that must be there: an answer without it says nothing."""
        return fields(self.values.get(name), f"{self.path}.{name}".lstrip("."))

    def children(self, name: str) -> tuple[Fields, ...]:
        """A list of objects, empty when absent."""
        return fields_list(self.values.get(name), f"{self.path}.{name}".lstrip("."))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty when absent."""
        values = items(self.values.get(name), f"{self.path}.{name}".lstrip("."))
        if not all(isinstance(value, str) for value in values):
            raise self.error(name, "a list of texts")
        return tuple(str(value) for value in values)

    def entries(self, name: str) -> tuple[tuple[str, Fields], ...]:
        """The objects of an object of objects, sorted by their names."""
        outer = self.child(name)
        return tuple((key, fields(outer.values[key], f"{outer.path}[{key}]")) for key in sorted(outer.values))

    def error(self, name: str, expected: str) -> ConsulAnswerError:
        """The error for a field that cannot be used."""
        return ConsulAnswerError(f"{self.path}.{name}".lstrip("."), expected, shown(self.values.get(name)))

    def _missing(self, name: str) -> str:
        raise self.error(name, "a text")


def fields(value: object, path: str) -> Fields:
    """The fields of a JSON object; ConsulAnswerError for anything else."""
    if not isinstance(value, Mapping):
        raise ConsulAnswerError(path or "answer", "an object", shown(value))
    return Fields(value, path)


def items(value: object, path: str) -> tuple[object, ...]:
    """The items of a JSON list, none for null; ConsulAnswerError for anything else."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConsulAnswerError(path or "answer", "a list", shown(value))
    return tuple(value)


def fields_list(value: object, path: str) -> tuple[Fields, ...]:
    """The objects of a JSON list, none for null; ConsulAnswerError for anything else."""
    return tuple(fields(item, f"{path}[{position}]") for position, item in enumerate(items(value, path)))


def shown(value: object) -> str:
    """A value for an error message, cut short."""
    text = "nothing" if value is None or value == "" else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}.."


def go_duration_ms(value: object) -> int | None:
    """Milliseconds of a Go duration text or of nanoseconds; None when it is neither, or too long to be one.

    A part of one rounds up, below zero away from it: what Consul does may hang on whether there is anything.

    Source: Go time.ParseDuration; reference/consul.md section 4.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value // _NS_PER_MS if value < 0 else -(-value // _NS_PER_MS)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return -(-int(text) // _NS_PER_MS) if len(text) <= _MAX_DIGITS else None
    if not _DURATION.fullmatch(text):
        return None
    total = sum(float(amount) * _UNITS_MS[unit] for amount, unit in _PART.findall(text))
    if not math.isfinite(total):
        return None
    return -_rounded_up(total) if text.startswith("-") else _rounded_up(total)


def _rounded_up(milliseconds: float) -> int:
    return max(1, round(milliseconds)) if milliseconds > 0 else 0
