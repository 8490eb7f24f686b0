"""Every setting of a sidecar, once: its flag, its variables, its key in the TOML file, what it means.

Parser, resolution (`hcc.cli.resolution`), `hcc settings` and docs/flags.md are made of this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hcc.errors import SettingError
from hcc.settings import (
    Enforcement,
    parse_access_log,
    parse_boolean,
    parse_directory,
    parse_duration,
    parse_listen_address,
    parse_log_level,
    parse_verify_upstream,
    whole_number,
)

MAX_SPOE_WORKERS = 64
MIN_INTERVAL_S = 1.0
DEFAULT_CONFIG_FILE = "/etc/hcc/hcc.toml"
CONFIG_FILE_VARIABLE = "HCC_CONFIG_FILE"


class Group(Enum):
    """Headings of --help, in this order."""

    PROXY = "which proxy (one of)"
    CONSUL = "the Consul agent"
    HAPROXY = "HAProxy"
    OPERATION = "operation"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing an operator may choose.

    Args:
        key: in the TOML file; the flag is `--` and this with dashes, the variable `HCC_` and this in capitals.
        metavar: what kind of text it takes.
        parse: the value of a text; raises SettingError that says what was expected and found.
        default: a text for `parse`, when nobody chooses.
        default_text: the default in words, where `default` does not tell.
        variable: of Consul's own programs, weaker than ours.
        has_flag: False for what is only a variable in Consul's own programs, too.
        switch: true or false; the flag alone means true.
        secret: never shown.
        rivals: settings of which only one is given; a stronger source of one silences the others.
    """

    key: str
    group: Group
    metavar: str
    meaning: str
    parse: Callable[[str], object] = str
    default: str = ""
    default_text: str = ""
    variable: str = ""
    has_flag: bool = True
    switch: bool = False
    secret: bool = False
    rivals: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.key.replace('_', '-')}"

    @property
    def own_variable(self) -> str:
        return f"HCC_{self.key.upper()}"


def _worker_count(text: str) -> int:
    number = whole_number(text, 1, MAX_SPOE_WORKERS)
    if number is None:
        raise SettingError(f"expected a whole number from 1 to {MAX_SPOE_WORKERS}, found {text!r}")
    return number


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < MIN_INTERVAL_S:
        raise SettingError(f"expected a duration of at least {MIN_INTERVAL_S:g}s, found {text!r}")
    return seconds


def _optional_address(text: str) -> object:
    # The Go program's default is the empty string, so scripts pass it to mean "none".
    return parse_listen_address(text) if text else None


def one_of(*words: str) -> Callable[[str], str]:
    """A parser that takes one of these words."""
    given = [word for word in words if word]

    def parse(text: str) -> str:
        if text not in words:
            raise SettingError(f"expected {', '.join(given[:-1])} or {given[-1]}, found {text!r}")
        return text

    return parse


def _switch(key: str, group: Group, meaning: str, default: str, **more: Any) -> Setting:  # noqa: ANN401 (as Setting)
    return Setting(key, group, "true|false", meaning, parse_boolean, default, switch=True, **more)


def _consul(key: str, metavar: str, meaning: str, variable: str, default_text: str = "") -> Setting:
    return Setting(key, Group.CONSUL, metavar, meaning, variable=variable, default_text=default_text)


# As in Consul's own programs, the proxy ID comes before the service where the environment gives both.
PROXY_ID = Setting("proxy_id", Group.PROXY, "ID", "the proxy's own ID", variable="CONNECT_PROXY_ID", rivals="proxy")
SIDECAR_FOR = Setting(
    "sidecar_for",
    Group.PROXY,
    "ID",
    "the sidecar of the service with this ID",
    variable="CONNECT_SIDECAR_FOR",
    rivals="proxy",
)
STATE_DIR = Setting(
    "state_dir",
    Group.OPERATION,
    "DIR",
    "base directory; each proxy gets one of mode 0700 below it",
    default_text="as root `/run/hcc`, else `$XDG_RUNTIME_DIR/hcc` or `/tmp/hcc-UID`",
    parse=parse_directory,
)
HAPROXY = Setting("haproxy", Group.HAPROXY, "PATH", "HAProxy program", default_text="PATH, then the Python package")

# What a command needs to find a running sidecar.
INSTANCE = (SIDECAR_FOR, PROXY_ID, STATE_DIR)

