from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.names import backend_name, server_name, upstream_name
from hcc.mesh import naming
from hcc.mesh.naming import joined
from hcc.mesh.snapshot import Upstream, UpstreamKey
from tests.builders import upstream

text = st.text(st.characters(codec="utf-8"), max_size=8)
awkward = st.text("a:3-AF.\u00e9\n", max_size=6)
parts = st.lists(text | awkward, min_size=1, max_size=5).map(tuple)
keys = st.builds(UpstreamKey, st.sampled_from(["service", "prepared_query"]), text, text, text, text, text)


@pytest.mark.parametrize(
    ("registered", "name"),
    [
        (upstream("web"), "up:web:9191"),
        (upstream("web", datacenter="dc2"), "up:web:dc2:9191"),
        (upstream("My_Svc.with-dots"), "up:My_Svc.with-dots:9191"),
        (upstream("db", 5432, query=True), "query:db:5432"),
        (upstream("a:b c"), "up:a::3Ab::20c:9191"),
        (upstream("web", socket="/run/w.sock"), "up:web:::2Frun::2Fw.sock"),
    ],
)
def test_names_stay_readable(registered: Upstream, name: str) -> None:
    assert upstream_name(registered) == name


def test_a_target_has_its_own_backend() -> None:
    assert backend_name(upstream()) == "up:web:9191:to"
    assert backend_name(upstream(), "v2.web.dc1") == "up:web:9191:to:v2.web.dc1"


def test_a_server_is_named_by_its_address() -> None:
    assert server_name("10.0.0.1", 80) == "10.0.0.1:80"


@given(parts)
def test_a_name_holds_only_what_haproxy_takes(some: tuple[str, ...]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.:-]+", joined(*some))


@given(parts, parts)
def test_different_parts_give_different_names(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (joined(*one) == joined(*other)) == (one == other)


@given(parts)
def test_a_name_tells_its_parts(some: tuple[str, ...]) -> None:
    assert naming.parts(joined(*some)) == (some or ("",))


@pytest.mark.parametrize("name", ["::1:80", "::FF", "a::", "::3a", "\n"])
def test_a_name_that_was_not_joined_is_one_part(name: str) -> None:
    assert naming.parts(name) == (name,)


def _upstream(key: UpstreamKey, port: int) -> Upstream:
    return Upstream(key, "127.0.0.1", port)


@given(st.tuples(keys, st.integers(1, 65535)), st.tuples(keys, st.integers(1, 65535)), text, text)
def test_different_upstreams_and_targets_give_different_names(
    one: tuple[UpstreamKey, int], other: tuple[UpstreamKey, int], target: str, another: str
) -> None:
    same = one == other and target == another
    assert (backend_name(_upstream(*one), target) == backend_name(_upstream(*other), another)) == same
