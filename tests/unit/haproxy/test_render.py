from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.capabilities import Capabilities, Version, capabilities
from hcc.haproxy.desired import desired
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.render_public import NO_TUNNEL
from hcc.haproxy.render_upstream import name_list
from hcc.haproxy.words import WordError
from hcc.mesh.snapshot import Endpoint, Health, UpstreamKey
from hcc.settings import Enforcement
from tests.builders import (
    V2_6,
    certificates,
    endpoint,
    options,
    proxy,
    rendered,
    result,
    snapshot,
    upstream,
    upstream_state,
)
from tests.haproxy_examples import examples
from tests.pki import Authority

GOLDEN = Path(__file__).parent / "golden"
V2_0 = capabilities(Version(2, 0))


def shown(found: Rendered) -> str:
    files = "".join(f"\n# ---- {file.path}\n{file.text}" for file in found.files)
    return found.config + files


@pytest.mark.parametrize(
    ("name", "version", "golden"),
    [
        ("tcp", V2_6, "tcp"),
        ("http", V2_6, "http"),
        ("http2", V2_6, "http2"),
        ("tokens", V2_6, "tokens"),
        ("routes", V2_6, "routes"),
        ("exposed", V2_6, "exposed"),
        # No build of it can be had here: what is written for it has to be read.
        ("tcp", V2_0, "tcp-2.0"),
        ("http", V2_0, "http-2.0"),
        ("routes", V2_0, "routes-2.0"),
    ],
)
def test_the_text_is_as_the_golden_file_has_it(name: str, version: Capabilities, golden: str) -> None:
    found = render(desired(examples()[name], options(), certificates()).desired, version)
    assert shown(found) == (GOLDEN / f"{golden}.cfg").read_text()


@pytest.mark.parametrize("intentions", Enforcement)
def test_no_request_is_let_in_before_a_tunnel_is_refused(intentions: Enforcement) -> None:
    found = render(desired(examples()["http"], options(intentions=intentions), certificates()).desired, V2_6)
    listener = found.config.partition("\nfrontend public")[2].partition("\n\n")[0]
    rules = [line for line in listener.splitlines() if line.startswith("  http-request ")]
    assert rules[0] == NO_TUNNEL


def test_where_nothing_is_enforced_tokens_are_only_asked_about() -> None:
    tokens = examples()["tokens"]
    audit = render(desired(tokens, options(intentions=Enforcement.AUDIT), certificates()).desired, V2_6)
    assert "event on-backend-http-request if { var(txn.hcc_said) -m beg token- }" in shown(audit)
    assert "var(txn.hcc.token)" not in audit.config
    assert "del-header authorization" not in audit.config


def test_where_nothing_is_enforced_a_request_without_a_form_is_told_and_goes_on_as_it_came() -> None:
    tokens = examples()["tokens"]
    audit = render(desired(tokens, options(intentions=Enforcement.AUDIT), certificates()).desired, V2_6)
    lines = audit.config.splitlines()
    there = lines.index("  http-request set-pathq '%[var(txn.hcc_sent)]' if { var(txn.hcc_sent) -m found }")
    assert all(n < there for n, line in enumerate(lines) if "set-path " in line or "normalize-uri" in line)
    assert "  http-request set-var(txn.hcc_verdict) str(formless) if hcc_ruled ! { path_beg / }" in lines
    # What is refused whoever asks: a tunnel, and that the application should drop who it is.
    assert [line.split("{")[0] for line in lines if "deny_status" in line] == [
        NO_TUNNEL,
        "  http-request deny deny_status 400 if ",
    ]
    assert (
        "event on-backend-http-request if { var(txn.hcc_verdict) -m beg rules- formless } "
        "! { var(txn.hcc_said) -m beg allow token- }\n"
    ) in shown(audit)


def test_where_no_rules_can_be_looked_at_no_tokens_are() -> None:
    tokens = render(desired(examples()["tokens"], options(), certificates()).desired, V2_0)
    assert "token" not in shown(tokens)


@pytest.mark.parametrize("name", sorted(examples()))
def test_nothing_newer_than_2_0_is_written_for_2_0(name: str) -> None:
    found = shown(render(desired(examples()[name], options(), certificates()).desired, V2_0))
    newer = (
        "http-request return",
        "http-error",
        "pool-low-conn",
        "no-sni-auto",
        "sha2",
        "mode spop",
        "ssl_s_der",
        "set-timeout",
    )
    assert not [word for word in newer if word in found]


@pytest.mark.parametrize("length", [1, 100, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 250, 256, 300])
def test_the_bytes_looked_for_are_those_that_a_certificate_has(length: int) -> None:
    uri = "spiffe://d/" + "s" * length
    der = Authority().leaf(uri).der.hex().upper()

    assert der.count(name_list(uri)) == 1
    assert name_list(uri[:-1]) not in der
    assert name_list(f"{uri}s") not in der


def test_a_name_among_others_is_not_looked_for() -> None:
    uri = "spiffe://d/web"
    assert name_list(uri) not in Authority().leaf(uri, "spiffe://d/evil").der.hex().upper()
    assert name_list(uri) not in Authority().leaf("spiffe://d/evil", uri).der.hex().upper()


def test_when_all_instances_are_gone_the_same_answers_are_let_through_without_a_reload() -> None:
    assert rendered(upstream_state(endpoints=[endpoint()])).structure == rendered(upstream_state()).structure


