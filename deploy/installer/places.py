"""Where things are: the work tree, its virtual environment, the cache; and locks on them."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from installer.talk import say

DEPLOY = Path(__file__).resolve().parent.parent
ROOT = DEPLOY.parent
VENV = ROOT / ".venv"

# Debian keeps daemons and ip where the PATH of an ordinary user does not look.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def cache() -> Path:
    """The folder for what was built or fetched, shared by all work trees of this user."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "hcc"


def on_path(program: str) -> Path | None:
    """The program on PATH or in a folder for daemons, None when there is none."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_PATH))
    found = shutil.which(program, path=folders)
    return Path(found).absolute() if found else None


def digest(*parts: str | bytes) -> str:
    """One key for all parts: sha256, in hexadecimal digits."""
    key = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        key.update(b"%d:" % len(raw))
        key.update(raw)
    return key.hexdigest()


@contextmanager
def locked(folder: Path, step: str) -> Iterator[None]:
    """Hold the folder for one installer at a time; a second one says that it waits."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(step, "another bootstrap is at it: waiting for it to finish")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
