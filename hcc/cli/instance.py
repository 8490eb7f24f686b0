"""The settings of a command: its flags, the file and the environment read, and asking the sidecar they choose."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hcc.cli.resolution import Given, Sources, resolved
from hcc.cli.settings_table import CONFIG_FILE_VARIABLE, DEFAULT_CONFIG_FILE, INSTANCE, Group, Setting
from hcc.errors import SettingError


def add_settings(command: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """The flags of these settings. `settle` makes values of them, with what file and environment say."""
    command.set_defaults(settings=tuple(settings))
    for group in Group:
        those = [setting for setting in settings if setting.group is group and setting.has_flag]
        if those:
            heading = command.add_argument_group(group.value)
            for setting in those:
                _add_flag(heading, setting)
    files = command.add_argument_group("settings file")
    files.add_argument(
        "--config-file",
        metavar="FILE",
        help=f"TOML (default: {DEFAULT_CONFIG_FILE} where it exists); {CONFIG_FILE_VARIABLE}",
    )


def add_instance(command: argparse.ArgumentParser) -> None:
    """The flags by which a running sidecar is found."""
    add_settings(command, INSTANCE)


def settle(options: argparse.Namespace) -> None:
    """Put the value of each setting of the command into `options`, and all of them with their sources as `given`.

    Raises:
        SettingError: a value that cannot be used, a file that cannot be read, an unknown key in it.
    """
    settings: tuple[Setting, ...] = getattr(options, "settings", ())
    if not settings:
        return
    file_name, file = _file(options.config_file, os.environ)
    sources = Sources(
        flags={setting.key: getattr(options, setting.key, None) for setting in settings},
        environ=os.environ,
        file=file,
        file_name=file_name,
        defaults={"state_dir": default_state_dir(os.environ)},
    )
    given: tuple[Given, ...] = resolved(settings, sources)
    options.given = given
    for one in given:
        setattr(options, one.setting.key, one.value)


def asked(options: argparse.Namespace, method: str, target: str) -> object:
    """The JSON that the chosen running sidecar answers to a request on its control socket.

    Raises:
        ControlError: it is not there, or it refused.
    """
    from hcc.cli import control

    return control.ask(control_socket(options), method, target)


def control_socket(options: argparse.Namespace, timeout_s: float | None = None) -> Path:
    """The control socket of the chosen running sidecar; `timeout_s` is for finding out which it is.

    Raises:
        ControlError: it is not there.
    """
    from hcc.cli.control import TIMEOUT_S, find_control_socket

    base = Path(options.state_dir)
    return find_control_socket(
        base, options.proxy_id, options.sidecar_for, TIMEOUT_S if timeout_s is None else timeout_s
    )


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Where state goes when --state-dir is not given: the system's or the user's run-time directory."""
    if os.geteuid() == 0:
        # Not that of a login, which goes at its end and where no service puts anything.
        return "/run/hcc"
    runtime = environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/hcc" if runtime else f"/tmp/hcc-{os.geteuid()}"  # noqa: S108 (made 0700, owner checked)


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> None:
    variables = ", ".join(name for name in (setting.own_variable, setting.variable) if name)
    default = setting.default_text.replace("`", "") or setting.default
    text = f"{setting.meaning}{f' (default: {default})' if default else ''}; {variables}".replace("%", "%%")
    if setting.switch:
        group.add_argument(setting.flag, nargs="?", const="true", metavar=setting.metavar, help=text)
    else:
        group.add_argument(setting.flag, metavar=setting.metavar, help=text)


def _file(flag: str | None, environ: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    # An empty variable counts as missing; the flag can say that there is none.
    named = flag if flag is not None else environ.get(CONFIG_FILE_VARIABLE) or None
    name = DEFAULT_CONFIG_FILE if named is None else named
    if not name:
        return name, {}
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as exc:
        if named is None and isinstance(exc, FileNotFoundError):
            return name, {}
        raise SettingError(f"{name}: expected a readable TOML file, found {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise SettingError(f"{name}: expected TOML, found {exc}") from exc
    import tomllib

    try:
        return name, tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise SettingError(f"{name}: expected TOML, found {exc}") from exc
