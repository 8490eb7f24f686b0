"""The `jwt-provider` entries: issuers, and where the keys are. Keys themselves stay here.

Source: hashicorp/consul agent/structs/config_entry_jwt_provider.go (1.20.1).
"""

from __future__ import annotations

import binascii
import json

from hcc.consul.fields import Fields, fields_list
from hcc.mesh.token_providers import TokenProvider, TokenProviders

_MAX_FILE_CHARACTERS = 100


def token_providers(data: object) -> TokenProviders:
    """All providers, from the list of entries.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    found = (_provider(entry) for entry in fields_list(data, ""))
    return TokenProviders(tuple(sorted(found, key=lambda one: one.name)))


def _provider(entry: Fields) -> TokenProvider:
    return TokenProvider(entry.required("Name"), entry.text("Issuer"), _keys(entry.child("JSONWebKeySet")))


def _keys(keys: Fields) -> str:
    local = keys.child("Local")
    if keys.values.get("Remote"):
        return "keys on a server"
    if local.text("Filename"):
        return f"keys in the file {local.text('Filename')[:_MAX_FILE_CHARACTERS]!r}"
    kinds = _kinds(local.text("JWKS"))
    return f"keys in its entry: {', '.join(kinds)}" if kinds else "no keys that can be read"


def _kinds(text: str) -> tuple[str, ...]:
    """The kinds of the keys in a JWKS in base64 (RFC 7517 section 5), sorted; none where that is none."""
    try:
        loaded = json.loads(binascii.a2b_base64(text, strict_mode=True))
        return tuple(sorted({f"{key['kty']}"[:10] for key in loaded["keys"]}))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
