"""Verdicts that stay for a moment, while HAProxy is reloaded for rules that look at more than it does. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hcc.haproxy.sight import Sight, held_verdicts, sight_for, unseen_sets
from hcc.mesh.judgement import Judgement

# Rules that look at what HAProxy does not look at yet wait for its reload, for so long; then they deny. A worker that
# stops after that reload goes by the verdicts before for a moment: requests are on their way to it.
HOLD_S, HOLD_STOPPING_S = 5.0, 1.0


class Hold:
    """Begins when rules are not seen, ends a moment after they are, or when it has lasted too long; for one thread.

    Whom the running worker lets in is spared meanwhile. A worker that starts has the new verdicts, from its file.

    Attributes:
        sight: what the worker that runs looks at; None while that is not known and there is no policy.
    """

    def __init__(self) -> None:
        self.sight: Sight | None = None
        # Names of rule sets that wait for a worker which looks at more; and whether callers are spared them meanwhile.
        self._unseen: frozenset[str] = frozenset()
        self._lasts = False
        # Those spared, by key, with their verdicts; without one who is so no more, but for workers that stop.
        self._held: dict[str, str | None] = {}

    def see(self, judgement: Judgement | None, sight: Sight | None, *, runs: bool) -> float | None:
        """Note what the worker that runs looks at, if one does; in how many seconds to `end`, None: as said before.

        Where that is not known (None) it is taken for what the policy asks: if it looks at something else, its rules
        deny until the reload that comes then, and nobody is spared who may have to be denied.
        """
        if judgement is None:
            self.sight = sight
            return None
        self.sight = sight or sight_for(judgement)
        before, self._unseen = self._unseen, unseen_sets(judgement, self.sight) if runs else frozenset()
        if self._unseen and not before:
            self._lasts = True
            return HOLD_S
        return HOLD_STOPPING_S if before and not self._unseen else None

    def end(self) -> None:
        """Spare nobody any more."""
        self._lasts = False

    def held(self, decided: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
        """Those verdicts, by the caller's key, that stay as they are.

        Args:
            decided: the policy's verdicts.
            found: those of the worker that runs.
        """
        if not self._lasts:
            return {}
        before = {key: verdict for key, verdict in self._held.items() if verdict is not None}
        return held_verdicts(decided, {**found, **before}, self._unseen)

    def note(self, held: Mapping[str, str]) -> None:
        """HAProxy has the verdicts, with these among them."""
        self._held = {**dict.fromkeys(self._held), **held} if self._lasts else {}

    @property
    def untold(self) -> Collection[str]:
        """Keys of callers whose verdicts workers that stop are not told yet."""
        return self._held.keys() if self._lasts else ()
