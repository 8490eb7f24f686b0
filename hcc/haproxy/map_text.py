"""HAProxy's maps as text: files, what `show map` answers, and the commands that change them.

Keys hold no blank. Source: HAProxy configuration.txt section 7.3.1 (`map`), management.txt section 9.3; as measured
on 2.2.9 to 3.4.7: what follows `<<` is taken word by word as it is, nothing in it is an escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hcc.errors import PeerError


class MapTextError(PeerError):
    """HAProxy answered something that is not about a map."""


@dataclass(frozen=True, slots=True)
class MapChange:
    """How one map becomes another.

    Args:
        added: entries with keys that are new; `set map` refuses those.
        changed: entries whose keys are there; `add map` would make a second one.
        removed: keys.
    """

    added: tuple[tuple[str, str], ...] = ()
    changed: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.added or self.changed or self.removed)

    def __len__(self) -> int:
        """How many entries it is about."""
        return len(self.added) + len(self.changed) + len(self.removed)


def map_change(found: Mapping[str, str], wanted: Mapping[str, str]) -> MapChange:
    """What makes `found` what is `wanted`."""
    return MapChange(
        added=tuple(item for item in wanted.items() if item[0] not in found),
        changed=tuple(item for item in wanted.items() if found.get(item[0], item[1]) != item[1]),
        removed=tuple(key for key in found if key not in wanted),
    )


def map_file(entries: Mapping[str, str]) -> str:
    """A map as a file."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def parse_map_file(text: str) -> dict[str, str]:
    """The entries of a file that `map_file` made; lines that are none are left out."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {key: value for key, blank, value in pairs if blank and key}


def parse_references(text: str) -> dict[str, str]:
    """The answer to `show map FILE`: what each entry can be named by in place of its key.

    Raises:
        MapTextError: as of `parse_map`.
    """
    parse_map(text)
    return {f"#{line.partition(' ')[0]}": line.partition(" ")[2] for line in text.splitlines() if line.strip()}


def parse_map(text: str) -> dict[str, str]:
    """The answer to `show map FILE`: an address, a key and a value a line; of equal keys the first counts.

    Raises:
        MapTextError: it is another answer, as when no such map is loaded.
    """
    entries: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        address, _, entry = line.partition(" ")
        key, blank, value = entry.partition(" ")
        if not address.startswith("0x") or not blank:
            raise MapTextError(f"expected an answer to `show map`, found {text.strip()[:120]!r}")
        entries.setdefault(key, value)
    return entries


def payloads(entries: Iterable[tuple[str, str]], most_bytes: int) -> Iterator[str]:
    """The entries as payloads of `add map`, none longer than this."""
    lines: list[str] = []
    size = 0
    for key, value in entries:
        line = f"{key} {value}"
        if lines and size + len(line) + 1 > most_bytes:
            yield "\n".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Session:
    """A stream in `show sess`: its identifier, where it calls from (`10.0.0.1:4711`), and what serves it."""

    id: str
    peer: str
    backend: str
    server: str


def parse_sessions(text: str) -> tuple[Session, ...]:
    """The answer to `show sess`; streams without a server are left out."""
    found = []
    for line in text.splitlines():
        ident, colon, rest = line.strip().partition(":")
        fields = dict(word.partition("=")[::2] for word in rest.split())
        if colon and ident.startswith("0x") and fields.get("srv", "<none>") != "<none>":
            found.append(Session(ident, fields.get("src", ""), fields.get("be", ""), fields["srv"]))
    return tuple(found)
