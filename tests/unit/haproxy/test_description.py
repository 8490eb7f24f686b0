from __future__ import annotations

import pytest

from hcc.haproxy.description import description, structure_of, structure_told


def test_the_structure_is_read_from_the_text_that_names_it() -> None:
    assert structure_of(f"global\n  {description('0123456789abcdef')}\n  maxconn 1\n") == "0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        "global\n  maxconn 1\n",
        "global\n  description hcc:\n",
        "global\n  description mine\n",
        "global\n  description hcc:a b\n",
        "global\n  description hccx:a\n",
    ],
)
def test_a_text_of_somebody_else_has_none(text: str) -> None:
    assert not structure_of(text)


@pytest.mark.parametrize(("told", "structure"), [("hcc:abc", "abc"), ("", ""), ("mine", ""), ("mine:abc", "")])
def test_what_haproxy_tells_is_told_apart_from_a_description_of_somebody_else(told: str, structure: str) -> None:
    assert structure_told(told) == structure
