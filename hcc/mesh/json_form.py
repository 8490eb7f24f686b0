"""Frozen dataclasses as JSON and back, by their type annotations: for the state directory and for people.

One codec for every value of ours, so that a new field needs no second place. Strict both ways: what does not fit the
annotations is an error, never a guess. A field that is missing gets its default, so that an older file can be read.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hcc.errors import HccError
from hcc.mesh.secret import Secret

HIDDEN = "(hidden)"
KIND = "kind"
"""Names the class where an annotation allows several."""
_SCALARS = (str, bool, int, float)

T = TypeVar("T")


class JsonFormError(HccError):
    """What was read is not the JSON form of such a value; the text says where."""


def to_json(value: object, *, secrets: bool = False) -> Any:  # noqa: ANN401 (JSON)
    """The JSON form of a value; without `secrets`, `HIDDEN` stands in their place and the form is for people only."""
    return _shown(value, type(value), secrets)


def from_json(annotation: type[T], data: object) -> T:
    """The value of that type whose JSON form is `data`, as `json.loads` gives it.

    Raises:
        JsonFormError: it is no such form.
    """
    value: T = _read(annotation, data, "value")
    return value


def _shown(value: object, annotation: Any, secrets: bool) -> Any:  # noqa: ANN401 (JSON, and a type)
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, _SCALARS):
        return value
    if isinstance(value, Secret):
        return value.reveal() if secrets else HIDDEN
    if isinstance(value, tuple | frozenset):
        items = _item_annotations(_only(annotation, type(value)), len(value))
        shown = [_shown(item, inner, secrets) for item, inner in zip(value, items, strict=True)]
        # By what is shown, as not all that can be in a set has an order.
        return sorted(shown, key=repr) if isinstance(value, frozenset) else shown
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"no JSON form for {type(value).__name__}")
    kind = {KIND: type(value).__name__} if len(_classes(annotation)) > 1 else {}
    owner: type = type(value)
    members = _members(owner)
    return kind | {name: _shown(getattr(value, name), member.annotation, secrets) for name, member in members.items()}


def _read(annotation: Any, data: Any, where: str) -> Any:  # noqa: ANN401 (a type, JSON, and what comes of it)
    for alternative in _alternatives(annotation):
        read = _reader(alternative, data)
        if read is not None:
            return read(_chosen(annotation, alternative, data, where), data, where)
    raise JsonFormError(f"expected {_named(annotation)} in {where}, found {type(data).__name__}")


def _reader(alternative: Any, data: object) -> Callable[[Any, Any, str], Any] | None:  # noqa: ANN401 (a type)
    """What reads that kind of type from that kind of JSON, None when they do not fit."""
    origin = get_origin(alternative) or alternative
    if alternative is type(None):
        return _as_is if data is None else None
    if alternative in _SCALARS:
        return _as_is if type(data) is alternative or (alternative is float and type(data) is int) else None
    if origin in (tuple, frozenset):
        return _read_items if isinstance(data, list) else None
    if alternative is Secret:
        return _read_secret if isinstance(data, str) else None
    if issubclass(origin, Enum):
        return _read_enum if isinstance(data, _SCALARS) else None
    return _read_object if isinstance(data, dict) else None


def _chosen(annotation: Any, alternative: Any, data: object, where: str) -> Any:  # noqa: ANN401 (types)
    """The alternative, or the class that the form names where there are several."""
    classes = _classes(annotation)
    if len(classes) < 2 or not isinstance(data, dict):  # noqa: PLR2004 (one needs no name)
        return alternative
    kind = data.get(KIND)
    if not isinstance(kind, str) or kind not in classes:
        raise JsonFormError(f"expected one of {', '.join(classes)} as {KIND} of {where}, found {kind!r}")
    return classes[kind]


def _as_is(alternative: Any, data: Any, where: str) -> Any:  # noqa: ANN401, ARG001 (a reader's signature)
    return data


def _read_secret(alternative: Any, data: str, where: str) -> Secret:  # noqa: ANN401, ARG001 (a reader's signature)
    return Secret(data)


def _read_enum(alternative: type[Enum], data: object, where: str) -> Enum:
    try:
        return alternative(data)
    except ValueError as exc:
        raise JsonFormError(f"expected {alternative.__name__} in {where}, found {data!r}") from exc


def _read_items(alternative: Any, data: list[Any], where: str) -> object:  # noqa: ANN401 (a type)
    inner = _item_annotations(alternative, len(data))
    if len(inner) != len(data):
        raise JsonFormError(f"expected {len(inner)} items in {where}, found {len(data)}")
    items = (_read(one, item, f"{where}[{place}]") for place, (one, item) in enumerate(zip(inner, data, strict=True)))
    return frozenset(items) if get_origin(alternative) is frozenset else tuple(items)


def _read_object(alternative: type, data: dict[str, Any], where: str) -> object:
    members = _members(alternative)
    unknown = data.keys() - members.keys() - {KIND}
    missing = [name for name, member in members.items() if member.needed and name not in data]
    if unknown or missing:
        raise JsonFormError(f"{where}: unknown are {sorted(unknown)}, missing are {missing} of {alternative.__name__}")
    return alternative(
        **{
            name: _read(member.annotation, data[name], f"{where}.{name}")
            for name, member in members.items()
            if name in data
        }
    )


class _Member:
    """A field with its annotation resolved."""

    __slots__ = ("annotation", "needed")

    def __init__(self, annotation: Any, field: Field[Any]) -> None:  # noqa: ANN401 (a type)
        self.annotation = annotation
        self.needed = field.default is MISSING and field.default_factory is MISSING


@cache
def _members(owner: type) -> Mapping[str, _Member]:
    hints = get_type_hints(owner)
    return {field.name: _Member(hints[field.name], field) for field in fields(owner)}


@cache
def _alternatives(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 (a type)
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


@cache
def _classes(annotation: Any) -> Mapping[str, type]:  # noqa: ANN401 (a type)
    """The dataclasses among the alternatives, by name; secrets are texts."""
    found = (one for one in _alternatives(annotation) if is_dataclass(one) and isinstance(one, type))
    return {one.__name__: one for one in found if one is not Secret}


def _only(annotation: Any, kind: type) -> Any:  # noqa: ANN401 (a type)
    """The alternative that is a tuple, or a frozenset."""
    return next((one for one in _alternatives(annotation) if get_origin(one) is kind), annotation)


def _item_annotations(annotation: Any, count: int) -> tuple[Any, ...]:  # noqa: ANN401 (a type)
    # Not in a cache: there would be one entry, as long as the tuple, for every number of instances there ever was.
    arguments = get_args(annotation)
    if get_origin(annotation) is frozenset or (len(arguments) == 2 and arguments[1] is Ellipsis):  # noqa: PLR2004
        return (arguments[0],) * count
    return arguments


def _named(annotation: Any) -> str:  # noqa: ANN401 (a type)
    return " or ".join(getattr(one, "__name__", str(one)) for one in _alternatives(annotation))
