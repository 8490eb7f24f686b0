"""Tables and colours for people: on a terminal with both, elsewhere plain text that can be cut and searched.

Imported only by commands that print tables, because `rich` takes 50 ms to import.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hcc.log import one_line

# Wide enough that nothing is cut where no window limits a line.
_NO_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its style, in rich's words; empty for plain."""

    text: str
    style: str = ""


Row = Sequence[str | Cell]
Shown = RenderableType


def console() -> Console:
    """Where to print. Colours only on a terminal, and not under NO_COLOR."""
    made = Console(highlight=False, emoji=False, markup=False)
    if not made.is_terminal:
        made.width = _NO_LIMIT
    return made


def show(*parts: Shown) -> None:
    """Print these; blanks that only fill a table's last column are left out."""
    out = console()
    with out.capture() as captured:
        out.print(*parts, sep="\n")
    out.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table(columns: Sequence[str], rows: Iterable[Row]) -> Table:
    """A table of texts that are taken as they are; in a narrow window it is closer, and folded between words."""
    texts = [[_text(cell) for cell in row] for row in rows]
    words = [max(map(_longest_word, cells)) for cells in zip(columns, *texts, strict=True)]
    room = console().width
    gap = 2 if sum(words) + 2 * len(words) <= room else 1
    # Where not even its words have room they are folded, not cut: what is cut cannot be copied.
    whole = sum(words) + gap * len(words) <= room
    made = Table(header_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column, longest in zip(columns, words, strict=True):
        made.add_column(column, overflow="fold", min_width=longest if whole else None)
    for row in texts:
        made.add_row(*row)
    return made


def keep_showing(make: Callable[[], Shown], interval_s: float) -> None:
    """Show what `make` gives, again and again until Ctrl-C: in place on a terminal, one below the other elsewhere."""
    out = console()
    with contextlib.suppress(KeyboardInterrupt):
        if not out.is_terminal:
            while True:
                show(make())
                out.file.flush()
                time.sleep(interval_s)
        with Live(make(), console=out, screen=True, auto_refresh=False) as live:
            while True:
                live.update(make(), refresh=True)
                time.sleep(interval_s)


def show_table(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Print a table."""
    show(table(columns, rows))


def styled(text: str, style: str = "") -> Text:
    """A text of somebody else's, in which nothing can move the cursor or forge a line."""
    return Text(one_line(text), style=style)


def _longest_word(text: Text | str) -> int:
    """Its length, with the blanks before it at the beginning of the text."""
    plain = str(text)
    indent = len(plain) - len(plain.lstrip())
    first, *others = plain.split() or [""]
    return max(indent + len(first), *map(len, others), 0)


def _text(cell: str | Cell) -> Text:
    return styled(cell.text, cell.style) if isinstance(cell, Cell) else styled(cell)
