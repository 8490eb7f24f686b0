from __future__ import annotations

from itertools import product

import pytest

from hcc.haproxy.capabilities import Capabilities, Version
from hcc.haproxy.model import Authorisation, Mode
from hcc.haproxy.render_rules import as_sent, refused, rule_lines
from hcc.mesh.request import CONSULS_DEFAULT, EscapedSlashes, Look, LookedAt, Normalization, Underscores
from hcc.mesh.token_providers import USUAL_PLACES, TokenPlace
from tests.builders import V2_6

VERDICT = "txn.v"
ROLE = LookedAt("x-role", Look.VALUE)
V2_2 = Capabilities(Version(2, 2))
REFUSE = "  http-request deny deny_status 400 if hcc_ruled "
TELL = "  http-request set-var(txn.v) str(formless) if hcc_ruled "
# What a HAProxy that normalises would refuse while it does so.
UNDECODABLE = (
    "{ path -m reg -i '%(2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f|7e)' } { url -m reg -i '%([^0-9a-f]|.[^0-9a-f]|.?$)' }"
)
SENT = "  http-request set-var(txn.hcc_sent) pathq if hcc_ruled"
AS_IT_CAME = "  http-request set-pathq '%[var(txn.hcc_sent)]' if { var(txn.hcc_sent) -m found }"
FORMS = [Normalization(*form) for form in product((True, False), (True, False), EscapedSlashes, Underscores)]


def asked(
    how: Normalization = CONSULS_DEFAULT,
    *,
    enforced: bool,
    headers: tuple[LookedAt, ...] = (ROLE,),
    token_places: tuple[TokenPlace, ...] = (),
) -> Authorisation:
    return Authorisation(
        "agents",
        ("/s",),
        Mode.HTTP,
        "/i",
        "/v",
        "/r",
        headers=headers,
        normalization=how,
        token_places=token_places,
        enforced=enforced,
    )


def lines(authorisation: Authorisation, able: Capabilities = V2_6) -> list[str]:
    return list(rule_lines(authorisation, VERDICT, able))


def conditions(beginning: str, found: list[str]) -> list[str]:
    return [line.removeprefix(beginning) for line in found if line.startswith(beginning)]


@pytest.mark.parametrize("able", [V2_6, V2_2], ids=["2.6", "2.2"])
@pytest.mark.parametrize("how", FORMS)
def test_where_nothing_is_enforced_what_would_be_refused_for_its_form_is_said_to_have_none(
    how: Normalization, able: Capabilities
) -> None:
    enforced, audit = lines(asked(how, enforced=True), able), lines(asked(how, enforced=False), able)
    undecodable = able is V2_6 and how.path

    assert [line for line in audit if "deny" in line or "del-header" in line] == []
    assert [line for line in enforced if "formless" in line] == []
    told = conditions(TELL, audit)
    assert told.count(UNDECODABLE) == (1 if undecodable else 0)
    assert [condition for condition in told if condition != UNDECODABLE] == conditions(REFUSE, enforced)
    assert conditions(REFUSE, enforced)[:2] == ["! { path_beg / }", r"{ url -m reg '[^\x21\x22\x24-\x7e]' }"]
    # All else is the same.
    only_there = {SENT, TELL + UNDECODABLE, "  http-request del-header _ -m sub if hcc_ruled"}
    assert [line for line in audit if line not in only_there] == [
        line.replace(REFUSE, TELL) for line in enforced if line not in only_there
    ]


@pytest.mark.parametrize("how", FORMS)
def test_where_nothing_is_enforced_the_path_is_kept_before_it_is_changed_and_put_back(how: Normalization) -> None:
    audit = lines(asked(how, enforced=False))

    changes = [n for n, line in enumerate(audit) if "set-path" in line or "normalize-uri" in line]
    assert audit.count(SENT) == 1
    assert all(audit.index(SENT) < change for change in changes)
    # What is no path at all is none to be kept.
    assert audit.index(SENT) > audit.index(f"{TELL}! {{ path_beg / }}")
    assert list(as_sent(asked(how, enforced=False), V2_6)) == [AS_IT_CAME]


@pytest.mark.parametrize(("enforced", "able"), [(True, V2_6), (True, V2_2), (False, V2_2)])
def test_a_path_that_is_sent_on_in_its_normal_form_or_never_changed_is_not_put_back(
    enforced: bool, able: Capabilities
) -> None:
    assert "txn.hcc_sent" not in "".join(lines(asked(enforced=enforced), able))
    assert list(as_sent(asked(enforced=enforced), able)) == []


def test_what_cannot_be_decoded_is_looked_for_before_it_is_decoded() -> None:
    audit = lines(asked(enforced=False))
    (decoding,) = [n for n, line in enumerate(audit) if "percent-decode-unreserved" in line]
    assert audit.index(TELL + UNDECODABLE) < decoding


@pytest.mark.parametrize(
    ("enforced", "places", "condition"),
    [
        (True, (), "{ var(txn.v) -m beg rules- } ! { var(txn.hcc_said) -m str allow }"),
        (True, USUAL_PLACES, "{ var(txn.v) -m beg rules- } ! { var(txn.hcc_said) -m beg allow token- }"),
        (False, (), "{ var(txn.v) -m beg rules- formless } ! { var(txn.hcc_said) -m str allow }"),
        (False, USUAL_PLACES, "{ var(txn.v) -m beg rules- formless } ! { var(txn.hcc_said) -m beg allow token- }"),
    ],
)
def test_where_nothing_is_enforced_a_request_without_a_form_counts_as_refused(
    enforced: bool, places: tuple[TokenPlace, ...], condition: str
) -> None:
    assert refused(asked(enforced=enforced, token_places=places), VERDICT) == condition


@pytest.mark.parametrize(
    ("underscores", "enforced", "dropped"),
    [
        (Underscores.DROP, False, True),
        # Not there any more, or refused.
        (Underscores.DROP, True, False),
        (Underscores.REJECT, False, False),
        (Underscores.ALLOW, False, False),
    ],
)
def test_a_header_that_would_be_dropped_is_sent_on_and_rules_do_not_see_it_where_nothing_is_enforced(
    underscores: Underscores, enforced: bool, dropped: bool
) -> None:
    how = Normalization(underscores=underscores)
    found = lines(asked(how, enforced=enforced, headers=(ROLE, LookedAt("x_role", Look.VALUE))))

    assert ("del-header" in "".join(found)) is (underscores is Underscores.DROP and enforced)
    assert (r"  http-request set-var(txn.hcc_header1) str(-),concat(\n) if hcc_ruled" in found) is dropped
    assert ("req.fhdr(x_role)" in "".join(found)) is not dropped
    assert "req.fhdr(x-role)" in "".join(found)


def test_of_a_header_that_must_only_be_there_any_number_of_lines_is_taken() -> None:
    by_value, by_presence = (
        lines(asked(enforced=True)),
        lines(asked(enforced=True, headers=(LookedAt("x-role", Look.PRESENCE),))),
    )
    assert (REFUSE + "{ req.fhdr_cnt(x-role) gt 1 }" in by_value, "fhdr_cnt" in "".join(by_presence)) == (True, False)