# What `hcc run` takes.
ALL = (
    PROXY_ID,
    SIDECAR_FOR,
    Setting("sidecar_for_tag", Group.PROXY, "TAG", "the sidecar of the service with this tag", rivals="proxy"),
    _consul("http_addr", "ADDR", "host:port, URL or unix:///path", "CONSUL_HTTP_ADDR", default_text="127.0.0.1:8500"),
    Setting(
        "token",
        Group.CONSUL,
        "TOKEN",
        "ACL token; as a flag, others see it in the process list",
        variable="CONSUL_HTTP_TOKEN",
        secret=True,
        rivals="token",
    ),
    Setting(
        "token_file",
        Group.CONSUL,
        "FILE",
        "file that holds the ACL token; read again on SIGHUP",
        variable="CONSUL_HTTP_TOKEN_FILE",
        rivals="token",
    ),
    Setting(
        "auth",
        Group.CONSUL,
        "USER:PASSWORD",
        "HTTP basic authentication",
        variable="CONSUL_HTTP_AUTH",
        has_flag=False,
        secret=True,
    ),
    _switch("ssl", Group.CONSUL, "speak TLS to the agent", "false", variable="CONSUL_HTTP_SSL", has_flag=False),
    _switch(
        "ssl_verify",
        Group.CONSUL,
        "verify the agent's certificate",
        "true",
        variable="CONSUL_HTTP_SSL_VERIFY",
        has_flag=False,
    ),
    _consul("ca_file", "FILE", "CA certificates of the agent", "CONSUL_CACERT"),
    _consul("ca_path", "DIR", "directory of CA certificates", "CONSUL_CAPATH"),
    _consul("client_cert", "FILE", "client certificate shown to the agent", "CONSUL_CLIENT_CERT"),
    _consul("client_key", "FILE", "its key", "CONSUL_CLIENT_KEY"),
    _consul("tls_server_name", "NAME", "name expected in the agent's certificate", "CONSUL_TLS_SERVER_NAME"),
    _consul("namespace", "NAME", "Consul Enterprise namespace", "CONSUL_NAMESPACE"),
    _consul("partition", "NAME", "Consul Enterprise partition", "CONSUL_PARTITION"),
    HAPROXY,
    Setting(
        "control",
        Group.HAPROXY,
        "direct|dataplane",
        "over HAProxy's own sockets, or through the Data Plane API",
        parse=one_of("", "direct", "dataplane"),
        default_text="direct",
    ),
    Setting(
        "dataplane",
        Group.HAPROXY,
        "PATH",
        "Data Plane API program; to name one means to use it",
        default_text="`DATAPLANEAPI_BIN`, then PATH",
    ),
    Setting(
        "intentions",
        Group.HAPROXY,
        "enforce|audit|off",
        "what Consul's intentions decide: who gets in; only what is logged and counted; nothing",
        parse=lambda text: Enforcement(one_of(*(each.value for each in Enforcement))(text)),
        default="enforce",
    ),
    Setting(
        "verify_upstream",
        Group.HAPROXY,
        "probe|response|both|off",
        "see that upstreams' instances are who they should be: before they get traffic, on every answer, or both",
        parse=parse_verify_upstream,
        default="both",
    ),
    Setting("spoe_workers", Group.HAPROXY, "N", "processes that decide", parse=_worker_count, default="2"),
    Setting(
        "access_log",
        Group.HAPROXY,
        "TARGET",
        "log each connection or request as JSON to stdout, a syslog socket (/dev/log) or a syslog server (IP:PORT)",
        parse=parse_access_log,
        default="off",
    ),
    STATE_DIR,
    Setting(
        "stats_addr",
        Group.OPERATION,
        "HOST:PORT",
        "serve the status page, /api/v1/status, /metrics, /health and /ready there",
        parse=_optional_address,
        default_text="off",
    ),
    _switch("stats_service_register", Group.OPERATION, "register that address in Consul", "false"),
    _switch("metrics_per_endpoint", Group.OPERATION, "show each endpoint in /metrics, by its address", "false"),
    Setting(
        "resync",
        Group.OPERATION,
        "TIME",
        "compare all that HAProxy runs with what is wanted, and repair it, this often",
        parse=_interval,
        default="5m",
    ),
    Setting(
        "drain_timeout",
        Group.OPERATION,
        "TIME",
        "how long open connections may finish after SIGTERM",
        parse=parse_duration,
        default="15s",
    ),
    Setting(
        "on_exit",
        Group.OPERATION,
        "drain|leave",
        "SIGTERM drains and ends HAProxy, or leaves it to the next hcc",
        parse=one_of("drain", "leave"),
        default="drain",
    ),
    Setting(
        "drain_delay",
        Group.OPERATION,
        "TIME",
        "not ready, but serving, this long before listeners close",
        parse=parse_duration,
        default="0s",
    ),
    _switch("drain_maintenance", Group.OPERATION, "tell Consul's catalogue of a drain by maintenance mode", "false"),
    _switch(
        "no_cached_start",
        Group.OPERATION,
        "neither keep Consul's answers nor start from them while the agent is down",
        "false",
    ),
    Setting("log_level", Group.OPERATION, "LEVEL", "debug, info, warn or error", parse=parse_log_level, default="info"),
    Setting(
        "log_format",
        Group.OPERATION,
        "text|json|auto",
        "one line an event; auto: text on a terminal, JSON elsewhere",
        parse=one_of("text", "json", "auto"),
        default="auto",
    ),
)
