"""Private files and directories, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
# Names that `mkstemp` makes of ours.
_UNFINISHED = re.compile(r"\.[^.].*\.[a-z0-9_]{8}")


def private_directory(path: str) -> None:
    """Make a directory that only its owner may enter; one that exists is closed to others."""
    Path(path).mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    Path(path).chmod(PRIVATE_DIRECTORY)


def write_private(path: str, text: str) -> None:
    """Replace a file's content, mode 0600. Readers see the old or the new text, after a crash too."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        # mkstemp makes the file 0600, whatever the umask.
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        remove(temporary)
        raise
    _sync_directory(target.parent)


def remove_unfinished(directory: str) -> None:
    """Remove what `write_private` left there when its process was killed; nobody may be writing."""
    for path in Path(directory).iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            remove(str(path))


def is_below(path: str, directory: str) -> bool:
    """Whether a path leads into a directory, links followed."""
    # Not by Path.resolve(), which raises where links lead in a circle, as others may have them do.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def read_text(path: str) -> str | None:
    """A file's text, None when there is no such file."""
    try:
        with Path(path).open(encoding="utf-8", newline="", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def size_of(path: str) -> int:
    """A file's size in bytes, 0 when there is no such file."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def read_since(path: str, start: int) -> str:
    """What was appended to a file since it had that size; all of it when it has become smaller."""
    try:
        with Path(path).open("rb") as file:
            file.seek(start if start <= size_of(path) else 0)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def remove(*paths: str) -> None:
    """Remove files; those that are not there are fine."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
