"""One plain name out of several of Consul's names, for places that take few characters.

Letters, digits and `_.-` stay. Parts are joined by `:`; within a part every other byte, and the `:` itself,
becomes `::HH` (upper-case hex), and an empty part becomes `::--`. Different parts thus give different names.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache

_TOKEN = re.compile(r"::(?:--|([0-9A-F]{2}))|([^:]+|:)")
_PLAIN = frozenset((string.ascii_letters + string.digits + "_.-").encode())


# The same few names are made for every snapshot.
@lru_cache(maxsize=16_384)
def joined(*parts: str) -> str:
    """One name of several parts; no two different tuples of parts give the same name."""
    return ":".join(_escaped(part) for part in parts)


def _escaped(part: str) -> str:
    if not part:
        return "::--"
    return "".join(chr(byte) if byte in _PLAIN else f"::{byte:02X}" for byte in part.encode())


def parts(name: str) -> tuple[str, ...]:
    """The parts that `joined` made a name of; a name that it did not make is one part."""
    found = [bytearray()]
    for escaped, plain in _TOKEN.findall(name):
        if plain == ":":
            found.append(bytearray())
        else:
            found[-1] += bytes.fromhex(escaped) if escaped else plain.encode()
    try:
        split = tuple(part.decode() for part in found)
    except UnicodeDecodeError:
        return (name,)
    return split if joined(*split) == name else (name,)
