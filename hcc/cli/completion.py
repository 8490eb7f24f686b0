"""`hcc completion`: what a shell needs to complete hcc's words."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from hcc.cli.arguments import Command, parser

SHELLS = ("bash", "zsh", "fish", "tcsh")
# What is one of these is said by its metavar; a request's path is another.
_FILES, _DIRECTORIES = ("FILE", "PATH"), ("DIR",)


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh, fish or tcsh")


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from hcc.cli.commands import COMMANDS

    whole = parser(COMMANDS)
    for action in _actions(whole):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif isinstance(action.metavar, str) and "|" in action.metavar:
            action.choices = action.metavar.split("|")
    print(shtab.complete(whole, options.shell))
    return 0


def _actions(whole: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in whole._actions:  # noqa: SLF001 (argparse offers no public way)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for own in action.choices.values():
                yield from _actions(own)
        else:
            yield action


COMMANDS = (
    Command(
        "completion",
        "print a shell's completion script",
        _arguments,
        _completion,
        (
            "hcc completion bash > /usr/share/bash-completion/completions/hcc",
            "hcc completion zsh > /usr/share/zsh/site-functions/_hcc",
        ),
    ),
)
