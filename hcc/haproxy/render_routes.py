"""Words by which an upstream's listener sends each request its way, and its backends change it. Pure.

The listener looks at a request as it came, and keeps the number of its way; all that is changed is changed in the
backend, by that number. So no condition meets what a route has rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import FOR_EVER_MS, UpstreamListener, WayChanges
from hcc.haproxy.request_rules import expression, literal
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.routes import Changes, HeaderChanges, Match, QueryMatch, QueryRule, Rewrite
from hcc.mesh.ways import SHARES

_WAY, _DRAW, _COMMA, _LINE = "txn.hcc_way", "txn.hcc_draw", "txn.hcc_comma", "txn.hcc_line"
# Of one header, as many of its lines as are joined to what is compared.
MOST_LINES = 4
# A line of HAProxy's configuration has at most 64 words.
_NUMBERS_IN_LINE = 50
_HEADER_KINDS = {
    HeaderMatch.EXACT: "str",
    HeaderMatch.PREFIX: "beg",
    HeaderMatch.SUFFIX: "end",
    HeaderMatch.CONTAINS: "sub",
    HeaderMatch.REGEX: "reg",
}


def way_lines(listener: UpstreamListener, before: str) -> Iterator[str]:
    """The lines of an upstream's listener that find out the way of each request.

    Before each regular expression stands `before`, as `hcc.haproxy.request_rules.bound` has it.
    """
    ways = listener.ways
    if any(way.below < SHARES for way in ways):
        yield f"  http-request set-var({_DRAW}) rand({SHARES})"
    matches = tuple(dict.fromkeys(way.match for way in ways))
    variables = _compared_headers(matches)
    if variables:
        # Not all versions can be told of one between parentheses.
        yield f"  http-request set-var({_COMMA}) str(%2C),url_dec"
    for name, variable in variables.items():
        yield from _joined_header(name, variable)
    conditions: dict[Match, tuple[str, ...]] = {}
    for number, match in enumerate(matches, start=1):
        named = tuple(_conditions(match, f"hcc_m{number}", variables, before))
        yield from (f"  acl {name.removeprefix('!')} {what}" for name, what in named)
        conditions[match] = tuple(name for name, _ in named)
    for number, way in enumerate(ways, start=1):
        others = (f"!{{ var({_WAY}) -m found }}",) if number > 1 else ()
        share = (f"{{ var({_DRAW}) -m int lt {words.number(way.below)} }}",) if way.below < SHARES else ()
        yield f"  http-request set-var({_WAY}) int({number}){_if(*others, *conditions[way.match], *share)}"


def senders(listener: UpstreamListener) -> Iterator[str]:
    """The lines after these that send each request its way; what is left goes to the listener's default."""
    for backend in listener.backends[1:]:
        numbers = [number for number, way in enumerate(listener.ways, start=1) if way.backend == backend]
        for at in range(0, len(numbers), _NUMBERS_IN_LINE):
            yield f"  use_backend {words.name(backend)} if {_taken(*numbers[at : at + _NUMBERS_IN_LINE])}"


def request_changes(changes: Iterable[WayChanges]) -> Iterator[str]:
    """The lines of a backend that change paths and headers of requests, of each way for itself."""
    for condition, change in _each(changes):
        if change.rewrite is not None:
            yield f"  http-request set-path {_new_path(change.rewrite)} {condition}"
        yield from (f"  http-request {line} {condition}" for line in _header_lines(change.request))


def answer_timeouts(changes: Iterable[WayChanges], capabilities: Capabilities) -> Iterator[str]:
    """Those that say how long an answer is waited for.

    After all other http-request rules, as older Data Plane APIs put last what they do not know.
    """
    for condition, change in _each(changes):
        if change.timeout_ms and capabilities.has(Feature.SET_TIMEOUT):
            milliseconds = change.timeout_ms if change.timeout_ms > 0 else FOR_EVER_MS
            yield f"  http-request set-timeout server {words.milliseconds(milliseconds)} {condition}"


def answer_changes(changes: Iterable[WayChanges]) -> Iterator[str]:
    """Those that change headers of answers. HAProxy looks at none of them after a rule that allows an answer."""
    for condition, change in _each(changes):
        yield from (f"  http-response {line} {condition}" for line in _header_lines(change.response))


def _each(changes: Iterable[WayChanges]) -> Iterator[tuple[str, Changes]]:
    return ((f"if {_taken(one.way)}", change) for one in changes for change in one.changes)


def open_connections(backends: tuple[str, ...]) -> tuple[Iterator[str], str]:
    """Lines that count the connections of several backends, and the sample that has their number afterwards."""
    first, *others = (f"be_conn({words.name(backend)})" for backend in backends)
    added = [first, *(f"{other},add(txn.hcc_open)" for other in others)]
    lines = (f"  http-request set-var(txn.hcc_open) {sample}" for sample in added[:-1])
    return lines, added[-1]


def _taken(*ways: int) -> str:
    return f"{{ var({_WAY}) -m int {' '.join(words.number(way) for way in ways)} }}"


def _if(*conditions: str) -> str:
    return f" if {' '.join(conditions)}" if conditions else ""


