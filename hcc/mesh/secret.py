"""A text that must not be shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """A private key or token. `repr` and `str` hide it; `reveal` is the one way to it, easy to search for."""

    _text: str = field(repr=False)

    def reveal(self) -> str:
        """The text itself. Never pass it to a log, a metric or a command line."""
        return self._text

    def __str__(self) -> str:
        """Hidden."""
        return "Secret(hidden)"