def structure(weight: int = 1, **end: object) -> str:
    health = end.get("health", Health.PASSING)
    assert isinstance(health, Health)
    state = upstream_state(endpoints=[endpoint(str(end.get("address", "10.0.0.1")), weight=weight, health=health)])
    return rendered(state).structure


def test_what_changes_at_run_time_is_no_part_of_the_structure() -> None:
    assert structure() == structure(weight=7) == structure(health=Health.CRITICAL) == structure(address="10.9.9.9")


def test_where_servers_are_in_slots_their_number_is_part_of_the_structure() -> None:
    few, many = ([endpoint(f"10.0.0.{n}") for n in range(count)] for count in (3, 20))

    def old(*endpoints: Endpoint) -> str:
        return rendered(upstream_state(endpoints=endpoints), capabilities=capabilities(Version(2, 4))).structure

    assert old() == old(endpoint()) == old(endpoint(weight=7)) == old(*few)
    assert old(*few) != old(*many)


def test_a_slot_without_an_endpoint_is_written_as_a_server_in_maintenance() -> None:
    text = rendered(upstream_state(endpoints=[endpoint()]), capabilities=capabilities(Version(2, 2))).config
    lines = [line.split() for line in text.partition("backend up:web:9191:to")[2].splitlines()]
    slots = [(words[1], words[2], words[-1]) for words in lines if words[:1] == ["server"]]
    assert [name for name, _, _ in slots] == ["s1", "s2", "s3", "s4"]
    assert [address for _, address, _ in slots] == ["10.0.0.1:21000"] + ["127.127.127.127:1"] * 3
    assert [last == "disabled" for _, _, last in slots] == [False, True, True, True]


def test_a_new_certificate_is_part_of_the_structure_only_where_it_cannot_be_set() -> None:
    old, new = certificates(), certificates(fingerprint="B" * 40, ca_fingerprints=("D" * 40,))
    for version, same in (
        (Version(2, 8), True),
        (Version(2, 6), False),
        (Version(2, 4), False),
        (Version(2, 2), False),
    ):
        found = {render(result(certificates_=some).desired, capabilities(version)).structure for some in (old, new)}
        assert (len(found) == 1) is same


def test_another_listener_is_another_structure() -> None:
    one, other = upstream_state(upstream(port=1)), upstream_state(upstream(port=2))
    assert rendered(one).structure != rendered(other).structure


def test_a_changed_side_file_has_another_name_and_another_structure() -> None:
    two, three = (
        render(result(options_=options(workers=2)).desired, V2_6),
        render(replace(result().desired, authorisation=None, public=None, app=None), V2_6),
    )
    assert {file.path for file in two.files}
    assert not three.files
    assert two.structure != three.structure


def test_the_structure_stands_where_show_info_prints_it() -> None:
    found = rendered()
    assert f"\n  description hcc:{found.structure}\n" in found.config


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        (Version(2, 2), "expose-fd listeners", "no-sni-auto"),
        (Version(2, 6), "pool-low-conn", "expose-fd"),
        (Version(2, 0), "spop-check", "pool-low-conn"),
        (Version(3, 3), "no-sni-auto", "expose-fd"),
    ],
)
def test_words_of_one_version_go_to_that_version_only(version: Version, has: str, lacks: str) -> None:
    state = upstream_state(endpoints=[endpoint()])
    text = rendered(state, capabilities=capabilities(version)).config
    assert has in text
    assert lacks not in text


def test_a_certificate_is_demanded_by_a_rule_too_and_before_anybody_is_asked() -> None:
    lines = rendered().config.splitlines()
    assert lines.index("  tcp-request content reject unless { ssl_c_used }") < lines.index(
        "  tcp-request content reject unless { var(txn.hcc.allowed) -m bool }"
    )


def test_nothing_that_the_data_plane_api_rewrites_is_used() -> None:
    for example in examples().values():
        text = render(desired(example, options(), certificates()).desired, V2_6).config
        assert "tcp-request session" not in text
        assert text.count("\ndefaults\n") == 1
        assert max(map(len, text.splitlines())) < 64 * 1024


hostile = st.text(st.characters(codec="utf-8"), max_size=20)


@given(name=hostile, datacenter=hostile, peer=hostile)
def test_no_name_from_consul_can_add_a_line_or_a_word(name: str, datacenter: str, peer: str) -> None:
    plain = rendered(upstream_state(upstream("x")), upstream_state(upstream("y", 1)))
    key = UpstreamKey("service", name, datacenter, peer=peer)
    odd = upstream_state(replace(upstream(), key=key), chain_=upstream_state().chain)
    found = rendered(odd, upstream_state(upstream("y", 1)))
    words = [len(line.split()) for line in plain.config.splitlines()]
    assert [len(line.split()) for line in found.config.splitlines()] == words
    assert found.config.isascii()


@pytest.mark.parametrize(
    "path", ["/run/h cc/leaf.pem", "/run/leaf.pem\n  server x 1.2.3.4:1", "leaf.pem", "/a#b", '/a"b']
)
def test_a_path_that_would_need_quoting_is_refused(path: str) -> None:
    wanted = desired(snapshot(proxy_=proxy()), options(), certificates(leaf_name=path)).desired
    with pytest.raises(WordError, match="expected an absolute path"):
        render(wanted, V2_6)


def test_no_key_is_in_the_text() -> None:
    found = render(result(certificates_=certificates(pem="PRIVATE")).desired, V2_6)
    assert "PRIVATE" not in shown(found)
