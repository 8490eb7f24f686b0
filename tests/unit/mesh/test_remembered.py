from __future__ import annotations

import pytest

from hcc.mesh import remembered
from hcc.mesh.remembered import forget_gone


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_caches", [])
    monkeypatch.setattr(remembered, "SPARE", 10)


def test_the_same_question_gives_the_same_object() -> None:
    made = remembered.remembered(lambda number: [number])
    assert made(1) is made(1)
    assert made(1) is not made(2)


def test_what_is_needed_stays_and_what_is_left_of_endpoints_that_are_gone_goes() -> None:
    made = remembered.remembered(lambda number: [number])
    there = [made(number) for number in range(50)]
    forget_gone(5)
    assert made(0) is there[0]
    forget_gone(4)
    assert made(0) is not there[0]
    assert made(0) == there[0]


def test_one_that_holds_little_forgets_nothing() -> None:
    little, much = (remembered.remembered(lambda number: [number]) for _ in range(2))
    kept = little(1)
    for number in range(100):
        much(number)
    forget_gone(0)
    assert little(1) is kept
