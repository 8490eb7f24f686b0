"""The operator's choices for one sidecar, as a value; `hcc.cli` reads them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum, StrEnum
from ipaddress import ip_address

from hcc.errors import SettingError

MAX_PORT = 65_535
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]+)?")
# Python refuses to read a number of thousands of digits.
_WHOLE = re.compile(r"[0-9]{1,18}")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 10 * 365 * 86_400.0


class Enforcement(Enum):
    """What is done about callers whom Consul's intentions deny."""

    ENFORCE = "enforce"
    """They are refused, and so is whoever is in doubt."""
    AUDIT = "audit"
    """They are let in, logged and counted."""
    OFF = "off"
    """Nobody asks."""

    @property
    def asks(self) -> bool:
        """Whether intentions are looked at."""
        return self is not Enforcement.OFF


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host (name or IP address, empty for every address) and a TCP port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which registered proxy to run; exactly one of the three is given."""

    sidecar_for: str = ""
    proxy_id: str = ""
    sidecar_for_tag: str = ""

    def phrase(self) -> str:
        """The choice in words, for messages."""
        if self.proxy_id:
            return f"proxy {self.proxy_id}"
        if self.sidecar_for:
            return f"the sidecar of service {self.sidecar_for}"
        return f"the sidecar of the service tagged {self.sidecar_for_tag}"


class VerifyUpstream(StrEnum):
    """How it is seen to that an upstream's instance is who it should be."""

    PROBE = "probe"
    """Before it gets traffic, and from time to time, by a handshake of ours."""
    RESPONSE = "response"
    """On every connection, before anything of an answer comes through."""
    BOTH = "both"
    OFF = "off"

    @property
    def probes(self) -> bool:
        return self in (VerifyUpstream.PROBE, VerifyUpstream.BOTH)

    @property
    def checks_answers(self) -> bool:
        return self in (VerifyUpstream.RESPONSE, VerifyUpstream.BOTH)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything `hcc run` is told, apart from how to reach Consul (`hcc.consul.environment`).

    Args:
        haproxy: path or name of the program; empty: look on PATH, then for the Python package.
        control: how HAProxy is driven, `direct` or `dataplane`.
        dataplane: path or name of the Data Plane API; empty: look in DATAPLANEAPI_BIN, then on PATH.
        state_dir: base directory; each proxy has its own below it.
        stats_addr: where the status page, /metrics, /health and /ready are served; None: on the control socket only.
        metrics_per_endpoint: whether /metrics has each endpoint of an upstream, by its address.
        access_log: where HAProxy logs each connection or request: `stdout`, a syslog socket's path, a syslog server's
            `address:port`; empty for nowhere.
        resync_s: how often what HAProxy runs is compared with what is wanted.
        on_exit: what SIGTERM does to HAProxy: `drain` ends it, `leave` lets it go on for the next hcc.
        drain_timeout_s: how long open connections may take to finish after SIGTERM.
        drain_delay_s: how long before that readiness is off and everything still served.
        drain_maintenance: put the proxy into Consul's maintenance for the drain; each start takes it out of that.
        cached_start: keep Consul's answers, and start from them when the agent does not answer.
    """

    selection: Selection
    haproxy: str
    control: str
    dataplane: str
    state_dir: str
    stats_addr: ListenAddress | None
    stats_service_register: bool
    metrics_per_endpoint: bool
    intentions: Enforcement
    spoe_workers: int
    resync_s: float
    on_exit: str
    drain_timeout_s: float
    drain_delay_s: float
    drain_maintenance: bool
    cached_start: bool
    log_level: str
    log_format: str = "auto"
    access_log: str = ""
    verify_upstream: VerifyUpstream = VerifyUpstream.BOTH


def parse_duration(text: str) -> float:
    """Seconds in `1.5`, `1.5s`, `200ms`, `2m`, `1h` or `1h30m`; the longest is 10 years.

    Raises:
        SettingError: anything else.
    """
    given = text.strip()
    parts = list(_DURATION_PART.finditer(given))
    if _SECONDS.fullmatch(given):
        found = float(given)
    elif parts and "".join(part[0] for part in parts) == given:
        found = sum(float(part[1]) * _UNIT_S[part[2]] for part in parts)
    else:
        found = math.inf
    if found > _LONGEST_S:
        raise SettingError(f"expected a duration such as 15s, 500ms, 2m or 1h30m, 10 years at most, found {text!r}")
    return found


def parse_directory(text: str) -> str:
    """The name of a directory; an empty one would be wherever hcc was started.

    Raises:
        SettingError: there is none.
    """
    if not text.strip():
        raise SettingError("expected a directory, found nothing")
    return text


def parse_boolean(text: str) -> bool:
    """The truth value of `text`, by the words that Go's flag package takes.

    Raises:
        SettingError: anything else.
    """
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    msg = f"expected true or false, found {text!r}"
    raise SettingError(msg)


def whole_number(text: str, low: int, high: int) -> int | None:
    """The number from `low` to `high` that the text is, in ASCII digits alone; None when it is none."""
    number = int(text) if _WHOLE.fullmatch(text) else None
    return number if number is not None and low <= number <= high else None


def is_host_name(text: str) -> bool:
    """Whether it can be looked up, and said in a handshake: no part between dots is empty or has over 63 characters."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def parse_listen_address(text: str) -> ListenAddress:
    """The address in `host:port`, `:port` or `[ipv6]:port`.

    Raises:
        SettingError: no port, or one outside 1 to 65535; a host that can be none.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    number = whole_number(port, 1, MAX_PORT) if separator else None
    if number is None:
        msg = f"expected HOST:PORT with a port from 1 to {MAX_PORT}, found {text!r}"
        raise SettingError(msg)
    if not is_host_name(host) or "\0" in host:
        raise SettingError(f"expected HOST:PORT with a host name or an IP address, found {text!r}")
    return ListenAddress(host, number)


def parse_log_level(text: str) -> str:
    """One of debug, info, warning, error, critical; the names of Go's logrus are taken as well.

    Raises:
        SettingError: anything else.
    """
    names = {"trace": "debug", "warn": "warning", "fatal": "critical", "panic": "critical"}
    level = names.get(text.lower(), text.lower())
    if level not in ("debug", "info", "warning", "error", "critical"):
        msg = f"expected one of trace, debug, info, warn, error, fatal, found {text!r}"
        raise SettingError(msg)
    return level


def parse_verify_upstream(text: str) -> VerifyUpstream:
    """One of probe, response, both, off.

    Raises:
        SettingError: anything else.
    """
    try:
        return VerifyUpstream(text)
    except ValueError as exc:
        msg = f"expected probe, response, both or off, found {text!r}"
        raise SettingError(msg) from exc


def parse_access_log(text: str) -> str:
    """Where the access log goes; empty for `off`.

    Raises:
        SettingError: not `off`, `stdout`, an absolute path, or an IP address with a port.
    """
    if text in ("off", ""):
        return ""
    if text == "stdout" or text.startswith("/"):
        return text
    try:
        ip_address(parse_listen_address(text).host)
    except (SettingError, ValueError) as exc:
        msg = f"expected off, stdout, the path of a syslog socket or IP:PORT of a syslog server, found {text!r}"
        raise SettingError(msg) from exc
    return text
