"""The status as JSON, and back."""

import json
from dataclasses import replace

import pytest

from hcc.actors.lifecycle import ActorState
from hcc.actors.status import ServerState, Status, StatusError, from_json, to_json
from tests.status_builders import status


def through_json(value: Status) -> Status:
    return from_json(json.loads(json.dumps(to_json(value))))


def test_a_status_survives_json() -> None:
    assert through_json(status()) == status()


def test_enumerations_travel_by_their_value() -> None:
    shown = to_json(status())
    assert isinstance(shown, dict)
    assert shown["upstreams"][0]["endpoints"][0]["state"] == ServerState.UP.value
    assert shown["actors"][0]["state"] == ActorState.RUNNING.value


def test_what_is_not_known_is_null() -> None:
    unknown = replace(status().haproxy, uptime_s=None, connections=None, problem="nobody listens")
    assert through_json(replace(status(), haproxy=unknown)).haproxy == unknown


def test_a_field_of_a_newer_version_is_left_out() -> None:
    shown = to_json(status())
    assert isinstance(shown, dict)
    assert from_json(shown | {"weather": "fine"}) == status()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"at": None}, r"status\.at to be of kind float, found NoneType"),
        ({"at": True}, r"status\.at to be of kind float, found bool"),
        ({"plans": {}}, r"status\.plans to be a list"),
        ({"sidecar": []}, r"status\.sidecar to be an object"),
        ({"haproxy": {}}, r"status\.haproxy\.running, found nothing"),
    ],
)
def test_something_else_is_refused_with_the_place(change: dict[str, object], complaint: str) -> None:
    shown = to_json(status())
    assert isinstance(shown, dict)
    with pytest.raises(StatusError, match=complaint):
        from_json(shown | change)


def test_an_unknown_state_is_refused() -> None:
    shown = json.loads(json.dumps(to_json(status())))
    shown["upstreams"][0]["endpoints"][0]["state"] = "asleep"
    with pytest.raises(StatusError, match=r"endpoints\[0\]\.state to be one of .*'asleep'"):
        from_json(shown)
