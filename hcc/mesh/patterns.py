"""Regular expressions of Consul: which of them mean the same wherever they may be matched.

Consul's are RE2's; HAProxy matches with PCRE, and `explain` with Python. Only what all three read alike is taken,
the rest is refused by name: a rule that is understood differently somewhere is a hole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

_ESCAPE = r"\\(?:[dDwWsStnrfv]|x[0-9A-Fa-f]{2}|[!-/:-@\[-`{-~])"
_TOKEN = re.compile(
    rf"""
    (?P<group>\((?:\?:|\?P<[A-Za-z_]\w*>|(?!\?))) | (?P<end>\))
    | (?P<class>\[(?!\])(?:\^\]?+)?+(?:{_ESCAPE}|[^\[\]\\])*+\])
    | (?P<repeat>(?:[*+?]|\{{\d{{1,4}}(?:,\d{{0,4}})?\}})\??)
    | (?P<one>{_ESCAPE}|\\[bB]|[|.^$]|[^\\\[(){{*+?])
    """,
    re.VERBOSE | re.ASCII,
)
_FLAGS = re.compile(r"\(\?[is]{1,2}\)")
# PCRE makes at most 65,535 bytes of an expression; repeated groups are written out. Room for what stands around it.
MAX_COMPILED_BYTES = 20_000
# What its parts take, rather more than less (PCRE2 10.42): a class has a bit for each character. Ends may be calls of
# a group (PCRE 8.32).
_CHARACTER_BYTES, _END_BYTES, _CLASS_BYTES, _GROUP_BYTES, _REPEAT_BYTES = 3, 12, 48, 24, 16
# Groups in groups. PCRE2 takes 250, with what stands around a pattern; Python goes by its stack.
MAX_DEPTH = 100
_NAMED = "(?P<"
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
        return re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"the regular expression {pattern!r} is not understood: {exc}") from exc


def _fault(pattern: str) -> str:
    flags = _FLAGS.match(pattern)
    pos = flags.end() if flags else 0
    repeated = False
    if not pattern.isascii():
        return f"the regular expression {pattern!r} has more than ASCII, matched here by bytes, there by characters"
    while pos < len(pattern):
        token = _TOKEN.match(pattern, pos)
        if token is None or (token["repeat"] and repeated) or _is_set_operation(token["class"]):
            return f"the regular expression {pattern!r} is not understood from character {pos + 1} on"
        repeated = bool(token["repeat"])
        pos = token.end()
    if _depth(pattern) > MAX_DEPTH:
        return f"the regular expression {pattern[:50]!r}.. has more than {MAX_DEPTH} groups in each other"
    if compiled_bytes(pattern) > MAX_COMPILED_BYTES:
        return f"the regular expression {pattern!r} is too large for HAProxy, which writes its repetitions out"
    return ""


def unnamed(pattern: str, start: str = "^", end: str = "$") -> str:
    """The same without names of groups, which mean nothing here: PCRE takes each once, and only short ones.

    In the place of `^` and `$` stand `start` and `end`, where the text that is matched is a part of a longer one.
    """
    ends = {"^": start, "$": end}
    return "".join("(" if token[0].startswith(_NAMED) else ends.get(token[0], token[0]) for token in _tokens(pattern))


def compiled_bytes(pattern: str) -> int:
    """About how long PCRE's form of a pattern is, not less than it is."""
    # What each open group holds so far, and the group that has just ended: only groups are written out.
    holds, ended = [0], 0
    for token in _tokens(pattern):
        if token["group"]:
            holds.append(0)
        elif token["repeat"]:
            holds[-1] += _REPEAT_BYTES + (_most(token["repeat"]) - 1) * ended
        elif not token["end"]:
            one = _END_BYTES if token[0] in ("^", "$") else _CHARACTER_BYTES
            holds[-1] += _CLASS_BYTES if token["class"] else one
        ended = 0
        if token["end"] and len(holds) > 1:
            ended = holds.pop() + _GROUP_BYTES
            holds[-1] += ended
    return sum(holds)


def _tokens(pattern: str) -> Iterator[re.Match[str]]:
    """Those of a pattern without fault, its flags left out."""
    flags = _FLAGS.match(pattern)
    yield from _TOKEN.finditer(pattern, flags.end() if flags else 0)


def _depth(pattern: str) -> int:
    """How many groups are open at once, at most."""
    steps = (1 if token["group"] else -1 if token["end"] else 0 for token in _tokens(pattern))
    return max(accumulate(steps), default=0)


def _most(repeat: str) -> int:
    """How often what stands before is written out: `{2,5}` five times, `*` once."""
    numbers = [int(number) for number in re.findall(r"\d+", repeat)]
    return max(1, *numbers) if numbers else 1


def _is_set_operation(found: str | None) -> bool:
    return found is not None and any(operation in found for operation in _SET_OPERATIONS)
