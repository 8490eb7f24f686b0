"""`deploy/debian-program`: a program of another Debian suite, runnable here, in a private folder.

The machine's own packages, lists and libc stay untouched. apt works in a root of its own, with the mirror
from the machine's apt configuration and signatures checked against Debian's keyring. A program that the
machine's libraries can carry stays as it is (a patched Go program crashes); any other one gets the loader and
the libraries of its suite.
"""

import argparse
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from installer.linking import bind, missing_libraries, needs_own_libraries
from installer.places import cache, locked, on_path
from installer.talk import InstallError, output_of, run_long, say

_STEP = "debian-program"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITE = re.compile(r"[a-z][a-z0-9-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LIBRARY = re.compile(r"(lib|zlib)[a-z0-9+.-]+")


@dataclass(frozen=True, slots=True)
class _Apt:
    """An apt root below `home` that knows one suite and believes that nothing is installed."""

    suite: str
    home: Path

    def prepare(self) -> None:
        """Fetch the suite's package index."""
        for folder in ("lists/partial", "cache/archives/partial", "debs"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        # experimental is no whole suite: what it lacks comes from sid.
        suites = [self.suite, "sid"] if self.suite == "experimental" else [self.suite]
        lines = [f"deb [signed-by={_KEYRING}] {_mirror()} {name} main\n" for name in suites]
        (self.home / "sources.list").write_text("".join(lines))
        run_long(_STEP, ["apt-get", *self._options(), "--error-on=any", "update"], self.home / "update.log")

    def unpack(self, package: str, root: Path) -> None:
        """Download a package and unpack its files into `root`; none of its scripts is run."""
        debs = self.home / "debs"
        command: list[str | Path] = ["apt-get", *self._options(), "download", f"{package}/{self.suite}"]
        if self.suite == "experimental" and not self._has(package):
            command[-1] = package
        run_long(_STEP, command, self.home / "download.log", cwd=debs)
        for deb in debs.glob("*.deb"):
            run_long(_STEP, ["dpkg-deb", "-x", deb, root], self.home / "unpack.log")
            deb.unlink()

    def libraries_of(self, package: str) -> list[str]:
        """The library packages that a package depends on directly, first alternatives only."""
        record = output_of("apt-cache", *self._options(), "show", "--no-all-versions", package)
        fields = re.findall(r"^(?:Pre-)?Depends: (.*)$", record, re.MULTILINE)
        names = [re.split(r"[ :(|]", item.strip(), maxsplit=1)[0] for f in fields for item in f.split(",")]
        return [name for name in names if _LIBRARY.fullmatch(name)]

    def _has(self, package: str) -> bool:
        return f" {self.suite}/main " in output_of("apt-cache", *self._options(), "madison", package)

    def _options(self) -> list[str]:
        settings = {
            "APT::Sandbox::User": "root",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::Languages": "none",
            "Dir::Cache": self.home / "cache",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::sourcelist": self.home / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": self.home / "lists",
            "Dir::State::status": "/dev/null",
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def fetch_program(suite: str, package: str, program: str) -> Path:
    """The path of `program` (as in the package, without the first slash), fetched if need be.

    Raises:
        InstallError: a tool, the suite, the package or a library cannot be had.
    """
    home = cache() / "debian" / suite / package / program.replace("/", "-")
    root = home / "root"
    with locked(home, _STEP):
        if not (home / "complete").exists():
            say(_STEP, f"fetching {package} of Debian {suite}, privately")
            shutil.rmtree(root, ignore_errors=True)
            _install(_Apt(suite, home / "apt"), package, root, root / program)
            shutil.rmtree(home / "apt")
            (home / "complete").touch()
    return root / program


def _install(apt: _Apt, package: str, root: Path, program: Path) -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "ldd"):
        if on_path(tool) is None:
            raise InstallError(f"{_STEP}: {tool} not found; this needs a Debian machine")
    if not _KEYRING.exists():
        raise InstallError(f"{_STEP}: {_KEYRING} not found (Debian package: debian-archive-keyring)")
    apt.prepare()
    apt.unpack(package, root)
    if not program.is_file():
        raise InstallError(f"{_STEP}: {package} of {apt.suite} holds no {program.relative_to(root)}")
    if needs_own_libraries(program):
        _add_libraries(apt, package, root, program)
        bind(program, root)


def _add_libraries(apt: _Apt, package: str, root: Path, program: Path) -> None:
    """Unpack library packages, nearest dependency first, until every needed library is in `root`."""
    unpacked = {package}
    front = [package]
    while missing_libraries(program, root):
        wanted = dict.fromkeys(name for owner in front for name in apt.libraries_of(owner))
        front = [name for name in wanted if name not in unpacked]
        if not front:
            lacking = ", ".join(missing_libraries(program, root))
            raise InstallError(f"{_STEP}: {package} of {apt.suite} needs {lacking}, which no dependency brings")
        for name in front:
            apt.unpack(name, root)
        unpacked.update(front)


def _mirror() -> str:
    """The Debian mirror that this machine itself uses."""
    listed = output_of("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    mirror = next((line for line in listed.splitlines() if line and "security" not in line), None)
    if mirror is None:
        raise InstallError(f"{_STEP}: no Debian mirror in this machine's apt configuration")
    return mirror


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{_STEP}: {message}; --help shows the arguments\n")


def main(arguments: list[str]) -> int:
    """Print the path of the program asked for; the exit code."""
    os.environ.pop("PYTHONPATH", None)
    parser = _Parser(prog="deploy/debian-program", allow_abbrev=False)
    parser.description = "Print the path of a program of another Debian suite, made runnable in the cache."
    parser.add_argument("suite", metavar="SUITE", help="bullseye, bookworm, trixie, forky, experimental")
    parser.add_argument("package", metavar="PACKAGE", help="for example haproxy")
    parser.add_argument("program", metavar="PROGRAM", help="its path in the package: usr/sbin/haproxy")
    asked = parser.parse_args(arguments)
    program = asked.program.lstrip("/")
    if not _SUITE.fullmatch(asked.suite):
        parser.error(f"expected the name of a Debian suite, found {asked.suite!r}")
    if not _PACKAGE.fullmatch(asked.package):
        parser.error(f"expected the name of a Debian package, found {asked.package!r}")
    if not program or ".." in program.split("/"):
        parser.error(f"expected a path inside the package, found {asked.program!r}")
    try:
        print(fetch_program(asked.suite, asked.package, program))
    except InstallError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
