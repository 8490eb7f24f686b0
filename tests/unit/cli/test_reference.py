"""What is made of the tables: docs/flags.md, the man page, completion, --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hcc.cli.arguments import parse, parser
from hcc.cli.commands import COMMANDS, main

ROOT = Path(__file__).parents[3]
NAMES = [command.name for commands in COMMANDS.values() for command in commands]


def test_the_generated_documents_are_in_step() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/reference"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(f"\n  {name} " in text for name in NAMES)
    assert all(f"\n{title}:\n" in text for title in COMMANDS)
    assert "exit codes:\n  0  done" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_command_has_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])

    assert "examples:\n" in capsys.readouterr().out
    command = next(one for commands in COMMANDS.values() for one in commands if one.name == name)
    for example in command.examples:
        words = example.split(" | ")[0].split(" > ")[0].split()
        assert words[0] == "hcc"
        assert parse(parser(COMMANDS), words[1:]).command == name


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hcc stat", "status"),
        ("hcc run --stats-a", "--stats-addr"),
        ("hcc run --log-format j", "json"),
        ("hcc troubleshoot u", "upstream"),
    ],
)
def test_bash_completes_commands_flags_and_values(
    typed: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0

    assert _completed(typed, capsys.readouterr().out, tmp_path) == [offered]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("hcc run --haproxy ha", ["hap"]), ("hcc run --config-file ha", ["hap"]), ("hcc explain --path ha", [])],
)
def test_bash_completes_files_where_files_are_meant(
    typed: str, offered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "hap").touch()

    assert _completed(typed, capsys.readouterr().out, tmp_path) == offered


def _completed(typed: str, script: str, folder: Path) -> list[str]:
    (folder / "hcc.bash").write_text(script)
    words = typed.split()
    asked = f'. ./hcc.bash; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_hcc; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=20, check=True, cwd=folder)
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_as_well(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "troubleshoot" in capsys.readouterr().out
