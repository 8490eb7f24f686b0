"""What a command of `hcc` is, and the parser that all of them make together."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from hcc.errors import SettingError
from hcc.version import VERSION

T = TypeVar("T")

SUMMARY = "HAProxy as a data plane of Consul's service mesh."
EPILOG = """\
examples:
  hcc doctor --sidecar-for web
  hcc run --sidecar-for web --stats-addr 127.0.0.1:20200
  hcc status --sidecar-for web

`hcc COMMAND --help` has the flags and examples of a command.

`hcc --version` tells the version.

exit codes:
  0  done
  1  failed; the reason is one line on standard error, or in the report
  2  wrong flag, variable or value
  130  ended by Ctrl-C
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One word behind `hcc`. A new one is a module with its `COMMANDS`, named in `hcc.cli.commands`.

    Args:
        summary: its line in `hcc --help`.
        arguments: adds its flags to its parser.
        run: does it and gives the exit code; it imports what it needs itself, as start-up has a budget.
        examples: whole command lines, shown by its `--help`.
    """

    name: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    """argparse, except that an error is an exception whose one line says what was expected."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


class _Top(_Parser):
    """The parser of `hcc` itself, whose help lists commands by what one wants to do."""

    groups: Mapping[str, Sequence[Command]]

    def format_help(self) -> str:
        width = max(len(command.name) for commands in self.groups.values() for command in commands)
        listed = (
            "\n".join((f"{title}:", *(f"  {command.name:<{width}}  {command.summary}" for command in commands)))
            for title, commands in self.groups.items()
        )
        return "\n\n".join((f"usage: {self.usage}", SUMMARY, *listed, EPILOG))


def parser(groups: Mapping[str, Sequence[Command]], only: str = "") -> argparse.ArgumentParser:
    """The parser of `hcc` with these commands, by the headings that --help puts over them.

    Args:
        groups: commands by heading.
        only: the command whose flags are wanted, as those of all take 15 ms to make; empty for all.
    """
    top = _Top(prog="hcc", usage="hcc COMMAND [flags]", allow_abbrev=False)
    top.groups = groups
    top.add_argument("--version", action="version", version=f"hcc {VERSION}")
    words = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for command in (command for commands in groups.values() for command in commands):
        own = words.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog="\n".join(("examples:", *(f"  {line}" for line in command.examples))) if command.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        own.set_defaults(run=command.run)
        if only and command.name != only:
            continue
        command.arguments(own)
        words_after = (str(action.metavar) for action in own._get_positional_actions())  # noqa: SLF001
        own.usage = " ".join(("hcc", command.name, *words_after, "[flags]"))
    return top


def parse(top: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The parsed words; `run` is the command's function.

    Raises:
        SettingError: an unknown flag (naming the nearest known one), a bad value, a missing or unknown command.
    """
    commands = _commands(top)
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = difflib.get_close_matches(words[0], commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(commands)} (see hcc --help)"
        raise SettingError(f"unknown command {words[0]!r}: {hint}")
    options, unknown = top.parse_known_args(list(words))
    if unknown:
        raise SettingError(_unknown(top, options.command, unknown[0]))
    if options.command is None:
        raise SettingError(f"expected a command: {', '.join(commands)} (see hcc --help)")
    return options


def checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert` for argparse, which reports only its own error class with the flag's name."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except SettingError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return converted


def _unknown(top: argparse.ArgumentParser, command: str | None, word: str) -> str:
    flags = [flag for flag in _flags(top, command) if flag.startswith("--")]
    # Without its value, which may be a secret.
    word = word.partition("=")[0]
    near = difflib.get_close_matches(word, flags, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see hcc {command or ''} --help".replace("  ", " ")
    return f"unknown argument {word!r}: {hint}"


def _flags(top: argparse.ArgumentParser, command: str | None) -> list[str]:
    own = _commands(top).get(command or "", top)
    return list(own._option_string_actions)  # noqa: SLF001 (argparse offers no public way to list flags)


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in top._actions:  # noqa: SLF001 (as above)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}
