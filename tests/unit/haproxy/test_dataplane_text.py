"""What the Data Plane API does to a text, and what counts as harm."""

from __future__ import annotations

import pytest

from hcc.haproxy.dataplane_text import bare, differences, version_of, versioned, with_user

SENT = """\
global
  description hcc:0123456789abcdef
  stats timeout 1m

defaults
  mode tcp
  timeout connect 5000ms

frontend public
  bind 127.0.0.1:1 ssl crt /a verify required
  tcp-request content reject unless { ssl_c_used }
  tcp-request content reject unless { var(txn.hcc.allowed) -m bool }

backend app
  option spop-check
  server w1 127.0.0.1:2 check inter 1s weight 3
"""
REWRITTEN = """\
# _md5hash=abc
# _version=7

global 
  stats timeout 60000
  description hcc:0123456789abcdef

defaults unnamed_defaults_1
  mode tcp
  timeout connect 5s

backend app
  server w1 127.0.0.1:2 check inter 1000 weight 3
  option spop-check

frontend public
  tcp-request content reject unless { ssl_c_used }
  tcp-request content reject unless { var(txn.hcc.allowed) -m bool }
  bind 127.0.0.1:1 ssl crt /a verify required
"""  # noqa: W291 - 1.2 leaves a blank there


def test_order_of_sections_units_of_times_and_comments_do_not_count() -> None:
    assert differences(SENT, REWRITTEN) == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (" weight 3", "", "backend app lacks: server w1 127.0.0.1:2 check inter 1000 weight 3"),
        (" verify required", "", "frontend public lacks: bind 127.0.0.1:1 ssl crt /a verify required"),
        ("tcp-request content reject unless { ssl_c_used }", "# gone", "frontend public lacks: tcp-request content"),
        ("timeout connect 5s", "timeout connect 5m", "defaults lacks: timeout connect 5000"),
        ("backend app", "backend other", "backend app lacks: the section itself"),
    ],
)
def test_a_lost_or_changed_line_is_named(old: str, new: str, said: str) -> None:
    assert any(line.startswith(said) for line in differences(SENT, REWRITTEN.replace(old, new)))


@pytest.mark.parametrize(
    ("sent", "found", "same"),
    [
        ("x 'a  b'  if TRUE", "x 'a  b' if TRUE", True),
        ("x 'a  b' if TRUE", "x 'a b' if TRUE", False),
        ('x "a\\"  b" if TRUE', 'x "a\\" b" if TRUE', False),
        ("x a\\  b", "x a\\ b", False),
        ("x 'after 1s'", "x 'after 1000'", False),
        ("x it's  1s", "x it's 1000", True),
    ],
)
def test_blanks_and_times_between_quotes_count(sent: str, found: str, *, same: bool) -> None:
    section = "backend app\n  http-request set-header"

    assert (not differences(f"{section} {sent}\n", f"{section} {found}\n")) is same


def test_an_added_line_is_named() -> None:
    found = differences(SENT, f"{REWRITTEN}  tcp-request content accept\n")
    assert found == ("frontend public has instead or besides: tcp-request content accept",)


def test_rules_in_another_order_are_harm() -> None:
    lines = REWRITTEN.splitlines(keepends=True)
    rules = [number for number, line in enumerate(lines) if "tcp-request" in line]
    lines[rules[0]], lines[rules[1]] = lines[rules[1]], lines[rules[0]]
    assert "another order" in differences(SENT, "".join(lines))[0]


def test_no_difference_shows_a_password() -> None:
    sent = with_user(SENT, "very-secret")
    assert "very-secret" not in "".join(differences(sent, SENT) + differences(SENT, sent))
    assert differences(sent, SENT)


def test_the_version_is_in_the_head_and_1_without_one() -> None:
    assert version_of(REWRITTEN) == 7
    assert version_of(SENT) == 1
    assert version_of(versioned(REWRITTEN, 8)) == 8
    assert version_of(f"{SENT * 9}\n# _version=5\n") == 1


def test_the_head_goes_and_comes_without_harm_to_the_rest() -> None:
    assert bare(versioned(SENT, 3)) == SENT
    assert bare(SENT) == SENT
    assert differences(versioned(SENT, 3), SENT) == ()
