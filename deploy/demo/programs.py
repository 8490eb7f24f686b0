"""Where the programs are: as deploy/bootstrap says, unless the environment does."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.talk import StepError

ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("CONSUL_BIN", "HAPROXY_BIN")


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of what the demo starts."""

    consul: Path
    haproxy: Path
    hcc: Path
    old_name: Path  # haproxy-consul-connect


def find_programs() -> Programs:
    """All programs, set up by `deploy/bootstrap` if the environment does not name them.

    Raises:
        StepError: one is missing.
    """
    found = {name: os.environ.get(name, "") for name in _NAMES}
    if not all(found.values()):
        found = _bootstrap() | {name: path for name, path in found.items() if path}
    folder = _scripts()
    programs = Programs(
        Path(found["CONSUL_BIN"]),
        Path(found["HAPROXY_BIN"]),
        folder / "hcc",
        folder / "haproxy-consul-connect",
    )
    for path in (programs.consul, programs.haproxy, programs.hcc, programs.old_name):
        if not os.access(path, os.X_OK):
            raise StepError(f"expected a program at {path}, found none; run deploy/bootstrap, or make demo")
    return programs


def version_of(program: Path, *flags: str) -> str:
    """The first line of what the program says about its version.

    Raises:
        StepError: it does not run.
    """
    command: list[str | Path] = [program, *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StepError(f"{program} does not run: {exc}") from exc
    if done.returncode != 0 or not done.stdout:
        raise StepError(f"expected {shlex.join(map(str, command))} to print a version, found {done.stderr!r}")
    return re.sub(" - https?://.*", "", done.stdout.splitlines()[0])


def _bootstrap() -> dict[str, str]:
    done = subprocess.run(
        [ROOT / "deploy" / "bootstrap", "--print-env"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise StepError("deploy/bootstrap failed, its message is above")
    pairs = (word.partition("=") for word in shlex.split(done.stdout))
    return dict.fromkeys(_NAMES, "") | {name: value for name, _, value in pairs}


def _scripts() -> Path:
    """The folder of our console scripts: beside the Python that runs this, else in `.venv`."""
    beside = Path(sys.executable).parent
    return beside if (beside / "hcc").exists() else ROOT / ".venv" / "bin"
