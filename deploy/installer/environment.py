"""The virtual environment at `.venv`: exactly the locked, hash-checked packages, and hcc itself, editable.

An environment that works is kept and brought up to date, never made anew, as others may be using it.
"""

import json
import platform
import shutil
import sys
import tomllib
from pathlib import Path

from installer.places import DEPLOY, ROOT, VENV, cache, digest, locked
from installer.talk import InstallError, output_of, run_long, say

_STEP = "python"
_PYTHON = VENV / "bin" / "python"


def install_environment(*, tests: bool) -> None:
    """Bring `.venv` to what the locks say: those to run, with `tests` also those to develop and test."""
    name = "test" if tests else "run"
    if _ready(name):
        say(_STEP, f"{platform.python_version()}, .venv is up to date ({name}.txt)")
        return
    with locked(ROOT, _STEP):
        if not _ready(name):
            _create()
            _fill(name)


def _create() -> None:
    if output_of(_PYTHON, "-c", "import pip, sys; print(sys.version_info >= (3, 11))").strip() == "True":
        return
    if not output_of(_base(), "-c", "import ensurepip, venv; print(1)"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InstallError(
            f"{_STEP}: {_base()} cannot make virtual environments (no ensurepip); "
            f"install the Debian package python{version}-venv and run this again"
        )
    say(_STEP, f"making .venv with {_base()} ({platform.python_version()})")
    if VENV.exists():  # without a Python that serves and pip it is a broken or a half-made one
        shutil.rmtree(VENV)
    run_long(_STEP, [_base(), "-m", "venv", VENV], _log("venv"))


def _base() -> Path:
    """The Python outside every virtual environment, since this one may run in the one to be made anew."""
    return Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def _fill(name: str) -> None:
    lock = _lock(name)
    say(_STEP, f"installing the packages of {lock.relative_to(ROOT)} into .venv (hashes checked)")
    _pip("packages", "--require-hashes", "-r", lock)
    say(_STEP, "installing hcc itself, editable")
    _pip("hcc", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    # What the tests need includes what a run needs.
    for written in ("run", name):
        _stamp(written).write_text(_wanted(written) + "\n")


def _pip(what: str, *arguments: str | Path) -> None:
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-python-version-warning"]
    run_long(_STEP, [_PYTHON, "-m", "pip", "install", *options, *arguments], _log(f"pip-{what}"))


def _ready(name: str) -> bool:
    try:
        return _stamp(name).read_text().strip() == _wanted(name) and _PYTHON.exists()
    except OSError:
        return False


def _wanted(name: str) -> str:
    """The key of all that the environment is made from: the lock, the place, how hcc is packaged."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    packaging = [project["build-system"], project["project"], project["tool"]["hatch"]]
    version = (ROOT / "hcc" / "version.py").read_bytes()
    return digest(str(ROOT), _lock(name).read_bytes(), json.dumps(packaging, sort_keys=True), version)


def _lock(name: str) -> Path:
    return DEPLOY / "requirements" / f"{name}.txt"


def _stamp(name: str) -> Path:
    return VENV / f".hcc-{name}"


def _log(what: str) -> Path:
    return cache() / "log" / f"{what}.log"
