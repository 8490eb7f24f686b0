"""Programs built from pinned source through Go's client, once.

Each folder of `deploy/tools` is a Go module of its own that pins one program and everything below it with checksums.
The binary is kept in the cache under a key of what it was built from: Go's own caches are twenty times its size. By
which Go is not part of that: one that was upgraded or removed since would only make a program missing that is there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installer.places import DEPLOY, cache, digest, locked, on_path
from installer.talk import InstallError, output_of, run_long, say
from installer.versions import Version, dotted, go_version


@dataclass(frozen=True, slots=True)
class Source:
    """One program as it can be built.

    Args:
        tool: folder below `deploy/tools`.
        package: Go's name of the program.
        works: whether a file runs as that program.
        otherwise: what to install where there is no Go.
        tags: Go's build tags, with commas, to leave out what is not needed.
        oldest_go: that can build it.
    """

    tool: str
    package: str
    works: Callable[[Path], bool]
    otherwise: str
    tags: str = ""
    oldest_go: Version = (1, 24)

    @property
    def name(self) -> str:
        return self.package.rpartition("/")[2]


def built(source: Source) -> Path:
    """The program, built if need be.

    Raises:
        InstallError: it is not there, and there is no Go that can build it, or the build fails.
    """
    module = DEPLOY / "tools" / source.tool
    tags = (source.tags,) if source.tags else ()
    key = digest((module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), *tags)
    home = cache() / source.name / key
    binary = home / source.name
    if not binary.exists():
        with locked(home, source.tool):
            if not binary.exists():
                _build(_go(source), source, module, binary)
    say(source.tool, f"{binary} (built from source)")
    return binary


def _go(source: Source) -> Path:
    go = on_path("go")
    if go is None:
        raise InstallError(f"{source.tool}: no go on PATH to build it with; install {source.otherwise}")
    text = output_of(go, "version").strip()
    version = go_version(text)
    if version is None or version < source.oldest_go:
        raise InstallError(
            f"{source.tool}: building it takes Go >= {dotted(source.oldest_go)}, found: {text or go}; "
            f"install {source.otherwise}"
        )
    return go


def _build(go: Path, source: Source, module: Path, binary: Path) -> None:
    say(source.tool, "building it from source, once: some minutes, and space for Go's own caches")
    unfinished = binary.with_name(f"unfinished.{os.getpid()}")
    command: list[str | Path] = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w"]
    if source.tags:
        command += ["-tags", source.tags]
    try:
        run_long(
            source.tool,
            [*command, "-o", unfinished, source.package],
            binary.with_name("build.log"),
            cwd=module,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"},
        )
        if not source.works(unfinished):
            raise InstallError(f"{source.tool}: what was built at {unfinished} does not run as {source.name}")
        unfinished.rename(binary)
    finally:
        unfinished.unlink(missing_ok=True)
