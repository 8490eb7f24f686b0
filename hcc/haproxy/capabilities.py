"""What a HAProxy can do, by version and by build: the one table that holds version differences.

Leaves to others: running `haproxy -vv` (`hcc.haproxy.process`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto

from hcc.errors import HccError, SettingError


class HAProxyBuildError(SettingError):
    """The HAProxy found cannot serve: too old, or built without something that is needed."""


class BuildTextError(HccError):
    """What a program printed is not the output of `haproxy -vv`."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A HAProxy version; development and distribution suffixes are not kept."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        """As people write it: `2.6.12`."""
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def branch(self) -> str:
        """What is maintained together: `2.6`."""
        return f"{self.major}.{self.minor}"


class Feature(Enum):
    """Something that HAProxy can do since some version, or has to be told since then."""

    SHA2 = auto()
    POOL_LOW_CONN = auto()
    IDLE_PURGE = auto()
    SERVER_CERTIFICATE = auto()
    HTTP_RETURN = auto()
    DENY_HEADERS = auto()
    SHUT_IS_LISTED = auto()
    KEEPALIVE_TIMES = auto()
    MAP_TRANSACTION = auto()
    DISABLE_H2_UPGRADE = auto()
    NORMALIZE_URI = auto()
    LOOKAHEAD = auto()
    MATCH_LIMIT = auto()
    SET_TIMEOUT = auto()
    SERVER_CERT_UPDATE = auto()
    CA_UPDATE = auto()
    DYNAMIC_SERVERS = auto()
    ERROR_LOG_FORMAT = auto()
    IDLE_CLOSE_ON_RESPONSE = auto()
    NO_EXPOSE_FD = auto()
    RELOAD_ANSWER = auto()
    STREAMS_TO_SERVERS = auto()
    RECEIVE_BUFFER = auto()
    SPOE_CONNECTIONS = auto()
    NO_SNI_AUTO = auto()
    H2C_UPGRADE_IS_DROPPED = auto()
    LARGE_PAYLOAD = auto()


# Feature -> first version that has it. Source of each: reference/haproxy.md, the section named.
SINCE: dict[Feature, Version] = {
    Feature.SHA2: Version(2, 1),  # converter `sha2`, by which a certificate is remembered; section 3.4
    Feature.POOL_LOW_CONN: Version(2, 2),  # server keyword `pool-low-conn`; section 3.4
    # A server's idle connections are closed when its address changes: 2.2.9 does (tried), 2.0 keeps them even in
    # maintenance (haproxy/haproxy issue 1236).
    Feature.IDLE_PURGE: Version(2, 2),
    Feature.SERVER_CERTIFICATE: Version(2, 2),  # sample `ssl_s_der`: what a server showed; section 6.2
    # `http-request return` and `http-error`, both with a text of ours (configuration.txt of 2.2, section 4.2).
    Feature.HTTP_RETURN: Version(2, 2),
    Feature.DENY_HEADERS: Version(2, 2),  # `hdr` with `http-request deny`; tried
    # A frontend that was shut is gone from `show stat` in 2.2.9, and `STOP` in 2.6.12 and newer, where one that is
    # paused is `PAUSED` (tried). In between that is a guess: a paused one taken for shut is repaired, too.
    Feature.SHUT_IS_LISTED: Version(2, 3),
    # `clitcpka-idle` and its like: 2.6.12 has them (tried), 2.2.9 has not; made for 2.3 by the project's history.
    Feature.KEEPALIVE_TIMES: Version(2, 3),
    Feature.MAP_TRANSACTION: Version(2, 4),  # `prepare map`, `add map @N`, `commit map @N`; sections 4.1 and 4.4
    # `option disable-h2-upgrade`: 2.2.9 has it (tried), of what is older, and of 2.3, not all may have it.
    Feature.DISABLE_H2_UPGRADE: Version(2, 2, 9),
    Feature.NORMALIZE_URI: Version(2, 4),  # `http-request normalize-uri`, with expose-experimental-directives; tried
    # `http-request set-timeout server`, in backends (tried; not in 2.2.9).
    Feature.SET_TIMEOUT: Version(2, 4),
    # Regular expressions of PCRE: with every version, but not with every build.
    Feature.LOOKAHEAD: Version(2, 0),
    # `(*LIMIT_MATCH=..)` before an expression: PCRE has it since 8.33, PCRE2 always (pcrepattern(3)).
    Feature.MATCH_LIMIT: Version(2, 0),
    Feature.SERVER_CERT_UPDATE: Version(2, 4),  # `commit ssl cert` reaches servers too; section 4.1
    # `set ssl ca-file` is there since 2.5, but in 2.6.12 a `commit ssl cert` after it reaches nobody, and the next
    # `commit ssl ca-file` crashes the worker (tried; both are right in 2.8.25): before 2.8 CAs come by a reload.
    Feature.CA_UPDATE: Version(2, 8),
    Feature.DYNAMIC_SERVERS: Version(2, 6),  # `add server` without experimental-mode; section 4.1
    Feature.ERROR_LOG_FORMAT: Version(2, 5),  # keyword `error-log-format`, sample `fc_err_str`; section 9
    # `option idle-close-on-response` (2.6.12 has it). Before 2.4 HAProxy did so by itself (manual of 3.0); the first
    # releases of 2.4 do neither.
    Feature.IDLE_CLOSE_ON_RESPONSE: Version(2, 5),
    Feature.NO_EXPOSE_FD: Version(2, 6),  # the master passes listeners by itself; section 4.5
    Feature.RELOAD_ANSWER: Version(2, 7),  # the master's `reload` answers Success=0|1; section 4.5
    # 2.2.9 and 2.6.12 pass `Upgrade: h2c` on, and then whatever the tunnel holds; 2.8.25 to 3.4.7 do not (tried).
    Feature.H2C_UPGRADE_IS_DROPPED: Version(2, 8),
    # Global keywords `tune.h2.be.max-concurrent-streams` and `tune.h2.be.rxbuf` (tried; of 3.1 by its manual).
    Feature.STREAMS_TO_SERVERS: Version(2, 8),
    Feature.RECEIVE_BUFFER: Version(3, 1),
    # Each question to an SPOE agent that is under way has a connection of its own; before, some twenty share one, which
    # counts for `maxconn` as long as it is idle, too (tried on 3.0.11, 3.2.26 and 3.4.7).
    Feature.SPOE_CONNECTIONS: Version(3, 1),
    Feature.NO_SNI_AUTO: Version(3, 3),  # server keyword `no-sni-auto`, needed since SNI is automatic; 6.1
    Feature.LARGE_PAYLOAD: Version(3, 4),  # command-line payload up to 128 KiB; section 5
}

