"""A request as intentions see it, and its path in the one form that rules are matched against.

Source: Envoy's path normalisation as Consul switches it on (`NormalizePath` of the HTTP connection manager; RFC
3986 sections 5.2.4, 6.2.2.2); reference/consul.md section 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from hcc.errors import PeerError

# HAProxy's buffer (tune.bufsize); no longer request comes through it.
MAX_TARGET_BYTES = 16_384
_TUNNEL = "CONNECT"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Those that Envoy's parser of HTTP/1 knows (source/common/http/http1/balsa_parser.cc) but MSEARCH; a server may take
# another for the one that it looks like.
METHODS = (
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "ACL", "BIND", "CHECKOUT", "COPY",
    "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "NOTIFY", "PROPFIND", "PROPPATCH", "PURGE",
    "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
)  # fmt: skip
_VISIBLE = re.compile(r"[!-~]*", re.ASCII)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*", re.ASCII)
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})", re.ASCII)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]", re.ASCII)
# Envoy escapes these where they stand as themselves.
_ESCAPED = re.compile(r'["<>^`{|}]')
_ESCAPED_SLASH = re.compile(r"%2f", re.IGNORECASE | re.ASCII)
_ESCAPED_BACKSLASH = re.compile(r"%5c", re.IGNORECASE | re.ASCII)
# A dot segment for those who first cut parameters off (servlets), and a name for those who do not.
_DOTS_WITH_PARAMETER = re.compile(r"/\.{1,2};")
_SLASHES = re.compile(r"/{2,}")


class RequestError(PeerError):
    """A request that is refused before any rule is looked at."""


class EscapedSlashes(Enum):
    """What is done about `%2F` and `%5C` in a path, in the words of Consul's mesh entry."""

    KEEP = "KEEP_UNCHANGED"
    REJECT = "REJECT_REQUEST"
    REDIRECT = "UNESCAPE_AND_REDIRECT"
    UNESCAPE = "UNESCAPE_AND_FORWARD"


class Underscores(Enum):
    """What is done about headers with an underscore in their name, in the words of Consul's mesh entry."""

    ALLOW = "ALLOW"
    REJECT = "REJECT_REQUEST"
    DROP = "DROP_HEADER"


@dataclass(frozen=True, slots=True)
class Normalization:
    """How requests are brought into one form: `HTTP.Incoming.RequestNormalization` of Consul's mesh entry.

    Args:
        path: decode what needs no escaping, resolve dot segments, take backslashes for slashes.
        merge_slashes: take several slashes in a row for one.
    """

    path: bool = True
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP
    underscores: Underscores = Underscores.ALLOW


CONSULS_DEFAULT = Normalization()


@dataclass(frozen=True, slots=True)
class Request:
    """What rules look at.

    Args:
        path: the request's target as it was sent; a query may follow, and HTTP/2's `:path` is the same.
        headers: names and values in order; a name may come several times. `host` is there, and for HTTP/2 stands for
            `:authority`; what an absolute target says beside it is not looked at.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def opens_tunnel(self) -> bool:
        """Whether nobody could look at what follows it; such a request is refused whatever the policy."""
        return self.method == _TUNNEL


class Look(IntEnum):
    """How closely rules look at a header; who looks more closely sees what the others see."""

    PRESENCE = 1
    VALUE = 2
    PATTERN = 3
    """By a regular expression."""


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A header that rules look at; its name in lower case."""

    name: str
    look: Look


@dataclass(frozen=True, slots=True)
class NormalRequest:
    """A request in the form that rules are matched against.

    Args:
        path: to be sent on instead of the one that came, or the application may read another one; no query.
        headers: values by lower-case name; those of several lines, whose values no rule looks at, joined by commas.
    """

    method: str
    path: str
    headers: Mapping[str, str]


def normalised(request: Request, how: Normalization, looked_at: tuple[LookedAt, ...] = ()) -> NormalRequest:
    """The request in the form that rules are matched against; any of them may look at the headers of `looked_at`.

    Raises:
        RequestError: there is no such form: a method that is not known; a path with anything but visible ASCII, with a
            fragment, an escaped NUL or `..;`, without a slash at its start, or over 16 KiB; no `host`; of headers that
            rules look at a control character, several lines where they look at its value, or anything but ASCII where
            regular expressions do; what the mesh refuses or redirects.
    """
    if request.method not in METHODS:
        raise RequestError(f"expected a method that is known, found {request.method!r}")
    path = _normalised_path(request.path, how)
    looks = {header.name: header.look for header in looked_at}
    headers: dict[str, str] = {}
    for sent, value in request.headers:
        name = sent.lower()
        if "_" in name and how.underscores is not Underscores.ALLOW:
            if how.underscores is Underscores.REJECT:
                raise RequestError("expected no header with an underscore in its name")
            continue
        if name in looks and _CONTROL.search(value):
            raise RequestError(f"expected no control character in the header {name}")
        if looks.get(name, 0) >= Look.PATTERN and not value.isascii():
            raise RequestError(f"expected ASCII in the header {name}, at which a regular expression looks")
        if name in headers and looks.get(name, 0) >= Look.VALUE:
            # Whether each of them is compared, or all in one, depends on who reads them, also on Envoy's version.
            raise RequestError(f"expected one line of the header {name}")
        trimmed = value.strip(" \t")
        headers[name] = f"{headers[name]},{trimmed}" if name in headers else trimmed
    if "host" not in headers:
        # An absolute target may name one all the same, for the application.
        raise RequestError("expected a Host header")
    return NormalRequest(request.method, path, headers)


def _normalised_path(target: str, how: Normalization) -> str:
    path = _origin_form(target).partition("?")[0]
    path = _without_escaped_slashes(path, how.escaped_slashes)
    if how.path:
        if "%00" in path:
            raise RequestError("expected a path without NUL, found %00")
        path = _PERCENT.sub(_decoded, path.replace("\\", "/"))
        path = _without_dot_segments(_ESCAPED.sub(_encoded, path))
        if _DOTS_WITH_PARAMETER.search(path):
            raise RequestError("expected a path whose dot segments have no parameter, found one with ;")
    return _SLASHES.sub("/", path) if how.merge_slashes else path


def _origin_form(target: str) -> str:
    if len(target) > MAX_TARGET_BYTES:
        raise RequestError(f"expected a path of at most {MAX_TARGET_BYTES} bytes, found {len(target)}")
    if not _VISIBLE.fullmatch(target):
        raise RequestError("expected a path of visible ASCII characters")
    if "#" in target:
        raise RequestError("expected a path without a fragment")
    absolute = _ABSOLUTE.match(target)
    if absolute:
        target = target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/"):
        raise RequestError("expected a path that starts with /")
    return target


def _without_escaped_slashes(path: str, how: EscapedSlashes) -> str:
    if how is EscapedSlashes.KEEP:
        return path
    unescaped = _ESCAPED_BACKSLASH.sub(r"\\", _ESCAPED_SLASH.sub("/", path))
    if unescaped != path and how is not EscapedSlashes.UNESCAPE:
        told = "is redirected" if how is EscapedSlashes.REDIRECT else "is refused"
        raise RequestError(f"a path with an escaped slash {told}")
    return unescaped


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    # What stays escaped keeps the case of its digits, as in Envoy.
    return character if _UNRESERVED.fullmatch(character) else found[0]


def _encoded(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def _without_dot_segments(path: str) -> str:
    first, *segments = path.split("/")
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join((first, *kept))
