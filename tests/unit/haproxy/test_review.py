from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hcc.haproxy.review import Review, ReviewError, read_review, review_json
from hcc.mesh.secret import Secret
from tests.builders import endpoint, leaf, options, snapshot, upstream, upstream_state

REVIEW = Review(options(), ("a:dc1",), snapshot(upstream_state(upstream("web"), [endpoint()])))


def written() -> dict[str, Any]:
    """What a file of it holds, once read again."""
    made: dict[str, Any] = json.loads(json.dumps(review_json(REVIEW, "2.8.25")))
    return made


def test_what_is_written_is_read_again_but_for_the_key() -> None:
    found = read_review(written())
    assert found.options == replace(REVIEW.options, ticket_secret=Secret("(hidden)"))
    assert found.callers == REVIEW.callers
    assert found.snapshot.upstreams == REVIEW.snapshot.upstreams
    assert found.snapshot.leaf is not None
    assert REVIEW.snapshot.leaf is not None
    assert found.snapshot.leaf.cert_pem == REVIEW.snapshot.leaf.cert_pem
    assert found.snapshot.leaf.key_pem == Secret("(hidden)")


def test_no_key_is_written() -> None:
    key = leaf().key_pem.reveal().splitlines()[1]
    text = json.dumps(review_json(Review(options(), (), snapshot(leaf_=leaf(key_pem="SECRET"))), "2.8.25"))
    assert "SECRET" not in text
    assert "PRIVATE KEY" not in json.dumps(written())
    assert key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "something"}, "expected a file that `hcc snapshot` wrote"),
        ({"format": 7}, "expected format 2 of `hcc snapshot`, found 7"),
        ({"format": 1, "hcc": "9.0"}, "(written by hcc 9.0, this is "),
        ({"review": {}}, "missing are ['options', 'callers', 'snapshot'] of Review"),
        ({"review": None, "hcc": "9.0"}, "expected Review in value, found NoneType (written by hcc 9.0, this is "),
    ],
)
def test_a_file_of_another_version_or_shape_is_refused_and_says_why(change: dict[str, object], said: str) -> None:
    with pytest.raises(ReviewError) as raised:
        read_review(written() | change)
    assert said in str(raised.value)


@pytest.mark.parametrize("data", [[], 7, None, "text"])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ReviewError, match="expected a file that `hcc snapshot` wrote"):
        read_review(data)


def test_a_field_that_this_hcc_does_not_know_is_named() -> None:
    strange = written()
    strange["review"]["snapshot"]["proxy"]["shoe_size"] = 44
    with pytest.raises(ReviewError, match="shoe_size"):
        read_review(strange)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("snapshot", "upstreams", 0, "chain", "start_node"), "resolver:other", "Chain.StartNode: expected one of the"),
        (("snapshot", "upstreams", 0, "chain", "targets"), [], "expected one of the targets, found web.default"),
        (("options", "process", "access_log"), "syslog", "expected off, stdout, the path of a syslog socket"),
    ],
)
def test_what_was_edited_and_does_not_fit_together_is_refused(
    where: tuple[str | int, ...], value: object, said: str
) -> None:
    edited = written()
    place = edited["review"]
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    with pytest.raises(ReviewError, match=said):
        read_review(edited)
