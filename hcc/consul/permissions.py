"""Permissions and JWT requirements of intentions, as Consul writes them.

A part that we do not know (of a Consul newer than this code) makes a permission one that denies, never one
that says less than its author meant.

Source: hashicorp/consul agent/structs/config_entry_intentions.go (1.20.1); reference/consul.md section 6.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hcc.consul.fields import Fields
from hcc.mesh.caller import CLIENT_CERT_HEADER
from hcc.mesh.patterns import compiled
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission, distrusting

_PERMISSION = frozenset(("Action", "HTTP", "JWT"))
_PATHS = {"PathExact": PathMatch.EXACT, "PathPrefix": PathMatch.PREFIX, "PathRegex": PathMatch.REGEX}
_HTTP = frozenset((*_PATHS, "Header", "Methods"))
# In the order in which Consul looks at them.
_VALUES = {
    "Exact": HeaderMatch.EXACT,
    "Regex": HeaderMatch.REGEX,
    "Prefix": HeaderMatch.PREFIX,
    "Suffix": HeaderMatch.SUFFIX,
    "Contains": HeaderMatch.CONTAINS,
}
_HEADER = frozenset(("Name", "Present", *_VALUES, "Invert", "IgnoreCase"))
_JWT = frozenset(("Providers",))
_JWT_PROVIDER = frozenset(("Name", "VerifyClaims"))
_CLAIM = frozenset(("Path", "Value"))
# What a header's name may be in a request, without the four characters that mean something in HAProxy's configuration.
_HEADER_NAME = re.compile(r"[a-z0-9!&*+.^_`|~-]{1,128}")
_AUTHORITY = ":authority"
_HOST = "host"


def permission(item: Fields) -> Permission:
    """One permission.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    http = item.child("HTTP")
    path = _path(http)
    headers = tuple(_header(header) for header in http.children("Header"))
    faults = (
        *_unknown(item, _PERMISSION),
        *_unknown(http, _HTTP),
        *(fault for header in http.children("Header") for fault in _unknown(header, _HEADER)),
        *_path_faults(http, path),
        *(fault for header in headers for fault in _header_faults(header)),
    )
    found = Permission(
        # An action that is not known denies.
        allow=item.text("Action") == "allow",
        path=path,
        headers=headers,
        methods=tuple(method.upper() for method in http.texts("Methods")),
        jwt=jwt(item),
        fault="; ".join(faults),
    )
    return distrusting(found, CLIENT_CERT_HEADER)


def jwt(item: Fields) -> tuple[JwtProvider, ...] | None:
    """The providers that an intention or a permission demands a token of; None if it demands none.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    if item.values.get("JWT") is None:
        return None
    demand = item.child("JWT")
    faults = "; ".join(_unknown(demand, _JWT))
    providers = tuple(_provider(provider) for provider in demand.children("Providers"))
    return tuple(replace(one, fault=faults) for one in providers) if faults else providers


def _provider(item: Fields) -> JwtProvider:
    claims = item.children("VerifyClaims")
    faults = (*_unknown(item, _JWT_PROVIDER), *(fault for claim in claims for fault in _unknown(claim, _CLAIM)))
    return JwtProvider(
        name=item.text("Name"),
        claims=tuple((claim.texts("Path"), claim.text("Value")) for claim in claims),
        fault="; ".join(faults),
    )


def _path(http: Fields) -> PathRule | None:
    rules = [PathRule(kind, value) for name, kind in _PATHS.items() if (value := http.text(name))]
    return rules[0] if rules else None


def _path_faults(http: Fields, path: PathRule | None) -> tuple[str, ...]:
    if sum(bool(http.text(name)) for name in _PATHS) > 1:
        return ("more than one condition on the path",)
    return _pattern_faults(path.value) if path is not None and path.kind is PathMatch.REGEX else ()


def _header(item: Fields) -> HeaderRule:
    name = item.text("Name").lower()
    kind, value = HeaderMatch.PRESENT, ""
    for field, found in reversed(_VALUES.items()):
        if item.text(field):
            kind, value = found, item.text(field)
    if kind is HeaderMatch.PRESENT and not item.flag("Present"):
        # Without any condition it would be fulfilled, or not, by chance: the name makes it a fault.
        name = ""
    return HeaderRule(
        name=_HOST if name == _AUTHORITY else name,
        kind=kind,
        value=value,
        invert=item.flag("Invert"),
        ignore_case=item.flag("IgnoreCase") and kind not in (HeaderMatch.REGEX, HeaderMatch.PRESENT),
    )


def _header_faults(header: HeaderRule) -> tuple[str, ...]:
    if not _HEADER_NAME.fullmatch(header.name):
        return (f"no condition on a header that can be looked at: {header.name!r}",)
    return _pattern_faults(header.value) if header.kind is HeaderMatch.REGEX else ()


def _pattern_faults(pattern: str) -> tuple[str, ...]:
    try:
        compiled(pattern)
    except ValueError as exc:
        return (str(exc),)
    return ()


def _unknown(item: Fields, known: frozenset[str]) -> tuple[str, ...]:
    return tuple(f"the field {name} is not known" for name in sorted(item.values) if _counts(item, name, known))


def _counts(item: Fields, name: str, known: frozenset[str]) -> bool:
    # Consul leaves fields at their zero value out or in as it likes.
    return name not in known and item.values[name] not in (None, "", False, 0, [], {})
