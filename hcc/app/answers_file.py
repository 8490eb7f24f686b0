"""Consul's last good answers on disk, private, to start from when the agent does not answer."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hcc.actors.consul_watcher import Ledger
from hcc.actors.keeping import Keeper
from hcc.app.selection import Chosen
from hcc.consul.assembly import State, snapshot, wanted
from hcc.errors import HccError
from hcc.haproxy.files import read_text, remove, write_private
from hcc.log import LastingProblem
from hcc.mesh.certificate import checked_credentials
from hcc.mesh.json_form import JsonFormError, from_json, to_json
from hcc.settings import Selection

NAME = "answers.json"
# Of the largest mesh ever seen, a hundred times; a file beyond it is not ours.
MAX_BYTES = 256 * 1024 * 1024

_log = logging.getLogger(__name__)


class StaleAnswersError(HccError):
    """What is kept cannot be served from; the text says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file holds.

    Args:
        selection: how the operator chose the proxy, to find it again without the agent.
        state: all answers.
    """

    selection: Selection
    chosen: Chosen
    state: State


class AnswersFile:
    """The file in one proxy's directory."""

    def __init__(self, directory: Path, selection: Selection, chosen: Chosen) -> None:
        self._path = str(directory / NAME)
        self._selection = selection
        self._chosen = chosen
        self._problem, self._left = LastingProblem(_log), LastingProblem(_log)
        # Of what is there; None where that is of no use, or not known.
        self._policy_version: int | None = None

    def store(self, state: State) -> bool:
        """Whether these answers are kept now; a disk that does not take them is said once.

        Those that are there go then, if their policy is an older one: it may let in who is denied now.
        """
        text = json.dumps(to_json(Kept(self._selection, self._chosen, state), secrets=True), separators=(",", ":"))
        try:
            write_private(self._path, text)
        except OSError as exc:
            self._problem.say(f"Consul's answers cannot be kept for a start without it: {exc.strerror}")
            if self._policy_version != state.policy_version:
                self.forget()
            return False
        self._policy_version = state.policy_version
        self._problem.over()
        return True

    def forget(self) -> None:
        """Remove what is there, which takes no room on a full disk; a disk that does not let go of it is said once."""
        self._policy_version = None
        try:
            remove(self._path)
        except OSError as exc:
            self._left.say(f"the answers of before in {self._path} cannot be removed: {exc.strerror}")
        else:
            self._left.over()

    def load(self, now: datetime) -> State | None:
        """The answers to start from, None without any.

        Raises:
            StaleAnswersError: they are there but not to be used: damaged, or without a leaf that is valid `now`.
        """
        kept = _read(Path(self._path))
        if kept is None:
            return None
        if kept.chosen != self._chosen:
            raise StaleAnswersError(f"they are about {kept.chosen.proxy_id} of {kept.chosen.service_id}")
        known = snapshot(kept.state, 0)
        if known is None or known.leaf is None or known.roots is None:
            raise StaleAnswersError("they have no leaf certificate and roots")
        try:
            checked_credentials(known.leaf, known.roots, now)
        except HccError as exc:
            raise StaleAnswersError(str(exc)) from exc
        self._policy_version = kept.state.policy_version
        return kept.state


def kept_ledger(file: AnswersFile, empty: State) -> Ledger:
    """What the watches start from: the answers of an earlier run, or nothing; and where they are kept."""
    try:
        state = file.load(datetime.now(UTC))
    except StaleAnswersError as exc:
        _log.warning("the answers of an earlier run are not used: %s", exc)
        state = None
    if state is None:
        return Ledger(empty, keeper=Keeper(file.store, empty))
    unconfirmed = frozenset(key for key, _ in state.values) & wanted(state)
    return Ledger(state, unconfirmed=unconfirmed, keeper=Keeper(file.store, state))


def unkept_ledger(file: AnswersFile, empty: State) -> Ledger:
    """Nothing to start from, and nothing that is kept. What an earlier run kept goes, with the leaf's key."""
    file.forget()
    return Ledger(empty)


def kept_choice(base: Path, selection: Selection) -> Chosen | None:
    """The proxy that the same choice led to before, from the answers kept below the base directory."""
    for path in sorted(base.glob(f"*/{NAME}")):
        try:
            kept = _read(path)
        except StaleAnswersError as exc:
            _log.warning("%s is of no use: %s", path, exc)
            continue
        if kept is not None and kept.selection == selection:
            return kept.chosen
    return None


def _read(path: Path) -> Kept | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StaleAnswersError(f"expected at most {MAX_BYTES} bytes")
        text = read_text(str(path))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StaleAnswersError(f"cannot be read: {exc}") from exc
    try:
        return None if text is None else from_json(Kept, json.loads(text))
    except (ValueError, RecursionError, JsonFormError) as exc:
        raise StaleAnswersError(f"damaged, or of another hcc: {exc}") from exc
