"""Which endpoints were admitted, on disk: beside a HAProxy that runs, the next hcc goes on with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from hcc.actors.verifier import Register
from hcc.haproxy.files import read_text, write_private
from hcc.log import LastingProblem
from hcc.mesh.json_form import JsonFormError, from_json, to_json
from hcc.mesh.peer_book import Kept

NAME = "peers.json"
# Of a book that is full, with the longest names, several times.
MAX_BYTES = 32 * 1024 * 1024

_log = logging.getLogger(__name__)


class PeersFile:
    """The file in one proxy's directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._problem = LastingProblem(_log)

    def store(self, kept: Kept) -> bool:
        """Whether this is kept now; a disk that does not take it is said once."""
        try:
            write_private(str(self._path), json.dumps(to_json(kept), separators=(",", ":")))
        except OSError as exc:
            self._problem.say(f"what is known of endpoints cannot be kept for the next hcc: {exc.strerror}")
            return False
        self._problem.over()
        return True

    def load(self) -> Kept:
        """What was kept; nothing when there is no file, or one that is no use."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise JsonFormError(f"expected at most {MAX_BYTES} bytes")
            return from_json(Kept, json.loads(read_text(str(self._path)) or ""))
        except FileNotFoundError:
            return Kept()
        except (OSError, ValueError, RecursionError, JsonFormError) as exc:
            _log.warning("%s is of no use, all endpoints are probed before they get traffic: %s", self._path, exc)
            return Kept()


def register_of(file: PeersFile, *, running: bool) -> Register:
    """The book to begin with.

    Args:
        file: where it is kept.
        running: whether a HAProxy was left running by an earlier hcc. Without one nothing is served now, and what was
            true of an address some time ago need not be so any more.
    """
    register = Register(keep=file.store)
    if running:
        register.book.restore(file.load())
    return register
