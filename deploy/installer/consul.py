"""Which Consul to use: the one asked for, else on PATH, else built once from its pinned source.

`deploy/tools` is a Go module of its own that pins Consul and everything below it with checksums. The binary
is kept in the cache under a key of what it was built from: Go's own caches are twenty times its size.
"""

import os
from pathlib import Path

from installer.places import DEPLOY, cache, digest, locked, on_path
from installer.talk import InstallError, output_of, run_long, say
from installer.versions import Version, consul_version, dotted, go_version

_STEP = "consul"
_OLDEST: Version = (1, 8)
_OLDEST_GO: Version = (1, 24)
_PACKAGE = "github.com/hashicorp/consul"
_TOOLS = DEPLOY / "tools"


def choose_consul() -> Path:
    """The Consul to run with: $CONSUL_BIN, else on PATH, else built with Go into the cache.

    Raises:
        InstallError: the one asked for does not serve, or there is no Go to build one.
    """
    given = os.environ.get("CONSUL_BIN")
    if given:
        path = on_path(given)
        if path is None or not _serves(path):
            raise InstallError(f"{_STEP}: $CONSUL_BIN names {given}, which is no Consul >= {dotted(_OLDEST)}")
        say(_STEP, f"{path} (from $CONSUL_BIN)")
        return path
    path = on_path("consul")
    if path and _serves(path):
        say(_STEP, f"{path} (from PATH)")
        return path
    return _built()


def _serves(path: Path) -> bool:
    version = consul_version(output_of(path, "version"))
    return version is not None and version >= _OLDEST


def _built() -> Path:
    go, go_says = _go()
    key = digest((_TOOLS / "go.mod").read_bytes(), (_TOOLS / "go.sum").read_bytes(), go_says)
    home = cache() / "consul" / key
    binary = home / "consul"
    if not binary.exists():
        with locked(home, _STEP):
            if not binary.exists():
                _build(go, binary)
    say(_STEP, f"{binary} (built from source)")
    return binary


def _go() -> tuple[Path, str]:
    go = on_path("go")
    if go is None:
        raise InstallError(
            f"{_STEP}: neither consul nor go found on PATH; install Consul >= {dotted(_OLDEST)}, "
            f"or Go >= {dotted(_OLDEST_GO)} to build it from source"
        )
    text = output_of(go, "version").strip()
    version = go_version(text)
    if version is None or version < _OLDEST_GO:
        raise InstallError(
            f"{_STEP}: no consul on PATH, and building it takes Go >= {dotted(_OLDEST_GO)}, "
            f"found: {text or go}; install Consul >= {dotted(_OLDEST)} or a newer Go"
        )
    return go, text


def _build(go: Path, binary: Path) -> None:
    say(_STEP, "building it from source, once: some minutes, and 4 GB for Go's own caches")
    unfinished = binary.with_name(f"unfinished.{os.getpid()}")
    command: list[str | Path] = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w"]
    try:
        run_long(
            _STEP,
            [*command, "-o", unfinished, _PACKAGE],
            binary.with_name("build.log"),
            cwd=_TOOLS,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"},
        )
        if not _serves(unfinished):
            raise InstallError(f"{_STEP}: what was built at {unfinished} does not run as Consul")
        unfinished.rename(binary)
    finally:
        unfinished.unlink(missing_ok=True)
