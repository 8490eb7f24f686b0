"""What a start of `hcc run` loads: its time and memory have a budget."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_the_sidecar_loads_nothing_that_only_commands_for_people_need() -> None:
    loaded = loaded_by("import hcc.cli.commands, hcc.app.sidecar")

    assert "pykka" in loaded
    assert not loaded & {"rich", "shtab", "pygments", "markdown_it"}


def test_the_commands_themselves_load_no_package_at_all() -> None:
    loaded = loaded_by("import hcc.cli.commands")

    assert not loaded & {"rich", "shtab", "requests", "cryptography", "prometheus_client", "pykka", "consul"}
