"""Words of HAProxy's configuration file and command line, safe to put there.

Whatever comes from outside passes here, so that no value can start a new word, line, comment or variable.
Source: HAProxy configuration.txt section 2.2, quoting and escaping.
"""

from __future__ import annotations

import posixpath
import re
from ipaddress import ip_address

from hcc.errors import HccError
from hcc.mesh.remembered import remembered


class WordError(HccError):
    """A value cannot stand in HAProxy's configuration."""


_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_PATH = re.compile(r"/[^\x00-\x20\x7f\"'\\#$;<>]*")
_DIRECTORY = re.compile(r"/[^\x00-\x20\x7f\"'\\#$;<>,()\[\]]*")
_HEADER = re.compile(r"[A-Za-z0-9!&*+.^_`|~-]+")
_WORD = re.compile(r"[A-Za-z0-9_./,:@-]+")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")
_URI = re.compile(r"[A-Za-z0-9_./:@&+=~$%-]+")
_PATTERN = re.compile(r"[A-Za-z0-9_./:@&+=,;~$%-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@=,+-]+")
# What stands between strong quotes, where nothing but their end means something; and what is told by its bytes. So are
# `#` and all but the first of blanks in a row, which the Data Plane API 1.2.5 changes between quotes, too.
_PARTS = re.compile(r"((?:[!\"$-&(-~]|(?<! ) )+)|((?:[^ !\"$-&(-~]|(?<= ) )+)")
_MODE = re.compile(r"[0-7]{3,4}")
MAX_PORT = 65535
# HAProxy before 3.4 finds no backend with a name of 4,096 characters or more.
MAX_NAME = 4_000
# HAProxy's own limit for sockets that it listens on or connects to; tried on 2.2.9 to 3.4.7.
MAX_SOCKET_PATH_BYTES = 97


def name(text: str) -> str:
    """A section's or server's name, unchanged when HAProxy takes it."""
    if len(text) > MAX_NAME:
        raise WordError(f"expected a name of at most {MAX_NAME} characters, found {len(text)}: {text[:50]}..")
    return _checked(_NAME, text, "letters, digits and _.:-")


def word(text: str) -> str:
    """A plain keyword value such as an ALPN list."""
    return _checked(_WORD, text, "letters, digits and _./,:@-")


def header(text: str) -> str:
    """The name of an HTTP header: RFC 9110 section 5.6.2, without what HAProxy's quoting would read."""
    return _checked(_HEADER, text, "a header name")


def path(text: str) -> str:
    """An absolute path; what would need quoting is refused."""
    return _checked(_PATH, text, "an absolute path without blanks, quotes, \\, #, $, ;, < and >")


def directory(text: str) -> str:
    """That of files which an argument in parentheses, or the list of certificates, can name, too."""
    return _checked(_DIRECTORY, text, "an absolute path without blanks, quotes, \\, #, $, ;, <, >, commas and brackets")


def listening_path(text: str) -> str:
    """The path of a socket to listen on."""
    if "," in text:
        raise WordError(f"expected a path without a comma, at which another address begins, found {text!r}")
    return socket_path(text)


def socket_path(text: str) -> str:
    """The path of a socket; before it listens, HAProxy binds a temporary name, and it has room for all alike."""
    if len(text.encode(errors="surrogateescape")) > MAX_SOCKET_PATH_BYTES:
        raise WordError(f"expected a socket path of at most {MAX_SOCKET_PATH_BYTES} bytes, found {text!r}")
    return path(text)


def plain_path(text: str) -> str:
    """The shortest spelling of an absolute path, links aside."""
    # Two slashes at the beginning would stay two.
    return posixpath.normpath(f"/{text.lstrip('/')}")


def uri(text: str) -> str:
    """A URI in a value that HAProxy computes, and so reads `%`; `$` means something between quotes only."""
    return _checked(_URI, text, "a URI without blanks, quotes, separators, \\ and #").replace("%", "%%")


def pattern(text: str) -> str:
    """A URI as a pattern to compare with, in which HAProxy reads nothing but itself."""
    return _checked(_PATTERN, text, "a URI without blanks, quotes, \\ and #")


def mode(text: str) -> str:
    """The octal mode of a file."""
    return _checked(_MODE, text, "an octal file mode such as 0600")


def quoted(text: str) -> str:
    """Any text but an empty one, as one word of which HAProxy's parser of lines leaves just that text."""
    if not text or "\0" in text:
        raise WordError(f"expected a text without NUL, found {text!r}")
    if _PLAIN.fullmatch(text):
        return text
    return "".join(f"'{strong}'" if strong else _in_bytes(rest) for strong, rest in _PARTS.findall(text))


def _in_bytes(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def number(value: int, most: int = 2**31 - 1) -> str:
    """A number from 0 to `most`, in decimal."""
    if isinstance(value, bool) or not 0 <= value <= most:
        raise WordError(f"expected a number from 0 to {most}, found {value!r}")
    return str(int(value))


def milliseconds(value: int) -> str:
    """A duration: `5000ms`."""
    return f"{number(value)}ms"


def address(host: str, port: int) -> str:
    """An address with port as HAProxy reads it: `10.0.0.1:80`, `[::1]:80`."""
    return f"{ip(host)}:{number(port, MAX_PORT)}"


# Those of all servers are looked at for every snapshot.
@remembered
def ip(host: str) -> str:
    """An IP address as it stands before `:port`, brackets around IPv6."""
    try:
        parsed = ip_address(host)
    except ValueError as exc:
        raise WordError(f"expected an IP address, found {host!r}") from exc
    if "%" in host:
        raise WordError(f"expected an IP address without a zone, found {host!r}")
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)  # noqa: PLR2004 - IPv6


def is_ip(host: str) -> bool:
    """Whether it is an IP address rather than a host name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def host(text: str) -> str:
    """An IP address as `ip` gives it, or a host name."""
    return text if _HOST.fullmatch(text) and not text.replace(".", "").isdigit() else ip(text)


def _checked(pattern: re.Pattern[str], text: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise WordError(f"expected {expected}, found {text!r}")
    return text
