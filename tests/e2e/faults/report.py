"""docs/faults.md from the records of a run: `python -m tests.e2e.faults.report RECORDS PAGE`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import binaries
from tests.bench.machine import load_average, machine
from tests.e2e.faults import actors, consul, edges, processes, resources
from tests.e2e.faults.references import REFERENCES
from tests.e2e.faults.table import FAULTS

GROUPS = (processes, actors, consul, resources, edges)

HEAD = """# Faults

Written by `make faults`; do not edit. Each fault of the first table was injected into a running mesh (three services
and a caller, four sidecars, two agents) under constant load: http on new and on kept connections, tcp on new ones and
on one that stays open, http to a sidecar that is driven by the Data Plane API. *Failed* counts requests; *outage* is
the time from the injection to the last failed one; *mended* is the time until the row's own condition holds (what was
killed is there again, a change arrives, every sidecar is ready), time for the fault itself included. Timed figures
gate nothing. CI runs the rows that are not marked *long*.
"""


def page(records: list[dict[str, Any]], facts: dict[str, str], when: str) -> str:
    """The whole page."""
    return "\n".join([HEAD, *_run(facts, when), "", *_rows(records), "", *_references(records), ""])


def _run(facts: dict[str, str], when: str) -> Iterator[str]:
    names = ("haproxy", "openssl", "consul", "python", "kernel", "cpu", "cores")
    yield f"Run of {when}: " + ", ".join(f"{name} {facts[name]}" for name in names) + f"; load average {facts['load']}."


def _rows(records: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Under load"
    yield ""
    yield "| | injected | promised | sent | failed | outage | mended | kept |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    long = {(one.group, one.injected) for one in FAULTS if one.slow}
    for row in records:
        if "injected" in row:
            mark = " *long*" if (row["group"], row["injected"]) in long else ""
            outage = f"{row['outage_s']:.2f} s" if row["failed"] else "-"
            kept = "yes" if row["good"] else "**no**"
            yield (
                f"| {row['group']}{mark} | {row['injected']} | {row['promised']} | {row['sent']} | {row['failed']} "
                f"| {outage} | {row['mended_s']:.1f} s | {kept} |"
            )


def _references(records: list[dict[str, Any]]) -> Iterator[str]:
    ended: dict[str, list[bool]] = {}
    for row in records:
        if "test" in row:
            ended.setdefault(row["test"], []).append(row["good"])
    yield "## Shown by tests of their own"
    yield ""
    yield "| injected | promised | test | kept |"
    yield "|---|---|---|---|"
    for one in REFERENCES:
        found = ended.get(one.test)
        kept = "not run" if not found else "yes" if all(found) else "**no**"
        yield f"| {one.injected} | {one.promised} | `{one.test.rpartition('::')[2]}` | {kept} |"


def main(records: str, target: str) -> None:
    """Write the page."""
    rows = [json.loads(line) for line in Path(records).read_text(encoding="utf-8").splitlines()]
    facts = machine(binaries.haproxy("2.8"), binaries.consul()) | {"load": str(load_average())}
    Path(target).write_text(page(rows, facts, time.strftime("%d %B %Y")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
