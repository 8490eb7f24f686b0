"""Connections to the agent are a budget: how many questions wait there at once."""

from __future__ import annotations

import pytest

from hcc.consul.assembly import State, updated, wanted
from hcc.consul.held_chains import MAX_HELD, HeldChains
from hcc.consul.keys import ChainWatch, ProxyWatch, RootsWatch
from tests import builders
from tests.unit.consul.test_assembly import registered


@pytest.mark.parametrize("count", [0, 1, 10, 100])
def test_questions_are_five_and_two_for_each_upstream_as_docs_sizing_says(count: int) -> None:
    upstreams = [builders.upstream(f"s{number}", port=9000 + number) for number in range(count)]
    state = updated(State("server-sidecar-proxy"), ProxyWatch("server-sidecar-proxy"), registered(*upstreams))
    state = updated(state, RootsWatch(), builders.roots())
    for number in range(count):
        state = updated(state, ChainWatch(f"s{number}"), builders.chain(f"s{number}"))

    questions = wanted(state)

    chains = sum(isinstance(key, ChainWatch) for key in questions)
    assert (len(questions), chains) == (5 + 2 * count, count)
    assert len(questions) - max(0, chains - MAX_HELD) <= 200


def test_a_place_is_taken_once_and_free_when_it_is_given_back() -> None:
    chains = HeldChains(places=2)
    assert [chains.take() for _ in range(3)] == [True, True, False]

    chains.give_back()

    assert chains.take()
    assert not HeldChains(places=0).take()
