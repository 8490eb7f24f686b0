"""Nobody whom we start gets a token of ours."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import hcc
from hcc.children import child_environment
from hcc.errors import HccError
from hcc.haproxy.binary import probe
from hcc.haproxy.dataplane_program import find_dataplane
from hcc.haproxy.direct import check
from hcc.haproxy.layout import layout

ROOT = Path(hcc.__file__).parent
STARTING = {"Popen", "run", "call", "check_call", "check_output"}
TOKENS = ("CONSUL_HTTP_TOKEN", "HCC_TOKEN")


def test_what_programs_need_is_kept_and_no_token_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TOKENS, "LANG"):
        monkeypatch.setenv(name, "hush")
    found = child_environment(PYTHONPATH="/opt")
    assert (found["LANG"], found["PYTHONPATH"]) == ("hush", "/opt")
    assert not found.keys() & set(TOKENS)


def starts() -> list[tuple[str, ast.Call]]:
    """Whatever starts a process, by file and line."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in STARTING
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "subprocess"
    ]


def test_every_process_gets_that_environment() -> None:
    assert starts()
    for where, call in starts():
        given = [ast.unparse(word.value) for word in call.keywords if word.arg == "env"]
        assert given, where
        assert given[0].startswith("child_environment("), where


@pytest.mark.parametrize(
    "start",
    [
        probe,
        find_dataplane,
        lambda program: check(program, layout(str(Path(program).parent)), "global\n", "test"),
    ],
    ids=["haproxy -vv", "dataplaneapi --help", "haproxy -c"],
)
def test_programs_that_are_asked_get_no_token(
    start: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, told = tmp_path / "program", tmp_path / "told"
    program.write_text(f"#!/bin/sh\nenv >{told}\nexit 1\n")
    program.chmod(0o755)
    for name in TOKENS:
        monkeypatch.setenv(name, "hush")
    with pytest.raises(HccError):
        start(str(program))
    assert "PATH=" in told.read_text()
    assert "hush" not in told.read_text()
