from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hcc.consul.assembly import State
from hcc.mesh.json_form import HIDDEN, JsonFormError, from_json, to_json
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Health, Snapshot
from tests import builders

st.register_type_strategy(float, st.floats(allow_nan=False).filter(isfinite))


@settings(max_examples=25, suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large))
@given(st.from_type(Snapshot))
def test_every_snapshot_comes_back_as_it_was(value: Snapshot) -> None:
    assert from_json(Snapshot, json.loads(json.dumps(to_json(value, secrets=True)))) == value


@settings(max_examples=25, suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large))
@given(st.from_type(State))
def test_every_state_of_the_watches_comes_back_as_it_was(value: State) -> None:
    assert from_json(State, json.loads(json.dumps(to_json(value, secrets=True)))) == value


@settings(max_examples=25, suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large))
@given(st.recursive(st.none() | st.text() | st.integers(), st.lists), st.data())
def test_a_damaged_form_is_refused_or_read_and_never_another_error(junk: object, data: st.DataObject) -> None:
    form = to_json(builders.snapshot(builders.upstream_state()), secrets=True)
    place, owner = "", form
    while isinstance(owner, dict) and owner:
        place = data.draw(st.sampled_from(sorted(owner)))
        if not isinstance(owner[place], dict) or data.draw(st.booleans()):
            break
        owner = owner[place]
    if isinstance(owner, dict) and owner:
        owner[place] = junk
    with suppress(JsonFormError):
        assert isinstance(from_json(Snapshot, form), Snapshot)


def test_secrets_are_hidden_unless_asked_for() -> None:
    snapshot = builders.snapshot()
    assert snapshot.leaf
    assert to_json(snapshot)["leaf"]["key_pem"] == HIDDEN
    assert snapshot.leaf.key_pem.reveal() not in json.dumps(to_json(snapshot))
    assert to_json(snapshot, secrets=True)["leaf"]["key_pem"] == snapshot.leaf.key_pem.reveal()


@dataclass(frozen=True, slots=True)
class Cat:
    name: str


@dataclass(frozen=True, slots=True)
class Dog:
    name: str
    tricks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class House:
    pet: Cat | Dog | tuple[Cat, ...] | None
    state: Health = Health.PASSING
    pair: tuple[int, float] = (1, 2.0)
    keys: frozenset[str] = frozenset()
    code: Secret | None = None


@pytest.mark.parametrize("pet", [None, Cat("a"), Dog("b", ("sit",)), (Cat("c"), Cat("d")), ()])
def test_of_several_classes_the_right_one_comes_back(pet: Cat | Dog | tuple[Cat, ...] | None) -> None:
    house = House(pet, keys=frozenset(("x", "y")), code=Secret("1234"))
    assert from_json(House, json.loads(json.dumps(to_json(house, secrets=True)))) == house


def test_what_is_not_there_gets_its_default() -> None:
    assert from_json(House, {"pet": {"kind": "Cat", "name": "a"}}) == House(Cat("a"))


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ([], "House"),
        ({}, "missing are ['pet']"),
        ({"pet": None, "garden": 1}, "unknown are ['garden']"),
        ({"pet": {"name": "a"}}, "kind of value.pet"),
        ({"pet": {"kind": "Dog", "name": 1}}, "value.pet.name"),
        ({"pet": None, "state": "asleep"}, "Health"),
        ({"pet": None, "pair": [1]}, "2 items"),
        ({"pet": None, "pair": [True, 1.0]}, "value.pair[0]"),
    ],
)
def test_another_shape_is_refused_with_its_place(form: object, word: str) -> None:
    with pytest.raises(JsonFormError, match=re.escape(word)):
        from_json(House, form)
