"""Conditions on requests, as Consul writes them: in permissions of intentions and in routes alike.

Of what is not understood a fault is made, a phrase that says what it is; what that means is left to who asks.

Source: hashicorp/consul agent/structs/config_entry_intentions.go and config_entry_discoverychain.go (1.20.1).
"""

from __future__ import annotations

import re

from hcc.consul.fields import Fields
from hcc.mesh.patterns import compiled
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule

PATHS = {"PathExact": PathMatch.EXACT, "PathPrefix": PathMatch.PREFIX, "PathRegex": PathMatch.REGEX}
# In the order in which Consul looks at them.
_VALUES = {
    "Exact": HeaderMatch.EXACT,
    "Regex": HeaderMatch.REGEX,
    "Prefix": HeaderMatch.PREFIX,
    "Suffix": HeaderMatch.SUFFIX,
    "Contains": HeaderMatch.CONTAINS,
}
HEADER = frozenset(("Name", "Present", *_VALUES, "Invert", "IgnoreCase"))
# What a header's name may be in a request, without the four characters that mean something in HAProxy's configuration.
HEADER_NAME = re.compile(r"[a-z0-9!&*+.^_`|~-]{1,128}")
_WRITABLE = re.compile(r"[^\x00\ud800-\udfff]*")
_AUTHORITY = ":authority"
HOST = "host"


def is_writable(text: str) -> bool:
    """Whether it can be written into a configuration at all."""
    return _WRITABLE.fullmatch(text) is not None


def path_rule(http: Fields) -> PathRule | None:
    """The condition on the path, None without one."""
    rules = [PathRule(kind, value) for name, kind in PATHS.items() if (value := http.text(name))]
    return rules[0] if rules else None


def path_faults(http: Fields, path: PathRule | None) -> tuple[str, ...]:
    """What is not understood of it."""
    if sum(bool(http.text(name)) for name in PATHS) > 1:
        return ("more than one condition on the path",)
    return pattern_faults(path.value) if path is not None and path.kind is PathMatch.REGEX else ()


def header_rule(item: Fields) -> HeaderRule:
    """A condition on a header; `header_faults` says whether it is one."""
    name = item.text("Name").lower()
    kind, value = HeaderMatch.PRESENT, ""
    for field, found in reversed(_VALUES.items()):
        if item.text(field):
            kind, value = found, item.text(field)
    if kind is HeaderMatch.PRESENT and not item.flag("Present"):
        # Without any condition it would be fulfilled, or not, by chance: the name makes it a fault.
        name = ""
    return HeaderRule(
        name=HOST if name == _AUTHORITY else name,
        kind=kind,
        value=value,
        invert=item.flag("Invert"),
        ignore_case=item.flag("IgnoreCase") and kind not in (HeaderMatch.REGEX, HeaderMatch.PRESENT),
    )


def header_faults(header: HeaderRule) -> tuple[str, ...]:
    """What is not understood of it."""
    if not HEADER_NAME.fullmatch(header.name):
        return (f"no condition on a header that can be looked at: {header.name!r}",)
    return pattern_faults(header.value) if header.kind is HeaderMatch.REGEX else ()


def pattern_faults(pattern: str) -> tuple[str, ...]:
    """Why a regular expression is not taken."""
    try:
        compiled(pattern)
    except ValueError as exc:
        return (str(exc),)
    return ()


def unknown_fields(item: Fields, known: frozenset[str]) -> tuple[str, ...]:
    """The fields that are not known and say something."""
    return tuple(name for name in sorted(item.values) if _counts(item, name, known))


def field_faults(item: Fields, known: frozenset[str]) -> tuple[str, ...]:
    """The same in phrases."""
    return tuple(f"the field {name} is not known" for name in unknown_fields(item, known))


def _counts(item: Fields, name: str, known: frozenset[str]) -> bool:
    # Consul leaves fields at their zero value out or in as it likes.
    return name not in known and item.values[name] not in (None, "", False, 0, [], {})
