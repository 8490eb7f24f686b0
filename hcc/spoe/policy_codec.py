"""A policy as bytes, for the way from the main process to a worker: JSON, strict both ways."""

from __future__ import annotations

import json
from typing import Any

from hcc.errors import HccError
from hcc.mesh.intentions import Action, Intention, Policy


class PolicyCodecError(HccError):
    """The bytes are no encoded policy."""


_POLICY_FIELDS = {
    "destination": str,
    "trust_domain": str,
    "intentions": list,
    "default_allow": (bool, type(None)),
    "version": int,
}
_INTENTION_FIELDS = {
    "source": str,
    "action": str,
    "precedence": int,
    "permissions": list,
    "source_namespace": str,
    "source_partition": str,
    "peer": str,
    "needs_jwt": bool,
}


def encode_policy(policy: Policy) -> bytes:
    """The bytes of a policy."""
    fields = {name: getattr(policy, name) for name in _POLICY_FIELDS}
    fields["intentions"] = [_encoded(intention) for intention in policy.intentions]
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def decode_policy(data: bytes) -> Policy:
    """The policy in these bytes.

    Raises:
        PolicyCodecError: not JSON, or a field is missing, unknown or of another type.
    """
    try:
        loaded: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise PolicyCodecError(f"expected a policy in JSON, found {data[:40]!r}") from exc
    fields = _checked("policy", loaded, _POLICY_FIELDS)
    return Policy(**{**fields, "intentions": tuple(map(_intention, fields["intentions"]))})


def _encoded(intention: Intention) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(intention, name) for name in _INTENTION_FIELDS}
    return {**fields, "action": intention.action.value, "permissions": list(intention.permissions)}


def _intention(loaded: object) -> Intention:
    fields = _checked("intention", loaded, _INTENTION_FIELDS)
    if not all(isinstance(permission, str) for permission in fields["permissions"]):
        raise PolicyCodecError("expected strings for the permissions of an intention")
    try:
        action = Action(fields["action"])
    except ValueError as exc:
        raise PolicyCodecError(f"expected an action, found {fields['action']!r}") from exc
    return Intention(**{**fields, "action": action, "permissions": tuple(fields["permissions"])})


def _checked(what: str, fields: object, expected: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(fields, dict) or fields.keys() != expected.keys():
        raise PolicyCodecError(f"expected {what} with {', '.join(expected)}; found {str(fields)[:100]}")
    for name, kind in expected.items():
        value = fields[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise PolicyCodecError(f"expected another type for {name} of {what}, found {str(value)[:40]!r}")
    return fields
