from __future__ import annotations

import pytest

from hcc.spoe.hello import agreed
from hcc.spoe.status import SpopError, Status
from hcc.spoe.values import FALSE, NULL, TRUE, Kind, Value
from tests.spop_frames import hello_entries, text


def number(value: int) -> Value:
    return Value(Kind.UINT32, value)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"supported_versions": None}, Status.NO_VERSION),
        ({"max_frame_size": None}, Status.NO_FRAME_SIZE),
        ({"capabilities": None}, Status.NO_CAPABILITIES),
        ({"supported_versions": text(b"1.0")}, Status.BAD_VERSION),
        ({"supported_versions": text(b"3.0, 1.0")}, Status.BAD_VERSION),
        ({"supported_versions": text(b"20")}, Status.BAD_VERSION),
        ({"supported_versions": text(b"2.")}, Status.BAD_VERSION),
        ({"supported_versions": text(b"")}, Status.BAD_VERSION),
        ({"max_frame_size": number(255)}, Status.BAD_FRAME_SIZE),
        ({"max_frame_size": number(0)}, Status.BAD_FRAME_SIZE),
        ({"max_frame_size": Value(Kind.INT64, -1)}, Status.BAD_FRAME_SIZE),
        ({"supported_versions": number(2)}, Status.INVALID),
        ({"max_frame_size": text(b"16380")}, Status.INVALID),
        ({"max_frame_size": TRUE}, Status.INVALID),
        ({"capabilities": NULL}, Status.INVALID),
        ({"healthcheck": number(1)}, Status.INVALID),
    ],
)
def test_each_failure_to_agree_has_its_status_code(changed: dict[str, Value | None], status: Status) -> None:
    with pytest.raises(SpopError) as caught:
        agreed(hello_entries(**changed))
    assert caught.value.status is status


def test_a_key_that_comes_twice_is_invalid() -> None:
    with pytest.raises(SpopError) as caught:
        agreed((*hello_entries(), *hello_entries()))
    assert caught.value.status is Status.INVALID


def test_unknown_keys_are_skipped() -> None:
    assert agreed((*hello_entries(), (b"max-frame-size-2", NULL))) == agreed(hello_entries())


@pytest.mark.parametrize("versions", [b"2.0", b"2.0, 1.5", b" 1.0 , 2.3 ", b"3.1,2.0"])
def test_a_version_2_anywhere_in_the_list_is_taken(versions: bytes) -> None:
    assert agreed(hello_entries(supported_versions=text(versions))).max_frame_size == 16380


@pytest.mark.parametrize(("offered", "size"), [(256, 256), (65_532, 65_532), (65_533, 65_532), (2**32 - 1, 65_532)])
def test_the_smaller_frame_size_is_agreed(offered: int, size: int) -> None:
    assert agreed(hello_entries(max_frame_size=number(offered))).max_frame_size == size


@pytest.mark.parametrize(
    ("offered", "taken"),
    [(b"", b""), (b"pipelining", b"pipelining"), (b"async, pipelining", b"pipelining"), (b"fragmentation,async", b"")],
)
def test_only_pipelining_is_taken_and_only_if_offered(offered: bytes, taken: bytes) -> None:
    assert agreed(hello_entries(capabilities=text(offered))).capabilities == taken


def test_a_health_check_is_one_only_if_it_says_so() -> None:
    assert agreed(hello_entries(healthcheck=TRUE)).health_check
    assert not agreed(hello_entries(healthcheck=FALSE)).health_check
    assert not agreed(hello_entries()).health_check
