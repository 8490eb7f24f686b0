from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import fields, go_duration_ms, items


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("5s", 5000),
        ("1h2m3.5s", 3_723_500),
        ("100ms", 100),
        ("1us", 1),
        (".5s", 500),
        ("-2s", -2000),
        ("-1ns", -1),
        ("-0s", 0),
        (-1, -1),
        (-1_000_000, -1),
        (3_000_000_000, 3000),
        ("3000000000", 3000),
        (1, 1),
        (0, 0),
        ("0s", 0),
    ],
)
def test_a_duration_is_a_go_text_or_nanoseconds(value: object, milliseconds: int) -> None:
    assert go_duration_ms(value) == milliseconds


@pytest.mark.parametrize("value", ["x", "5 s", "5d", "s", "--1s", None, True, 1.5, [], "+-3", "+3"])
def test_anything_else_is_no_duration(value: object) -> None:
    assert go_duration_ms(value) is None


@pytest.mark.parametrize(
    "value", ["9" * 19, "9" * 5000, "9" * 400 + "s", "9" * 5000 + "h", "\uff11\uff12s", "\u0661\u0662"]
)
def test_a_number_too_large_or_of_other_digits_is_no_duration(value: str) -> None:
    assert go_duration_ms(value) is None


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    assert isinstance(go_duration_ms(text), int | None)


def test_absent_and_null_are_empty() -> None:
    empty = fields({"a": None}, "")
    assert (empty.text("a"), empty.number("a"), empty.flag("b"), empty.decimal("b")) == ("", 0, False, 0.0)
    assert (empty.children("a"), empty.texts("b"), empty.entries("a")) == ((), (), ())
    assert empty.duration_ms("a") == 0


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("number", "text"),
        ("text", "number"),
        ("flag", "number"),
        ("text", "flag"),
        ("text", "decimal"),
        ("flag", "decimal"),
        ("text", "child"),
        ("text", "children"),
        ("mixed", "children"),
        ("mixed", "texts"),
        ("text", "duration_ms"),
        ("absent", "required"),
    ],
)
def test_another_type_is_an_error_that_names_the_place(name: str, reader: str) -> None:
    body = fields({"number": 1, "text": "t", "flag": True, "mixed": ["a", 1]}, "Chain.Nodes[x]")
    with pytest.raises(ConsulAnswerError, match=rf"Chain\.Nodes\[x\]\.{name}.*: expected .*, found"):
        getattr(body, reader)(name)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")], ids=["large", "infinite", "none"])
def test_a_number_that_is_no_float_is_an_error(value: float) -> None:
    with pytest.raises(ConsulAnswerError, match="w: expected a number, found"):
        fields({"w": value}, "").decimal("w")


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_an_answer_that_is_no_object_is_an_error(value: object) -> None:
    with pytest.raises(ConsulAnswerError, match="answer: expected an object"):
        fields(value, "")


def test_an_answer_that_is_no_list_is_an_error() -> None:
    with pytest.raises(ConsulAnswerError, match="expected a list"):
        items({}, "")


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConsulAnswerError) as caught:
        fields({"a": ["x" * 1000]}, "").number("a")
    assert len(str(caught.value)) < 150
