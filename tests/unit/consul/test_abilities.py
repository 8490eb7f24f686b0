"""What an agent's answers show to be missing; real ones are in tests/integration/test_consul_contract.py."""

from __future__ import annotations

import pytest

from hcc.consul.abilities import Lack, is_unknown_kind, lacks_of_agent


@pytest.mark.parametrize(
    ("answer", "lacks"),
    [
        ({}, set()),
        ({"Config": {"Version": "1.8.7"}}, set()),
        ({"DebugConfig": {"EnableCentralServiceConfig": True, "DefaultIntentionPolicy": ""}}, set()),
        ({"DebugConfig": {"EnableCentralServiceConfig": True}}, {Lack.DEFAULT_INTENTION_POLICY}),
        (
            {"DebugConfig": {"EnableCentralServiceConfig": False}},
            {Lack.CENTRAL_MERGE, Lack.DEFAULT_INTENTION_POLICY},
        ),
    ],
)
def test_the_agent_s_own_configuration_shows_what_it_lacks(answer: object, lacks: set[Lack]) -> None:
    assert lacks_of_agent(answer) == lacks


def test_a_kind_of_config_entry_is_unknown_only_if_consul_says_so() -> None:
    assert is_unknown_kind("expected status 200, found 500 'invalid config entry kind: service-intentions'")
    assert not is_unknown_kind("expected status 200, found 500 'No cluster leader'")
