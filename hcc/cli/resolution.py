"""Which value each setting has, and where it came from: flag, `HCC_*`, Consul's variable, TOML file, default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from hcc.cli.settings_table import ALL, CONFIG_FILE_VARIABLE, Setting
from hcc.errors import SettingError


class Strength(IntEnum):
    """Sources, the strongest last."""

    DEFAULT = 0
    FILE = 1
    CONSUL = 2
    HCC = 3
    FLAG = 4


@dataclass(frozen=True, slots=True)
class Given:
    """A setting's value.

    Args:
        source: in words, such as `--stats-addr`, `HCC_STATS_ADDR`, `stats_addr in /etc/hcc/hcc.toml`, `default`.
    """

    setting: Setting
    value: object
    text: str
    strength: Strength
    source: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What may give a setting its value.

    Args:
        flags: texts by key, None where the flag is missing.
        environ: as given to the process; an empty variable counts as missing.
        file: the TOML file's contents.
        file_name: for messages.
        defaults: texts by key, instead of the table's.
    """

    flags: Mapping[str, str | None]
    environ: Mapping[str, str]
    file: Mapping[str, object]
    file_name: str
    defaults: Mapping[str, str]


def resolved(settings: Sequence[Setting], sources: Sources) -> tuple[Given, ...]:
    """The value of each setting, in their order.

    Raises:
        SettingError: an unknown key in the file, a value that cannot be used, or two settings of which only one is
            taken, from one source.
    """
    _check_keys(sources)
    texts = [(setting, *_strongest(setting, sources)) for setting in settings]
    found = []
    for setting, strength, text, source in texts:
        rivals = [
            (theirs, other)
            for other, theirs, _, _ in texts
            if setting.rivals and other.rivals == setting.rivals and other is not setting and theirs > Strength.DEFAULT
        ]
        if strength > Strength.DEFAULT and _silenced(setting, strength, rivals, settings):
            strength, text, source = Strength.DEFAULT, setting.default, "default"  # noqa: PLW2901
        found.append(Given(setting, _parsed(setting, text, source), text, strength, source))
    return tuple(found)


def strange_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Variables that look like settings and are none, each with what it may have meant."""
    known = {setting.own_variable for setting in ALL} | {CONFIG_FILE_VARIABLE}
    found = []
    for name in sorted(environ):
        if name.startswith("HCC_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            if near:
                found.append(f"{name} is no setting; did you mean {near[0]}?")
    return tuple(found)


def _strongest(setting: Setting, sources: Sources) -> tuple[Strength, str, str]:
    flag = sources.flags.get(setting.key)
    if flag is not None:
        return Strength.FLAG, flag, setting.flag
    for strength, name in ((Strength.HCC, setting.own_variable), (Strength.CONSUL, setting.variable)):
        if sources.environ.get(name):
            return strength, sources.environ[name], name
    if setting.key in sources.file:
        source = f"{setting.key} in {sources.file_name}"
        return Strength.FILE, _text(sources.file[setting.key], source), source
    return Strength.DEFAULT, sources.defaults.get(setting.key, setting.default), "default"


def _silenced(
    setting: Setting, strength: Strength, rivals: Sequence[tuple[Strength, Setting]], order: Sequence[Setting]
) -> bool:
    """Whether a rival counts instead: one from a stronger source or, of Consul's variables, one that comes first."""
    for theirs, other in rivals:
        if theirs == strength != Strength.CONSUL:
            raise SettingError(f"expected one of {setting.flag} and {other.flag}, found both")
        if theirs > strength or (theirs == strength and order.index(other) < order.index(setting)):
            return True
    return False


def _parsed(setting: Setting, text: str, source: str) -> object:
    try:
        return setting.parse(text)
    except SettingError as exc:
        raise SettingError(f"{source}: {exc}") from exc


def _text(value: object, source: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and "\0" in value:
        raise SettingError(f"{source}: expected a text as a flag could be, found one with a NUL")
    if isinstance(value, str | int | float):
        return str(value)
    found = "a table" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise SettingError(f"{source}: expected a text, a number or true/false, found {found}")


def _check_keys(sources: Sources) -> None:
    known = [setting.key for setting in ALL]
    for key in sources.file:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise SettingError(f"{sources.file_name}: unknown key {key!r}: {hint}")