# Branches later than SINCE in which a feature cannot be relied on.
BROKEN: dict[Feature, frozenset[tuple[int, int]]] = {
    # In 3.0.11 as in 2.6.12: after `commit ssl ca-file` no later `commit ssl cert` reaches the binds (tried; right in
    # 2.8.25, 3.2.26 and 3.4.7). 2.9 and 3.1 have ended and were not tried.
    Feature.CA_UPDATE: frozenset(((2, 9), (3, 0), (3, 1))),
    Feature.DISABLE_H2_UPGRADE: frozenset(((2, 3),)),
}

OLDEST = Version(2, 0)
# What we cannot do without came with these. 1.9 spoke HTTP/2 to servers only with an option that 2.0 made the default.
NEEDED = (
    (Version(1, 8), "a master that reloads (-W)"),
    (Version(1, 9), "a master socket (-S)"),
    (OLDEST, "HTTP/2 to servers by default"),
)
NEWEST = Version(3, 4)  # whose features are in the table and were tried
SMALL_PAYLOAD_BYTES = 15 * 1024
LARGE_PAYLOAD_BYTES = 120 * 1024


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one HAProxy version can do. One newer than all known can do what the newest known can.

    Args:
        without: what cannot be used although this version has it.
    """

    version: Version
    without: frozenset[Feature] = frozenset()

    def has(self, feature: Feature) -> bool:
        branch = (self.version.major, self.version.minor)
        return feature not in self.without and self.version >= SINCE[feature] and branch not in BROKEN.get(feature, ())

    def fit(self, version: str) -> bool:
        """Whether a HAProxy of the version that it prints can do the same, as far as the version tells."""
        found = version_in(version)
        return found is None or self.can_the_same(replace(self, version=found))

    def can_the_same(self, other: Capabilities) -> bool:
        """Whether it is told and asked the same things."""
        return all(self.has(feature) == other.has(feature) for feature in Feature)

    @property
    def payload_bytes(self) -> int:
        """Longest command with its payload that the runtime socket takes; beyond it, 3.2.0 even died."""
        return LARGE_PAYLOAD_BYTES if self.has(Feature.LARGE_PAYLOAD) else SMALL_PAYLOAD_BYTES


def capabilities(version: Version) -> Capabilities:
    """What a HAProxy of that version can do."""
    return Capabilities(version)


def is_newer_than_known(version: Version) -> bool:
    """Whether it is of a branch after `NEWEST`, so that the table can only guess."""
    return (version.major, version.minor) > (NEWEST.major, NEWEST.minor)


@dataclass(frozen=True, slots=True)
class Build:
    """What `haproxy -vv` says. `openssl` is the library it runs on, empty without one.

    Args:
        text: the version as HAProxy prints it, distribution suffix included.
        features: options built in (`OPENSSL`, `PROMEX`), services and filters left out.
        filters: names of the filters built in (`SPOE`).
        pcre: version of the PCRE that it runs on, None with PCRE2 and without either.
    """

    version: Version
    text: str
    openssl: str
    features: frozenset[str]
    filters: frozenset[str]
    pcre: Version | None = None

    def label(self) -> str:
        """One phrase for a log line: `HAProxy 2.6.12-1 (OpenSSL 3.0.19 27 Jan 2026)`."""
        return f"HAProxy {self.text} ({self.openssl or 'no OpenSSL'})"


def capabilities_of(build: Build) -> Capabilities:
    """What a HAProxy of that version and build can do."""
    # `STATIC_PCRE2` alone, too: HAProxy is made with it then, and yet says `-PCRE2`.
    perl = any("PCRE" in feature for feature in build.features)
    limits = perl and (build.pcre is None or build.pcre >= _PCRE_WITH_LIMIT)
    lacks = ((Feature.LOOKAHEAD, not perl), (Feature.MATCH_LIMIT, not limits))
    return Capabilities(build.version, frozenset(feature for feature, lacking in lacks if lacking))


_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:[.-]dev\d+|\.(\d+))?")
_VERSION = re.compile(rf"^HA-?Proxy version {_NUMBERS.pattern}(\S*)", re.MULTILINE)
_FEATURES = re.compile(r"^Feature list\s*:\s*(.*)$", re.MULTILINE)
_OPTIONS = re.compile(r"^\s*OPTIONS\s*=\s*(.*)$", re.MULTILINE)
_RUNNING_SSL = re.compile(r"^Running on (?:OpenSSL|SSL library|AWS-LC) version\s*:\s*(.*)$", re.MULTILINE)
_PCRE = re.compile(r"^Running on PCRE version\s*:\s*(\d+)\.(\d+)", re.MULTILINE)
_PCRE_WITH_LIMIT = Version(8, 33)
_FILTER = re.compile(r"^\s*\[\s*(\w+)\] \w+", re.MULTILINE)


def parse_build(text: str) -> Build:
    """The build that the output of `haproxy -vv` describes.

    Raises:
        BuildTextError: it is not such an output.
    """
    match = _VERSION.search(text)
    if match is None:
        first = text.strip().partition("\n")[0][:80]
        raise BuildTextError(f"expected the output of `haproxy -vv`, found {first!r}")
    ssl = _RUNNING_SSL.search(text)
    pcre = _PCRE.search(text)
    return Build(
        version=_version(match),
        text=match[0].split()[2],
        openssl=ssl[1].strip() if ssl else "",
        features=_features(text),
        filters=frozenset(name for name in _FILTER.findall(text)),
        pcre=Version(int(pcre[1]), int(pcre[2])) if pcre else None,
    )


def version_in(text: str) -> Version | None:
    """That of a HAProxy by what `show info` says; None where that has no numbers in front."""
    match = _NUMBERS.match(text)
    return _version(match) if match else None


def _version(numbers: re.Match[str]) -> Version:
    return Version(int(numbers[1]), int(numbers[2]), int(numbers[3] or 0))


def checked_build(text: str) -> Build:
    """The build in the output of `haproxy -vv`, when it can serve.

    Raises:
        HAProxyBuildError: it is older than 2.0, or built without TLS or SPOE; the message names all that
        misses. BuildTextError: not such an output.
    """
    build = parse_build(text)
    lacks = tuple(_lacks(build))
    if lacks:
        raise HAProxyBuildError(
            f"expected HAProxy {OLDEST.branch} or newer with TLS and SPOE, "
            f"found {build.text}, {' and '.join(lacks)}; install one that has all of it "
            "(Debian, Ubuntu: apt-get install haproxy) or name one with --haproxy"
        )
    return build


def _lacks(build: Build) -> list[str]:
    missing = ", ".join(what for since, what in NEEDED if build.version < since)
    checks = (
        (build.version < OLDEST, f"too old (without {missing})"),
        ("OPENSSL" not in build.features, "built without OpenSSL (USE_OPENSSL)"),
        ("SPOE" not in build.filters, "built without the SPOE filter"),
    )
    return [phrase for lacking, phrase in checks if lacking]


def _features(text: str) -> frozenset[str]:
    listed = _FEATURES.search(text)
    if listed:
        return frozenset(word[1:] for word in listed[1].split() if word.startswith("+"))
    # Before 2.0 there is no feature list, only the options of the build.
    options = _OPTIONS.search(text)
    words = options[1].split() if options else []
    return frozenset(word[4:-2] for word in words if word.startswith("USE_") and word.endswith("=1"))
