from __future__ import annotations

from hcc.haproxy.rises import Rises


def test_what_rose_since_the_last_reading_is_told() -> None:
    rises = Rises(from_nothing=False)

    assert rises.of({"a": 3, "b": 0}) == {}
    assert rises.of({"a": 5, "b": 0}) == {"a": 2}
    assert rises.of({"a": 5, "b": 0}) == {}


def test_a_worker_that_begins_anew_counts_from_nothing() -> None:
    rises = Rises(from_nothing=False)
    rises.of({"a": 5})

    assert rises.of({"a": 2}) == {"a": 2}
    assert rises.of({"a": 0}) == {}


def test_what_was_not_there_before_counts_whole_and_the_first_reading_if_it_is_to() -> None:
    rises = Rises(from_nothing=True)

    assert rises.of({"a": 3}) == {"a": 3}
    assert rises.of({"a": 3, "b": 1}) == {"b": 1}
