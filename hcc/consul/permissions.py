"""Permissions and JWT requirements of intentions, as Consul writes them.

A part that we do not know (of a Consul newer than this code) makes a permission one that denies, never one
that says less than its author meant.

Source: hashicorp/consul agent/structs/config_entry_intentions.go (1.20.1); reference/consul.md section 6.
"""

from __future__ import annotations

from dataclasses import replace

from hcc.consul.conditions import HEADER, PATHS, field_faults, header_faults, header_rule, path_faults, path_rule
from hcc.consul.fields import Fields
from hcc.mesh.caller import CLIENT_CERT_HEADER
from hcc.mesh.permissions import JwtProvider, Permission, distrusting

_PERMISSION = frozenset(("Action", "HTTP", "JWT"))
_HTTP = frozenset((*PATHS, "Header", "Methods"))
_JWT = frozenset(("Providers",))
_JWT_PROVIDER = frozenset(("Name", "VerifyClaims"))
_CLAIM = frozenset(("Path", "Value"))


def permission(item: Fields) -> Permission:
    """One permission.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    http = item.child("HTTP")
    path = path_rule(http)
    headers = tuple(header_rule(header) for header in http.children("Header"))
    faults = (
        *field_faults(item, _PERMISSION),
        *field_faults(http, _HTTP),
        *(fault for header in http.children("Header") for fault in field_faults(header, HEADER)),
        *path_faults(http, path),
        *(fault for header in headers for fault in header_faults(header)),
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
    faults = "; ".join(field_faults(demand, _JWT))
    providers = tuple(_provider(provider) for provider in demand.children("Providers"))
    return tuple(replace(one, fault=faults) for one in providers) if faults else providers


def _provider(item: Fields) -> JwtProvider:
    claims = item.children("VerifyClaims")
    faults = (*field_faults(item, _JWT_PROVIDER), *(fault for claim in claims for fault in field_faults(claim, _CLAIM)))
    return JwtProvider(
        name=item.text("Name"),
        claims=tuple((claim.texts("Path"), claim.text("Value")) for claim in claims),
        fault="; ".join(faults),
    )
