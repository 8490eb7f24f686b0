"""The Go program's flags in our words.

Go's flag package takes one dash or two, `-name value` and `-name=value`; a boolean's value needs the `=`.
Source: Go's package flag, section "Command line flag syntax"; haproxy-consul-connect main.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hcc.cli.settings_table import ALL, CONFIG_FILE_VARIABLE
from hcc.errors import SettingError
from hcc.settings import Enforcement, parse_boolean

_WITH_VALUE = {
    "sidecar-for": "--sidecar-for",
    "sidecar-for-tag": "--sidecar-for-tag",
    "http-addr": "--http-addr",
    "token": "--token",
    "log-level": "--log-level",
    "haproxy": "--haproxy",
    "dataplane": "--dataplane",
    "haproxy-cfg-base-path": "--state-dir",
    "stats-addr": "--stats-addr",
}
_REGISTER = "stats-service-register"
_VERSION = "version"
_INTENTIONS = "enable-intentions"
# It had these, too: what is decided otherwise here, and how.
_GONE = {
    "haproxy-param": "hcc writes all of haproxy.cfg itself; timeouts and limits are keys of the registration's config",
    "mode-tcp": "a service's protocol is that of its service-defaults in Consul, tcp by default",
}
# Of `hcc run` alone; messages may tell to use them.
_OURS = {setting.flag.lstrip("-"): setting.own_variable for setting in ALL if setting.has_flag}
_OURS["config-file"] = CONFIG_FILE_VARIABLE
_HELP = ("h", "help")

HELP = """\
usage: haproxy-consul-connect -sidecar-for ID [flags]

The flags of the Go program haproxy-consul-connect, with one dash or two; `hcc run` is the modern command.

  -sidecar-for ID               service whose sidecar to run
  -sidecar-for-tag TAG          the same, found by a tag of the service
  -http-addr ADDR               Consul agent (default 127.0.0.1:8500)
  -token TOKEN                  Consul ACL token
  -log-level LEVEL              trace, debug, info, warn, error or fatal (default INFO)
  -haproxy PATH                 HAProxy program
  -dataplane PATH               HAProxy Data Plane API program
  -haproxy-cfg-base-path DIR    where the working directory is made
  -stats-addr HOST:PORT         address of the status page, /metrics, /health and /ready
  -stats-service-register       register that address in Consul
  -enable-intentions[=BOOL]     check callers against Consul's intentions (default true)
  -version                      print the version and exit
"""


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return any(argument.lstrip("-") in _HELP for argument in arguments if argument.startswith("-"))


def translated(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments of `hcc run` that say the same.

    Raises:
        SettingError: an unknown flag, a flag without its value, or a word that is no flag.
    """
    return tuple(_translate(iter(arguments)))


def _translate(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        name, has_value, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or word.startswith("---") or not name:
            raise SettingError(f"expected a flag such as -sidecar-for, found {word!r}")
        if name == _INTENTIONS:
            enforced = _boolean(name, value if has_value else "true")
            yield f"--intentions={(Enforcement.ENFORCE if enforced else Enforcement.OFF).value}"
        elif name == _VERSION:
            if _boolean(name, value if has_value else "true"):
                yield "--version"
        elif name == _REGISTER:
            yield f"--{name}={value}" if has_value else f"--{name}"
        elif name in _WITH_VALUE:
            given = value if has_value else _next(words, name)
            # The Go program's defaults are empty: to say so is to say nothing.
            if given:
                yield f"{_WITH_VALUE[name]}={given}"
        else:
            raise SettingError(_refusal(name))


def _refusal(name: str) -> str:
    """Why the flag is not taken, and what to use instead."""
    if name in _GONE:
        return f"flag -{name} is not taken any more, leave it out: {_GONE[name]}"
    if name in _OURS:
        return f"flag -{name} is not of the Go program: use `hcc run`, or set {_OURS[name]}"
    known = ", ".join(f"-{flag}" for flag in sorted((*_WITH_VALUE, _REGISTER, _VERSION, _INTENTIONS)))
    return f"unknown flag -{name}; expected one of {known}"


def _boolean(name: str, text: str) -> bool:
    try:
        return parse_boolean(text)
    except SettingError as exc:
        raise SettingError(f"flag -{name}: {exc}") from exc


def _next(words: Iterator[str], name: str) -> str:
    value = next(words, None)
    if value is None:
        raise SettingError(f"flag -{name} expects a value, found none")
    return value
