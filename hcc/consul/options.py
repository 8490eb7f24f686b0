"""The opaque `Config` of a registration, read as Consul reads it: weakly typed, and never fatal.

Numbers may be texts, flags may be numbers, names are compared without case. A value that cannot be used gives
a warning and the default. Source: reference/consul.md section 3.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from hcc.consul.fields import go_duration_ms, shown
from hcc.mesh.remembered import remembered
from hcc.mesh.snapshot import Protocol
from hcc.settings import MAX_PORT

_T = TypeVar("_T")

# HAProxy's timers are 32 bits of milliseconds, compared as signed: 24 days.
MAX_TIMEOUT_MS = 2_147_483_647
# Of a header's name, without the four characters that mean something in HAProxy's configuration.
_TOKEN = re.compile(r"[!&*+.^_`|~0-9A-Za-z-]{1,128}")
_FLAGS = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False, "": False}


class Options:
    """One `Config`. What cannot be used is added to `warnings`.

    Args:
        values: as registered.
        label: put before each warning, such as `upstream web: `.
        names: those that may be spelled without `_`, too. Where both are given, the one without counts, as with Consul:
            agents merge in what service-defaults say by the one with it.
    """

    def __init__(self, values: Mapping[str, object], label: str = "", names: Iterable[str] = ()) -> None:
        self._values = {name.lower(): value for name, value in values.items()}
        for name in names:
            spelled = self._values.pop(name.replace("_", ""), None)
            if spelled is not None:
                self._values[name] = spelled
        self._label = label
        self.warnings: list[str] = []

    def nested(self, name: str, names: Iterable[str]) -> Options:
        """The options of an object inside, with `names` as ours; empty when it is none. Its warnings are ours."""
        value = self._values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.warn(name, "an object", {})
            value = {}
        inner = Options(value, f"{self._label}{name}.", names)
        inner.warnings = self.warnings
        return inner

    def envoy_names(self) -> tuple[str, ...]:
        """The options that are meant for Envoy alone."""
        return tuple(name for name in self._values if name.startswith("envoy_"))

    def ignore(self, names: Iterable[str], why: str) -> None:
        """Note which of these options are given although they change nothing."""
        given = ", ".join(sorted(name for name in names if self._values.get(name) not in (None, "", {})))
        if given:
            self.warnings.append(f"{self._label}{given}: {why}; ignored")

    def number(self, name: str, default: int, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """A whole number within bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        number = _whole(value)
        if number is None or not low <= number <= high:
            return self.warn(name, f"a whole number from {low} to {high}", default)
        return number

    def duration_ms(self, name: str, default: int, *, low: int = 0) -> int:
        """Milliseconds of a Go duration text or of a number of nanoseconds."""
        value = self._values.get(name)
        if value is None:
            return default
        duration = go_duration_ms(int(value) if isinstance(value, float) and value.is_integer() else value)
        if duration is None or not low <= duration <= MAX_TIMEOUT_MS:
            return self.warn(name, "a duration such as 30s", default)
        return duration

    def flag(self, name: str) -> bool:
        """True or false, also as a text or a number."""
        value = self._values.get(name)
        if value is None:
            return False
        if isinstance(value, int | float):
            return bool(value)
        if not isinstance(value, str) or value.strip().lower() not in _FLAGS:
            return self.warn(name, "true or false", False)
        return _FLAGS[value.strip().lower()]

    def protocol(self) -> Protocol | None:
        """The protocol, None when not given; one that is unknown is tcp."""
        value = self._values.get("protocol")
        if value is None or value == "":
            return None
        known = {protocol.value: protocol for protocol in Protocol}
        found = known.get(value.strip().lower()) if isinstance(value, str) else None
        return found or self.warn("protocol", "tcp, http, http2 or grpc", Protocol.TCP)

    def header_name(self, name: str) -> str:
        """The name of an HTTP header, empty when not given."""
        value = self._values.get(name)
        if value is None or value == "":
            return ""
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            return self.warn(name, "the name of an HTTP header", "")
        return value

    def ip_address(self, name: str) -> str:
        """An IP address, empty when not given."""
        value = self._values.get(name)
        if value is None or value == "":
            return ""
        if not isinstance(value, str) or not is_ip(value):
            return self.warn(name, "an IP address", "")
        return value

    def host_and_port(self, name: str) -> tuple[str, int]:
        """Both parts of `host:port`, or empty and 0 when not given."""
        value = self._values.get(name)
        if value is None or value == "":
            return "", 0
        host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        number = _whole(port)
        if not is_host(host.strip("[]")) or number is None or not 0 < number <= MAX_PORT:
            return self.warn(name, "host:port", ("", 0))
        return host.strip("[]"), number

    def warn(self, name: str, expected: str, used: _T) -> _T:
        """Note that an option cannot be used; gives back what is used instead."""
        value = self._values.get(name)
        self.warnings.append(f"{self._label}{name}: expected {expected}, found {shown(value)}; ignored")
        return used


@remembered
def is_ip(text: str) -> bool:
    """Whether a text is an IP address, of version 4 or 6."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_host(text: str) -> bool:
    """Whether a text is an IP address or may be a host name."""
    return is_ip(text) or re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", text) is not None


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None
