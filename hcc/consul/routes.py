"""Routes of a service-router and legs of a service-splitter, as Consul writes them into a discovery chain.

A part of a match that we do not know makes the match a fault: nobody can tell then which requests it speaks of. What
else is asked for and not served is named, and the rest is.

Source: hashicorp/consul agent/structs/config_entry_discoverychain.go (1.20.1); reference/consul.md section 4.
"""

from __future__ import annotations

import re

from hcc.consul.conditions import (
    HEADER,
    HEADER_NAME,
    HOST,
    PATHS,
    field_faults,
    header_faults,
    header_rule,
    is_writable,
    path_faults,
    path_rule,
    pattern_faults,
    unknown_fields,
)
from hcc.consul.fields import Fields
from hcc.consul.options import MAX_TIMEOUT_MS
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import Changes, HeaderChanges, Match, QueryMatch, QueryRule, Rewrite

_DEFINITION = frozenset(("Match", "Destination"))
_MATCH = frozenset(("HTTP",))
_HTTP = frozenset((*PATHS, "CaseInsensitive", "Header", "QueryParam", "Methods"))
# In the order in which Consul looks at them.
_VALUES = {"Exact": QueryMatch.EXACT, "Regex": QueryMatch.REGEX}
_QUERY = frozenset(("Name", "Present", *_VALUES))
# Where it leads to, which the chain says too.
_WHERE = ("Service", "ServiceSubset", "Namespace", "Partition")
_MODIFIERS = frozenset(("Add", "Set", "Remove"))
_DESTINATION = frozenset((*_WHERE, "PrefixRewrite", "RequestTimeout", "RequestHeaders", "ResponseHeaders"))
_SPLIT = frozenset((*_WHERE, "Weight", "RequestHeaders", "ResponseHeaders"))
_METHOD = re.compile(r"[A-Z-]{1,40}")
# A condition on the query is one expression with the name six times, and PCRE makes at most 65,535 bytes of it.
_MOST_QUERY_BYTES = 2_048
# Neither a query nor a fragment, and nothing that has to be escaped.
_REWRITE = re.compile(r"/[!-\"$->@-~]*")
# Envoy would put something in the place of what stands between signs of percent.
_VALUE = re.compile(r"[^\x00-\x1f\x7f%\ud800-\udfff]+")
# Of how a message is sent, not of what it says; Envoy lets nobody change the host here.
_KEPT = frozenset((HOST, "connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))


def match(definition: Fields) -> Match:
    """Of which requests a route speaks.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    outer = definition.child("Match")
    http = outer.child("HTTP")
    path = path_rule(http)
    headers = tuple(header_rule(header) for header in http.children("Header"))
    query = tuple(_query_rule(item) for item in http.children("QueryParam"))
    methods = tuple(method.upper() for method in http.texts("Methods"))
    faults = (
        *field_faults(definition, _DEFINITION),
        *field_faults(outer, _MATCH),
        *field_faults(http, _HTTP),
        *(fault for header in http.children("Header") for fault in field_faults(header, HEADER)),
        *(fault for item in http.children("QueryParam") for fault in field_faults(item, _QUERY)),
        *path_faults(http, path),
        *_text_faults("a path", path.value if path else ""),
        *(fault for header in headers for fault in header_faults(header)),
        *(fault for header in headers for fault in _text_faults("a header", header.value)),
        *(fault for one in query for fault in _query_faults(one)),
        *(f"the method {method!r}" for method in methods if not _METHOD.fullmatch(method)),
    )
    compares = path is not None and path.kind is not PathMatch.REGEX
    return Match(
        path=path,
        ignore_case=http.flag("CaseInsensitive") and compares,
        headers=tuple(dict.fromkeys(headers)),
        query=tuple(dict.fromkeys(query)),
        methods=tuple(dict.fromkeys(methods)),
        fault="; ".join(dict.fromkeys(faults)),
    )


def route_changes(definition: Fields, path: PathRule | None) -> Changes:
    """What a route changes about the requests that take it; `path` is its condition on it.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    item = definition.child("Destination")
    rewrite = item.text("PrefixRewrite")
    unserved = [f"{name} of a route" for name in unknown_fields(item, _DESTINATION)]
    if rewrite and not _REWRITE.fullmatch(rewrite):
        unserved.append(f"the PrefixRewrite {rewrite!r}")
        rewrite = ""
    replaced = path or PathRule(PathMatch.PREFIX, "/")
    prefix = replaced.value if replaced.kind is PathMatch.PREFIX else ""
    return Changes(
        rewrite=Rewrite(rewrite, prefix) if rewrite else None,
        timeout_ms=max(-1, min(item.duration_ms("RequestTimeout"), MAX_TIMEOUT_MS)),
        request=_header_changes(item, "RequestHeaders", unserved),
        response=_header_changes(item, "ResponseHeaders", unserved),
        unserved=tuple(unserved),
    )


def leg_changes(definition: Fields) -> Changes:
    """What a splitter's leg changes.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    unserved = [f"{name} of a split" for name in unknown_fields(definition, _SPLIT)]
    return Changes(
        request=_header_changes(definition, "RequestHeaders", unserved),
        response=_header_changes(definition, "ResponseHeaders", unserved),
        unserved=tuple(unserved),
    )


def _query_rule(item: Fields) -> QueryRule:
    for field, kind in _VALUES.items():
        if item.text(field):
            return QueryRule(item.text("Name"), kind, item.text(field))
    # Without any condition: the name makes it a fault.
    return QueryRule(item.text("Name") if item.flag("Present") else "", QueryMatch.PRESENT)


def _query_faults(one: QueryRule) -> tuple[str, ...]:
    if not one.name:
        return ("no condition on a parameter of the query",)
    faults = _text_faults("a query", one.name, one.value)
    if faults:
        return faults
    pattern = one.value if one.kind is QueryMatch.REGEX else ""
    literal = one.name if pattern else f"{one.name}{one.value}"
    if len(literal.encode()) > _MOST_QUERY_BYTES:
        faults = (f"a parameter of the query with more than {_MOST_QUERY_BYTES} bytes",)
    return (*pattern_faults(pattern), *faults)


def _text_faults(what: str, *texts: str) -> tuple[str, ...]:
    if all(is_writable(text) for text in texts):
        return ()
    return (f"a character that {what} cannot have",)


def _header_changes(item: Fields, name: str, unserved: list[str]) -> HeaderChanges:
    found = item.child(name)
    unserved.extend(f"{one} of {name}" for one in unknown_fields(found, _MODIFIERS))
    removed = [header.lower() for header in found.texts("Remove")]
    return HeaderChanges(
        remove=tuple(header for header in removed if _can_be_changed(header, name, unserved)),
        set=_pairs(found.child("Set"), name, unserved),
        add=_pairs(found.child("Add"), name, unserved),
    )


def _pairs(item: Fields, name: str, unserved: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = ((header.lower(), item.text(header)) for header in sorted(item.values))
    return tuple((header, value) for header, value in pairs if _can_be_changed(header, name, unserved, value))


def _can_be_changed(header: str, name: str, unserved: list[str], value: str | None = None) -> bool:
    """Whether it can; if not, it is said."""
    if HEADER_NAME.fullmatch(header) and header not in _KEPT and (value is None or _VALUE.fullmatch(value)):
        return True
    unserved.append(f"what {name} says of the header {header!r}")
    return False
