"""What `hcc plan` prints of a sidecar's answer."""

from __future__ import annotations

import argparse

import pytest

from hcc.cli import review

REST: dict[str, object] = {"reasons": [], "operations": [], "reloads": False}
TAKEN = "cannot listen on 127.0.0.1:9191: in use"


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        (REST, "nothing to do: HAProxy runs what is wanted\n"),
        (
            {**REST, "left_out": [TAKEN]},
            f"# left out: {TAKEN}\nnothing to do: HAProxy runs what is wanted, but for what is left out\n",
        ),
        (
            {**REST, "left_out": [TAKEN], "operations": ["reload"], "reasons": ["structure differs"]},
            f"# structure differs\n# left out: {TAKEN}\nreload\n",
        ),
    ],
)
def test_a_plan_names_what_is_left_out(
    answer: dict[str, object], printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(review, "asked", lambda *_: answer)
    assert review._plan(argparse.Namespace(json=False)) == 0
    assert capsys.readouterr().out == printed
