"""What a bench hands over: tables for people on stdout, the same as JSON in `build/bench/NAME.json`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "bench"

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under a title; the note says what was measured and how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """One run of one bench; `machine` and `settings` are what another run must share to be comparable."""

    name: str
    machine: Mapping[str, str]
    settings: Mapping[str, Cell]
    tables: tuple[Table, ...]

    def text(self) -> str:
        """All tables, for people."""
        facts = "\n".join(f"  {name:<10} {value}" for name, value in self.machine.items())
        settings = ", ".join(f"{name} {_shown(value)}" for name, value in self.settings.items())
        return "\n\n".join([f"bench {self.name} ({settings})\n{facts}", *map(table_text, self.tables)])

    def write(self) -> Path:
        """The file it was written to."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({"date": date, **asdict(self)}, indent=2) + "\n")
        return path


def table_text(table: Table) -> str:
    """A table with its columns aligned, figures to the right."""
    cells = [[_shown(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]
    right = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows, strict=True)] or [
        False
    ] * len(widths)
    lines = [_line(row, widths, right) for row in (table.columns, *cells)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([table.title, *lines, *([table.note] if table.note else [])])


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = zip(row, widths, right, strict=True)
    return "  ".join(cell.rjust(width) if figure else cell.ljust(width) for cell, width, figure in cells).rstrip()


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
