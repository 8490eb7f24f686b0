"""A policy as bytes, for the way from the main process to a worker: JSON, strict both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

from hcc.errors import HccError
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import EscapedSlashes, Normalization, Underscores
from hcc.mesh.token_providers import TokenProvider, TokenProviders

_T = TypeVar("_T")
_Decoder = Callable[[object], Any]


class PolicyCodecError(HccError):
    """The bytes are no encoded policy."""


def encode_policy(policy: Policy) -> bytes:
    """The bytes of a policy; how tokens are checked is not among them."""
    if policy.providers is not None:
        policy = replace(policy, providers=policy.providers.without_checks())
    return json.dumps(_plain(policy), separators=(",", ":")).encode("ascii")


def decode_policy(data: bytes) -> Policy:
    """The policy in these bytes.

    Raises:
        PolicyCodecError: not JSON, or a field is missing, unknown or of another type.
    """
    try:
        loaded: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise PolicyCodecError(f"expected a policy in JSON, found {data[:40]!r}") from exc
    return _POLICY(loaded)


def _plain(value: object) -> object:
    """What JSON can say of a value: members of an Enum by their values, others of ours by their fields."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    names: tuple[str, ...] | None = getattr(type(value), "__slots__", None)
    return value if names is None else {name: _plain(getattr(value, name)) for name in names}


def _exactly(kind: type[_T]) -> Callable[[object], _T]:
    def decode(value: object) -> _T:
        # True is an int for Python, not for us.
        if type(value) is not kind:
            raise PolicyCodecError(f"expected {kind.__name__} in a policy, found {str(value)[:40]!r}")
        return value

    return decode


def _member(kind: type[Enum]) -> _Decoder:
    def decode(value: object) -> Enum:
        try:
            return kind(value)
        except ValueError as exc:
            raise PolicyCodecError(f"expected {kind.__name__} in a policy, found {str(value)[:40]!r}") from exc

    return decode


def _optional(decoder: _Decoder) -> _Decoder:
    return lambda value: None if value is None else decoder(value)


def _several(decoder: _Decoder) -> _Decoder:
    whole = _exactly(list)
    return lambda value: tuple(decoder(item) for item in whole(value))


def _pair(first: _Decoder, second: _Decoder) -> _Decoder:
    def decode(value: object) -> tuple[Any, Any]:
        pair = _exactly(list)(value)
        if len(pair) != 2:  # noqa: PLR2004 (a pair)
            raise PolicyCodecError(f"expected two items in a policy, found {str(value)[:40]!r}")
        return first(pair[0]), second(pair[1])

    return decode


def _object(made: Callable[..., _T], /, **decoders: _Decoder) -> Callable[[object], _T]:
    def decode(value: object) -> _T:
        if not isinstance(value, dict) or value.keys() != decoders.keys():
            raise PolicyCodecError(f"expected {', '.join(decoders)} in a policy, found {str(value)[:100]}")
        return made(**{name: decoder(value[name]) for name, decoder in decoders.items()})

    return decode


_TEXT, _FLAG, _NUMBER = _exactly(str), _exactly(bool), _exactly(int)
_JWT = _optional(
    _several(_object(JwtProvider, name=_TEXT, claims=_several(_pair(_several(_TEXT), _TEXT)), fault=_TEXT))
)
_PERMISSION = _object(
    Permission,
    allow=_FLAG,
    path=_optional(_object(PathRule, kind=_member(PathMatch), value=_TEXT)),
    headers=_several(
        _object(HeaderRule, name=_TEXT, kind=_member(HeaderMatch), value=_TEXT, invert=_FLAG, ignore_case=_FLAG)
    ),
    methods=_several(_TEXT),
    jwt=_JWT,
    fault=_TEXT,
)
_INTENTION = _object(
    Intention,
    source=_TEXT,
    action=_member(Action),
    precedence=_NUMBER,
    permissions=_several(_PERMISSION),
    source_namespace=_TEXT,
    source_partition=_TEXT,
    peer=_TEXT,
    jwt=_JWT,
)
_NORMALIZATION = _object(
    Normalization,
    path=_FLAG,
    merge_slashes=_FLAG,
    escaped_slashes=_member(EscapedSlashes),
    underscores=_member(Underscores),
)
_PROVIDER = _object(TokenProvider, name=_TEXT, issuer=_TEXT, keys=_TEXT, fault=_TEXT, checks=_exactly(type(None)))
_POLICY = _object(
    Policy,
    destination=_TEXT,
    trust_domain=_TEXT,
    intentions=_several(_INTENTION),
    default_allow=_optional(_FLAG),
    version=_NUMBER,
    http=_FLAG,
    normalization=_optional(_NORMALIZATION),
    providers=_optional(_object(TokenProviders, entries=_several(_PROVIDER))),
    has_namespaces=_FLAG,
)
