from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.model import Backend, Mode, Server, Timeouts, Tls
from hcc.haproxy.slots import SPARE_ADDRESS, SPARE_PORT, capacity, is_spare, slotted

TLS = Tls("/leaf.pem", "/roots.pem")


def backend(*addresses: str, mode: Mode = Mode.HTTP, off: str = "") -> Backend:
    servers = (Server(f"{address}:80", address, 80, enabled=address != off) for address in sorted(addresses))
    return Backend("web", "web", mode, TLS, Timeouts(1, 1), tuple(servers))


def placed(wanted: Backend, running: tuple[Server, ...] = ()) -> tuple[Server, ...]:
    (found,) = slotted((wanted,), (("web", running),), "")
    return found.servers


def run(*slots: Server) -> tuple[Server, ...]:
    """What HAProxy runs after a start with these."""
    return tuple(Server(slot.name, slot.address, slot.port, slot.weight, slot.enabled) for slot in slots)


def homes(slots: tuple[Server, ...]) -> dict[str, str]:
    return {slot.address: slot.name for slot in slots if not is_spare(slot)}


def left(slots: tuple[Server, ...], address: str) -> tuple[Server, ...]:
    """The same while connections to an endpoint that is gone go on."""
    return tuple(replace(slot, enabled=False) if slot.address == address else slot for slot in slots)


def test_slots_are_numbered_and_those_without_an_endpoint_are_spare_and_in_maintenance() -> None:
    slots = placed(backend("10.0.0.1"))
    assert [slot.name for slot in slots] == ["s1", "s2", "s3", "s4"]
    assert slots[0].enabled
    assert all((s.address, s.port, s.enabled) == (SPARE_ADDRESS, SPARE_PORT, False) for s in slots[1:])


def test_a_backend_without_a_certificate_has_no_slots() -> None:
    assert placed(replace(backend(), tls=None)) == ()


@pytest.mark.parametrize(("endpoints", "slots"), [(0, 4), (3, 4), (4, 8), (6, 8), (7, 8), (8, 16), (1000, 2048)])
def test_room_is_left_for_a_quarter_more(endpoints: int, slots: int) -> None:
    assert capacity(endpoints) == slots


def test_a_new_endpoint_takes_a_spare_slot_and_all_others_keep_theirs() -> None:
    before = placed(backend("10.0.0.2", "10.0.0.3"))
    after = placed(backend("10.0.0.1", "10.0.0.2", "10.0.0.3"), run(*before))
    assert homes(after) == homes(before) | {"10.0.0.1": "s3"}


def test_a_slot_is_found_again_by_its_address_whatever_order_haproxy_tells_them_in() -> None:
    slots = placed(backend(*(f"10.0.0.{n}" for n in range(1, 13))))
    told = tuple(sorted(run(*slots)))
    assert [slot.name for slot in told[:2]] == ["s1", "s10"]
    assert placed(backend(*(f"10.0.0.{n}" for n in range(1, 13))), told) == slots


def test_an_http_slot_with_connections_to_who_left_is_not_taken_a_tcp_slot_is() -> None:
    names = [f"10.0.0.{n}" for n in range(1, 5)]
    for mode, expected in ((Mode.HTTP, 8), (Mode.TCP, 4)):
        full = run(*placed(backend(*names[:3], mode=mode)))
        full = (*full[:3], replace(full[3], address=names[3], port=80, enabled=True))
        slots = placed(backend(*names[1:], "10.0.0.9", mode=mode), left(full, names[0]))
        assert len(slots) == expected
        assert homes(slots)["10.0.0.9"] == ("s5" if mode is Mode.HTTP else "s1")


def test_an_endpoint_that_is_back_before_its_connections_ended_has_its_slot_back() -> None:
    slots = placed(backend("10.0.0.1", "10.0.0.2"))
    assert placed(backend("10.0.0.1", "10.0.0.2"), left(run(*slots), "10.0.0.1")) == slots


def test_servers_that_are_no_slots_are_replaced() -> None:
    foreign = (Server("10.0.0.1:80", "10.0.0.1", 80, 1, enabled=True),)
    assert placed(backend("10.0.0.1"), foreign) == placed(backend("10.0.0.1"))


def test_of_two_slots_at_one_address_the_one_that_serves_is_kept() -> None:
    one, two, *rest = run(*placed(backend("10.0.0.1")))
    doubled = (replace(one, enabled=False), replace(two, address="10.0.0.1", port=80, enabled=True), *rest)
    assert homes(placed(backend("10.0.0.1"), doubled)) == {"10.0.0.1": "s2"}


def test_slots_never_become_fewer_while_haproxy_runs() -> None:
    many = run(*placed(backend(*(f"10.0.0.{n}" for n in range(1, 21)))))
    assert len(placed(backend("10.0.0.1"), many)) == len(many)


def test_growing_one_by_one_costs_at_most_the_logarithm_in_reloads() -> None:
    endpoints, reloads = 200, 0
    running = run(*placed(backend()))
    for count in range(1, endpoints + 1):
        slots = placed(backend(*(f"10.0.{n // 250}.{n % 250}" for n in range(count))), running)
        reloads += len(slots) != len(running)
        running = run(*slots)
    assert reloads <= endpoints.bit_length()


addresses = st.lists(st.integers(1, 40).map(lambda n: f"10.0.0.{n}"), unique=True, max_size=40)


@given(st.lists(addresses, min_size=1, max_size=6), st.sampled_from(Mode), st.data())
def test_every_endpoint_has_one_slot_and_keeps_it(steps: list[list[str]], mode: Mode, data: st.DataObject) -> None:
    running: tuple[Server, ...] = ()
    before: dict[str, str] = {}
    for wanted in steps:
        slots = placed(backend(*wanted, mode=mode), running)
        found = homes(slots)
        assert set(found) == set(wanted)
        assert len(set(found.values())) == len(wanted)
        assert all(found[address] == slot for address, slot in before.items() if address in found)
        gone = [slot for address, slot in before.items() if address not in found]
        busy = data.draw(st.sets(st.sampled_from(gone))) if gone else set()
        leaving = {slot.name: replace(slot, enabled=False) for slot in running if slot.name in busy}
        running = tuple(leaving.get(slot.name, slot) if is_spare(slot) else slot for slot in run(*slots))
        assert placed(backend(*wanted, mode=mode), running) == slots
        before = found
