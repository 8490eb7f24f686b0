from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.entries import Reading, read
from hcc.consul.errors import ConsulAnswerError
from hcc.consul.instances import instances

Entry = dict[str, Any]


def entry(address: str = "10.0.0.1", status: str = "passing", **config: Any) -> Entry:
    proxy = {"DestinationServiceName": "db", "Config": config}
    return {
        "Node": {"Address": address, "Datacenter": "dc1"},
        "Service": {"Kind": "connect-proxy", "Service": "db-sidecar-proxy", "Port": 21000, "Proxy": proxy},
        "Checks": [{"Node": "n1", "Status": status}],
    }


def body(*entries: Entry, indent: int | None = None) -> bytes:
    """As Consul writes it; indented by 4 when it runs in development mode."""
    return json.dumps(entries, indent=indent, separators=(",", ": " if indent else ":")).encode()


def whole(*entries: Entry) -> Reading:
    return read(body(*entries), Reading(), wan=False)


nested = st.fixed_dictionaries({"Node": st.fixed_dictionaries({"Address": st.just("x")})})
# What an operator may have put there so that the answer is cut at the wrong place.
configs = st.one_of(st.lists(nested, max_size=3), st.just('},{"Node":{'), st.text(max_size=5))
entries = st.builds(
    entry, st.sampled_from(["10.0.0.1", "10.0.0.2", ""]), st.sampled_from(["passing", "critical"]), deep=configs
)
answers = st.lists(entries, max_size=4)


@given(answers, answers, st.sampled_from([None, 1, 4]))
def test_read_entry_by_entry_it_says_what_it_says_as_a_whole(
    first: list[Entry], second: list[Entry], indent: int | None
) -> None:
    before = read(body(*first, indent=indent), Reading(), wan=False)
    assert before.instances == instances(first, wan=False)
    assert read(body(*second, indent=indent), before, wan=False).instances == instances(second, wan=False)


def test_instances_that_were_there_before_are_the_same_objects() -> None:
    first = whole(entry("10.0.0.1"), entry("10.0.0.3"))
    after = read(body(entry("10.0.0.3"), entry("10.0.0.2"), entry("10.0.0.1")), first, wan=False)
    assert [one.address for one in after.instances] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert after.instances[0] is first.instances[0]
    assert after.instances[2] is first.instances[1]


def test_only_the_present_answer_is_remembered() -> None:
    after = read(body(entry("10.0.0.2")), whole(entry("10.0.0.1"), entry("10.0.0.2")), wan=False)
    assert len(after.entries) == 1


@pytest.mark.parametrize("text", [b"[]", b"null", b" [ ]\n"])
def test_an_answer_without_entries_has_no_instances(text: bytes) -> None:
    assert read(text, whole(entry()), wan=False) == Reading()


@pytest.mark.parametrize(("indent", "by_entry"), [(None, True), (4, True), (1, False)])
def test_an_answer_in_another_form_is_read_whole(indent: int | None, by_entry: bool) -> None:
    made = read(body(entry(), entry("10.0.0.2"), indent=indent), Reading(), wan=False)
    assert len(made.instances) == 2
    assert bool(made.entries) is by_entry


@pytest.mark.parametrize(
    "text", [b"{}", b'[{"Node":{},"Service":[]}]', b'[{"Node":{"Address":7}}]', b"[7]", b"[{}]", b'[{"a":1}]']
)
def test_another_shape_is_an_error_and_no_empty_list(text: bytes) -> None:
    with pytest.raises(ConsulAnswerError):
        read(text, Reading(), wan=False)


@pytest.mark.parametrize("cut", [1, 20, 200, -1])
def test_half_an_answer_is_an_error(cut: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(body(entry(), entry("10.0.0.2"))[:cut], Reading(), wan=False)
