"""Rules of layer-7 intentions as entries of a HAProxy map: regular expressions over one text for each request.

The text is made of lines, each ended by LF, which neither a method, a path nor a header's value can hold:

    NAME OF THE RULE SET
    DIGEST OF THE HEADERS' NAMES, as two workers of HAProxy may look at different ones
    METHOD
    PATH
    + or -, whether the first header is there
    ITS VALUE
    ..

HAProxy looks at the entries in order (`map_reg`), so that the first rule that speaks of the request decides. Every
expression matches the whole text and spells out every LF in it, so nothing in it can match across a line's end.
Source: HAProxy configuration.txt section 7.1.3 and the map converters; pcre2pattern(3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from hcc.mesh.intentions import Policy, rule_sets
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.rules import Rule, RuleSet

_DIGEST_CHARACTERS = 8
_ANY_LINE = r"[^\n]*\n"
_PLAIN = re.compile(r"[A-Za-z0-9_/]")
_FLAGS = re.compile(r"\(\?([is]{1,2})\)")


def rule_headers(policy: Policy | None) -> tuple[str, ...]:
    """Names of the headers that rules look at, sorted."""
    sets = rule_sets(policy) if policy is not None else ()
    return tuple(sorted({header.name for each in sets for rule in each.rules for header in rule.headers}))


def headers_digest(headers: tuple[str, ...]) -> str:
    """Which headers a text has, in one word."""
    return hashlib.sha256("\n".join(headers).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def rule_entries(sets: Iterable[RuleSet], headers: tuple[str, ...]) -> dict[str, str]:
    """The map: expression and verdict, in the order in which they are to be looked at.

    Args:
        sets: those that may govern.
        headers: names that HAProxy puts into the text, in that order; a set that looks at others is left out, which
            denies.
    """
    entries: dict[str, str] = {}
    for each in sets:
        if not {header.name for rule in each.rules for header in rule.headers} <= set(headers):
            continue
        head = f"^{each.name}\\n{headers_digest(headers)}\\n"
        for rule in each.rules:
            entries.setdefault(f"{head}{_lines(rule, headers)}\\z", rule.says)
        entries[head] = each.default
    return entries


def _lines(rule: Rule, headers: tuple[str, ...]) -> str:
    methods = "|".join(_literal(method) for method in rule.methods)
    parts = [f"(?:{methods})\\n" if methods else _ANY_LINE, _path(rule.path)]
    for position, name in enumerate(headers):
        after = 2 * (len(headers) - position - 1)
        parts.append(_header([each for each in rule.headers if each.name == name], after))
    return "".join(parts)


def _path(rule: PathRule | None) -> str:
    if rule is None:
        return _ANY_LINE
    if rule.kind is PathMatch.REGEX:
        return f"{_expression(rule.value)}\\n"
    return f"{_literal(rule.value)}{_ANY_LINE if rule.kind is PathMatch.PREFIX else chr(92) + 'n'}"


def _header(rules: list[HeaderRule], lines_after: int) -> str:
    """Both lines of one header that fulfils all of the rules."""
    present = {not rule.invert for rule in rules if rule.kind is HeaderMatch.PRESENT}
    values = [rule for rule in rules if rule.kind is not HeaderMatch.PRESENT]
    if False in present:
        # With anything else that is asked of it, the header would have to be there, too.
        return r"-\n\n" if not values and True not in present else r"(?!)"
    if not rules:
        return rf"[+-]\n{_ANY_LINE}"
    return r"\+\n" + "".join(_condition(rule, lines_after) for rule in values) + _ANY_LINE


def _condition(rule: HeaderRule, lines_after: int) -> str:
    # To the end of the text, so that all its LFs are spelled out here, too.
    return f"(?{'!' if rule.invert else '='}{_value(rule)}\\n(?:{_ANY_LINE}){{{lines_after}}}\\z)"


def _value(rule: HeaderRule) -> str:
    if rule.kind is HeaderMatch.REGEX:
        return _expression(rule.value)
    text = f"(?i:{_literal(rule.value)})" if rule.ignore_case else _literal(rule.value)
    before = r"[^\n]*" if rule.kind in (HeaderMatch.SUFFIX, HeaderMatch.CONTAINS) else ""
    after = r"[^\n]*" if rule.kind in (HeaderMatch.PREFIX, HeaderMatch.CONTAINS) else ""
    return f"{before}{text}{after}"


def _expression(pattern: str) -> str:
    """A pattern of `hcc.mesh.patterns` for one line: `^` and `$` are its ends, and no blank stands in it."""
    found = _FLAGS.match(pattern)
    flags = "im" if found and "i" in found[1] else "m"
    rest = pattern[found.end() :] if found else pattern
    return f"(?{flags}:{''.join(_printable(character) for character in rest)})"


def _printable(character: str) -> str:
    return character if "!" <= character <= "~" else _escaped(character)


def _literal(text: str) -> str:
    return "".join(character if _PLAIN.fullmatch(character) else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
