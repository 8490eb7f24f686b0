"""What `hcc explain` and `hcc restart` see to before any sidecar is asked; there is none here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcc.cli import commands


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "--source", "web", "--header", "foo"), "expected a header such as x-role:admin, found 'foo'"),
        (("explain", "--source", "web", "--method", "GE T"), "expected a method such as GET, found 'GE T'"),
        (("explain", "--source", ""), "expected a source"),
        (
            ("explain", "--source", "a/b"),
            "expected a service's name, ap/PARTITION/ns/NAMESPACE/svc/NAME or a SPIFFE URI",
        ),
        (("explain", "--source", "x" * 5000), "expected a SPIFFE URI of at most 2048 bytes, found 50"),
        (("explain", "--source", "x" * 70_000), "at most 60000 bytes, found 70007, most of them by --source"),
        (
            ("explain", "--source", "web", "--path", "/x", *("--header", f"a:{' ' * 1000}") * 70),
            "expected a question of at most 60000 bytes, found 70860, most of them by --header",
        ),
        (("restart", "x" * 70_000), "expected the name of an actor, found 70000 characters; `hcc actors` lists them"),
        (("restart", ""), "expected the name of an actor, found nothing"),
    ],
)
def test_words_that_no_sidecar_can_answer_are_wrong_whether_one_runs_or_not(
    words: tuple[str, ...], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert commands.main([*words, "--state-dir", str(tmp_path), "--config-file", ""]) == 2
    (told,) = caplog.messages
    assert said in told
    assert len(told) < 200


def test_words_that_are_well_are_asked_of_a_sidecar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # One that is no UTF-8 on the command line, too.
    words = ("explain", "--source", "web", "--header", "x-role: \udce9", "--header", "a:b")
    assert commands.main([*words, "--state-dir", str(tmp_path), "--config-file", ""]) == 1
    (told,) = caplog.messages
    assert "expected one running sidecar" in told
