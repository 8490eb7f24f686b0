"""Versions as tuples, read from what programs print about themselves. Pure."""

import re

Version = tuple[int, ...]

_HAPROXY = re.compile(r"^HA-?Proxy version (\d+)\.(\d+)(?:\.|-dev)(\d+)", re.MULTILINE)
_CONSUL = re.compile(r"^Consul v(\d+)\.(\d+)\.(\d+)", re.MULTILINE)
_GO = re.compile(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?")
_OPENSSL = re.compile(r"^Running on (?:OpenSSL|SSL) (?:library )?version : (.+?)(?: +\d+ \w+ \d{4})?$", re.MULTILINE)


def haproxy_version(text: str) -> Version | None:
    """The version in the output of `haproxy -v` or `-vv`, None when it is not HAProxy's."""
    return _version(_HAPROXY, text)


def consul_version(text: str) -> Version | None:
    """The version in the output of `consul version`, None when it is not Consul's."""
    return _version(_CONSUL, text)


def go_version(text: str) -> Version | None:
    """The version in the output of `go version`, None when it is not Go's."""
    return _version(_GO, text)


def haproxy_tls(text: str) -> str | None:
    """The TLS library named by `haproxy -vv`, None for a HAProxy built without one."""
    found = _OPENSSL.search(text)
    return found[1] if found else None


def dotted(version: Version) -> str:
    """The version as people write it."""
    return ".".join(map(str, version))


def _version(pattern: re.Pattern[str], text: str) -> Version | None:
    found = pattern.search(text)
    return tuple(int(part or 0) for part in found.groups()) if found else None
