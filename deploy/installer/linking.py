"""Which libraries a program needs, and binding it to those of a private folder."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from installer.places import VENV, on_path
from installer.talk import InstallError, output_of

_STEP = "debian-program"


def needs_own_libraries(program: Path) -> bool:
    """Whether this machine lacks a library, or a version of one, that the program needs."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return "not found" in done.stdout + done.stderr


def missing_libraries(program: Path, root: Path) -> list[str]:
    """The libraries that the program and its libraries need and that are not below `root`, sorted."""
    missing: set[str] = set()
    seen: set[str] = set()
    queue = [program]
    while queue:
        for name in output_of(_patchelf(), "--print-needed", queue.pop()).split():
            if name in seen:
                continue
            seen.add(name)
            library = _find(root, name)
            if library:
                queue.append(library)
            else:
                missing.add(name)
    return sorted(missing)


def bind(program: Path, root: Path) -> None:
    """Make the program use the loader and the libraries below `root`; it cannot be moved afterwards.

    RPATH and not RUNPATH: only the former holds for libraries that libraries need.

    Raises:
        InstallError: no loader there, or a library of this machine would still be used.
    """
    wanted = Path(output_of(_patchelf(), "--print-interpreter", program).strip()).name
    loader = _find(root, wanted) if wanted else None
    if loader is None:
        raise InstallError(f"{_STEP}: no loader {wanted or 'named'} for {program.name} below {root}")
    path = ":".join(str(folder) for folder in _library_folders(root))
    options = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", path]
    done = subprocess.run([_patchelf(), *options, program], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"{_STEP}: patchelf failed on {program}: {done.stderr.strip()}")
    stray = list(_strays(output_of(loader, "--list", program), root))
    if stray:
        raise InstallError(f"{_STEP}: {program.name} would use libraries of this machine: {' '.join(stray)}")


def _strays(listing: str, root: Path) -> Iterator[str]:
    if "=>" not in listing:
        yield "(the loader lists none)"
    for line in listing.splitlines():
        words = line.split()
        if "=>" in words and not words[words.index("=>") + 1].startswith(f"{root}/"):
            yield words[0]


def _find(root: Path, name: str) -> Path | None:
    folders = _library_folders(root)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _library_folders(root: Path) -> list[Path]:
    """The folders such as lib/x86_64-linux-gnu, the loader's /lib64 included."""
    found = [*root.glob("lib*/*-linux-gnu"), *root.glob("usr/lib*/*-linux-gnu")]
    return sorted(folder for folder in {*found, root / "lib64", root / "usr/lib64"} if folder.is_dir())


def _patchelf() -> Path:
    own = VENV / "bin" / "patchelf"
    found = own if own.exists() else on_path("patchelf")
    if found is None:
        raise InstallError(f"{_STEP}: patchelf not found; install the Debian package patchelf")
    return found
