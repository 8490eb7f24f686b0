"""Rules of layer-7 intentions as entries of a HAProxy map: regular expressions over one text for each request.

The text is made of lines, each ended by LF, which neither a method, a path nor a header's value can hold:

    NAME OF THE RULE SET
    DIGEST OF THE HEADERS THAT ARE LOOKED AT, and how closely, as two workers of HAProxy may differ in that
    METHOD
    PATH
    + or -, whether the first header is there
    ITS VALUE, if a rule looks at it
    ..

HAProxy looks at the entries in order (`map_reg`), so that the first rule that speaks of the request decides. Every
expression matches the whole text and spells out every LF in it, so nothing in it can match across a line's end.

When PCRE gives up (a group repeated over a long path takes more memory than it has), HAProxy takes that for no match
and looks at the next entry: a long path would get by a rule that denies. So an entry that says more than such a rule
before it says once more that that one does not match. Where PCRE gives up there as well no entry matches, which denies.

How much PCRE tries before it gives up is bounded by us: its own bound lets some expressions take a tenth of a second of
HAProxy's at a path that is made for it, and tens of those rules are more than HAProxy's watchdog waits for.
Source: HAProxy configuration.txt section 7.1.3 and the map converters; pcre2pattern(3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.mesh.patterns import compiled_bytes, unnamed
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.request import LookedAt
from hcc.mesh.rules import ALLOW, DENY, Rule, RuleSet, looked_at

# Of one entry: less than the smallest buffer of a HAProxy takes (`Capabilities.payload_bytes`).
MAX_ENTRY_BYTES = 12_000
MAX_COMPILED_BYTES = 60_000
# What PCRE may try of one expression: 2 ms or so. Its own bound is 10,000,000.
_BOUND = "(*LIMIT_MATCH=200000)"
_DIGEST_CHARACTERS = 8
_ANY_LINE = r"[^\n]*\n"
_PLAIN = re.compile(r"[A-Za-z0-9_/]")
_FLAGS = re.compile(r"\(\?([is]{1,2})\)")


def bound(capabilities: Capabilities) -> str:
    """What stands before an expression for HAProxy, where its PCRE can be told how much to try."""
    return _BOUND if capabilities.has(Feature.MATCH_LIMIT) else ""


def headers_digest(headers: tuple[LookedAt, ...]) -> str:
    """Which headers a text has, and what was refused for them, in one word."""
    content = "\n".join(f"{header.name} {header.look.name}" for header in headers)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def sees(rules: RuleSet, headers: tuple[LookedAt, ...]) -> bool:
    """Whether the rules look at no other headers than these, and no more closely."""
    looks = {header.name: header.look for header in headers}
    return all(looks.get(header.name, 0) >= header.look for header in looked_at((rules,)))


def rule_entries(sets: Iterable[RuleSet], headers: tuple[LookedAt, ...], before: str = "") -> dict[str, str]:
    """The map: expression and verdict, in the order in which they are to be looked at.

    Args:
        sets: those that may govern.
        headers: those that HAProxy puts into the text, in that order; a set that looks at others, or more closely, or
            that it would not take, is left out, which denies.
        before: of every expression, as `bound` has it.
    """
    entries: dict[str, str] = {}
    for each in sets:
        if sees(each, headers) and is_small(each, headers):
            entries |= {f"{before}{key}": says for key, says in _entries(each, headers).items()}
    return entries


# The same sets are asked about at each change of callers or policy.
@lru_cache(maxsize=1_024)
def is_small(rules: RuleSet, headers: tuple[LookedAt, ...]) -> bool:
    """Whether HAProxy takes the set: PCRE makes at most 65,535 bytes of an entry, which has to fit into a command."""
    guards = written_out = 0
    for rule in rules.rules:
        own = sum(compiled_bytes(pattern) for pattern in _patterns(rule))
        written_out = max(written_out, own + guards)
        # Counted for every entry that comes after it.
        guards += own if rule.says != ALLOW else 0
    longest = max(len(entry) for entry in _entries(rules, headers))
    return longest <= MAX_ENTRY_BYTES and max(written_out, guards) + 2 * longest <= MAX_COMPILED_BYTES


@lru_cache(maxsize=1_024)
def _entries(rules: RuleSet, headers: tuple[LookedAt, ...]) -> Mapping[str, str]:
    head = f"^{rules.name}\\n{headers_digest(headers)}\\n"
    found: dict[str, str] = {}
    # The lines of rules at which PCRE may give up, and what those say.
    doubtful: list[tuple[str, str]] = []
    for rule in rules.rules:
        lines = _lines(rule, headers)
        guard = _unless(doubtful, rule.says)
        # The guard last: at a text that the rule does not speak of it costs nothing, however many rules there are.
        found.setdefault(f"{head}(?={lines}\\z){guard}" if guard else f"{head}{lines}\\z", rule.says)
        if rule.says != ALLOW and any(_patterns(rule)):
            doubtful.append((lines, rule.says))
    found[f"{head}{_unless(doubtful, rules.default)}"] = rules.default
    return MappingProxyType(found)


def _unless(doubtful: list[tuple[str, str]], says: str) -> str:
    """That none of these matches, where `says` lets more in than it."""
    return "" if says == DENY else "".join(f"(?!{lines}\\z)" for lines, told in doubtful if told != says)


def _patterns(rule: Rule) -> Iterator[str]:
    if rule.path is not None and rule.path.kind is PathMatch.REGEX:
        yield rule.path.value
    yield from (header.value for header in rule.headers if header.kind is HeaderMatch.REGEX)


def _lines(rule: Rule, headers: tuple[LookedAt, ...]) -> str:
    methods = "|".join(literal(method) for method in rule.methods)
    parts = [f"(?:{methods})\\n" if rule.methods else _ANY_LINE, _path(rule.path)]
    for position, header in enumerate(headers):
        after = 2 * (len(headers) - position - 1)
        parts.append(_header([each for each in rule.headers if each.name == header.name], after))
    return "".join(parts)


def _path(rule: PathRule | None) -> str:
    if rule is None:
        return _ANY_LINE
    if rule.kind is PathMatch.REGEX:
        return f"{expression(rule.value)}\\n"
    return f"{literal(rule.value)}{_ANY_LINE if rule.kind is PathMatch.PREFIX else chr(92) + 'n'}"


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
        return expression(rule.value)
    text = f"(?i:{literal(rule.value)})" if rule.ignore_case else literal(rule.value)
    before = r"[^\n]*" if rule.kind in (HeaderMatch.SUFFIX, HeaderMatch.CONTAINS) else ""
    after = r"[^\n]*" if rule.kind in (HeaderMatch.PREFIX, HeaderMatch.CONTAINS) else ""
    return f"{before}{text}{after}"


def expression(pattern: str, start: str = "^", end: str = "$") -> str:
    """A pattern of `hcc.mesh.patterns` for one line: `^` and `$` are its ends, and no blank stands in it.

    For a part of a line `start` and `end` are expressions for the ends of that.
    """
    found = _FLAGS.match(pattern)
    flags = "im" if found and "i" in found[1] else "m"
    return f"(?{flags}:{''.join(_printable(character) for character in unnamed(pattern, start, end))})"


def _printable(character: str) -> str:
    return character if "!" <= character <= "~" else _escaped(character)


def literal(text: str) -> str:
    """An expression that matches just this text."""
    return "".join(character if _PLAIN.fullmatch(character) else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