# ---- of which requests a route speaks


def _compared_headers(matches: Iterable[Match]) -> dict[str, str]:
    """By name, the variables that have the values of headers that are compared."""
    found = (rule.name for match in matches for rule in match.headers if rule.kind is not HeaderMatch.PRESENT)
    return {name: f"txn.hcc_header{number}" for number, name in enumerate(dict.fromkeys(found))}


def _joined_header(name: str, variable: str) -> Iterator[str]:
    header = words.header(name)
    yield f"  http-request set-var({variable}) req.fhdr({header},1)"
    for line in range(2, MOST_LINES + 1):
        there = f"if {{ req.fhdr_cnt({header}) ge {line} }}"
        yield f"  http-request set-var({_LINE}) req.fhdr({header},{line}) {there}"
        yield f"  http-request set-var({variable}) var({variable}),concat(,{_COMMA}),concat(,{_LINE}) {there}"


def _conditions(match: Match, name: str, variables: dict[str, str], before: str) -> Iterator[tuple[str, str]]:
    """Each condition of a match by a name of its own, with `!` if it must not be fulfilled, and its words.

    Named, as a line has at most 64 words, and as one in braces would end at a value that is a brace.
    """
    if match.methods:
        yield f"{name}_method", f"method {' '.join(words.word(method) for method in match.methods)}"
    if match.path is not None and match.path != PathRule(PathMatch.PREFIX, "/"):
        yield f"{name}_path", f"path {_path_pattern(match.path, before, ignore_case=match.ignore_case)}"
    for number, header in enumerate(match.headers):
        yield from _header_conditions(header, f"{name}_header{number}", variables, before)
    for number, one in enumerate(match.query):
        yield f"{name}_query{number}", f"query -m reg -- {words.quoted(before + _parameter(one))}"


def _path_pattern(rule: PathRule, before: str, *, ignore_case: bool) -> str:
    if rule.kind is PathMatch.REGEX:
        return f"-m reg -- {_whole(rule.value, before)}"
    kind = "str" if rule.kind is PathMatch.EXACT else "beg"
    return f"{'-i ' if ignore_case else ''}-m {kind} -- {words.quoted(rule.value)}"


def _header_conditions(
    rule: HeaderRule, name: str, variables: dict[str, str], before: str
) -> Iterator[tuple[str, str]]:
    there = f"req.fhdr({words.header(rule.name)}) -m found"
    mark = "!" if rule.invert else ""
    if rule.kind is HeaderMatch.PRESENT:
        yield f"{mark}{name}", there
        return
    if rule.invert:
        # One that is not there fulfils nothing.
        yield f"{name}_there", there
    pattern = words.quoted(rule.value)
    if rule.kind is HeaderMatch.REGEX:
        # An inverted one is told to match what it does not: so it does not match either where PCRE gives up.
        pattern, mark = (_unlike if rule.invert else _whole)(rule.value, before), ""
    case = "-i " if rule.ignore_case else ""
    yield f"{mark}{name}", f"var({variables[rule.name]}) {case}-m {_HEADER_KINDS[rule.kind]} -- {pattern}"


def _whole(pattern: str, before: str) -> str:
    return words.quoted(rf"{before}\A{expression(pattern)}\z")


def _unlike(pattern: str, before: str) -> str:
    return words.quoted(rf"{before}\A(?!{expression(pattern)}\z)")


def _parameter(rule: QueryRule) -> str:
    """An expression for a query of which the first parameter of that name is as it has to be."""
    name = literal(rule.name)
    if rule.kind is QueryMatch.PRESENT:
        return rf"(?:\A|&){name}(?:=|&|\z)"
    # Nothing is tried twice (`*+`), so that PCRE does not give up at many parameters.
    first = rf"\A(?:(?!{name}(?:=|&|\z))[^&]*+&)*+{name}"
    if rule.kind is QueryMatch.EXACT:
        return rf"{first}={literal(rule.value)}(?:&|\z)"
    # The ends of the value, for `^` and `$`. Defined once, as PCRE takes 65,535 bytes of an expression.
    ends = rf"(?(DEFINE)(?P<s>(?<=\A{name}|\A{name}=|&{name}|&{name}=))(?P<e>(?![^&])))"
    # What comes after the value is kept and has to follow what the expression matches: so that is all of the value.
    # By name, as HAProxy has groups without one not kept.
    value = rf"(?=[^&]*(?P<rest>(?:&.*)?)\z){expression(rule.value, '(?P>s)', '(?P>e)')}(?P=rest)\z"
    return rf"{ends}{first}(?:=|(?=&|\z)){value}"


# ---- what is changed


def _new_path(rewrite: Rewrite) -> str:
    text = words.quoted(rewrite.text.replace("%", "%%"))
    return f"{text}%[path,bytes({len(rewrite.prefix.encode())})]" if rewrite.prefix else text


def _header_lines(changes: HeaderChanges) -> Iterator[str]:
    yield from (f"del-header {words.header(name)}" for name in changes.remove)
    for word, pairs in (("set-header", changes.set), ("add-header", changes.add)):
        yield from (f"{word} {words.header(name)} {words.quoted(value)}" for name, value in pairs)
