"""Regular expressions of Consul: which of them mean the same wherever they may be matched.

Consul's are RE2's; HAProxy matches with PCRE, and `explain` with Python. Only what all three read alike is taken,
the rest is refused by name: a rule that is understood differently somewhere is a hole.
"""

from __future__ import annotations

import re
import warnings

_ESCAPE = r"\\(?:[dDwWsStnrfv]|x[0-9A-Fa-f]{2}|[!-/:-@\[-`{-~])"
_TOKEN = re.compile(
    rf"""
    (?P<group>\((?:\?:|\?P<[A-Za-z_]\w*>|(?!\?))) | (?P<end>\))
    | (?P<class>\[\^?(?:{_ESCAPE}|[^\[\]\\])+\])
    | (?P<repeat>(?:[*+?]|\{{\d{{1,4}}(?:,\d{{0,4}})?\}})\??)
    | (?P<one>{_ESCAPE}|\\[bB]|[|.^$]|[^\\\[(){{*+?])
    """,
    re.VERBOSE | re.ASCII,
)
_FLAGS = re.compile(r"\(\?[is]{1,2}\)")
# Python may one day read these inside [..] as operations on sets.
_SET_OPERATIONS = ("--", "&&", "||", "~~")


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern for Python, to be used with `fullmatch`, as Envoy matches the whole of a path or value.

    Raises:
        ValueError: it is not in the common part of RE2, PCRE and Python, or is no pattern at all.
    """
    fault = _fault(pattern)
    if fault:
        raise ValueError(fault)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(pattern, re.ASCII)
    except (re.error, Warning, OverflowError) as exc:
        raise ValueError(f"the regular expression {pattern!r} is not understood: {exc}") from exc


def _fault(pattern: str) -> str:
    flags = _FLAGS.match(pattern)
    pos = flags.end() if flags else 0
    repeated = False
    while pos < len(pattern):
        token = _TOKEN.match(pattern, pos)
        if token is None or (token["repeat"] and repeated) or _is_set_operation(token["class"]):
            return f"the regular expression {pattern!r} is not understood from character {pos + 1} on"
        repeated = bool(token["repeat"])
        pos = token.end()
    return ""


def _is_set_operation(found: str | None) -> bool:
    return found is not None and any(operation in found for operation in _SET_OPERATIONS)
