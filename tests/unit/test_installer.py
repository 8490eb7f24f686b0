"""Programs that are built from source are built once, whatever becomes of the Go that did it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
BUILD = f"""
import sys
sys.path.insert(0, {str(DEPLOY)!r})
from installer.gobuild import Source, built
from installer.talk import InstallError
try:
    print(built(Source("prometheus", "example/promtool", lambda path: path.exists(), "promtool")))
except InstallError as exc:
    sys.exit(str(exc))
"""
# As `go build .. -o FILE PACKAGE`.
GO = """#!/bin/sh
case $1 in
version) echo "go version go{version} linux/amd64" ;;
build)
  while [ "$1" != -o ]; do shift; done
  echo {version} > "$2" ;;
esac
"""


def build(home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PATH": str(home / "bin")}
    command = [sys.executable, "-c", BUILD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def install_go(home: Path, version: str) -> Path:
    go = home / "bin" / "go"
    go.parent.mkdir(exist_ok=True)
    go.write_text(GO.format(version=version))
    go.chmod(0o755)
    return go


def test_a_program_that_was_built_stays_when_go_is_upgraded_or_removed(tmp_path: Path) -> None:
    go = install_go(tmp_path, "1.24.1")
    first = build(tmp_path)
    assert first.returncode == 0, first.stderr
    binary = Path(first.stdout.strip())
    assert binary.read_text() == "1.24.1\n"
    install_go(tmp_path, "1.25.0")
    assert build(tmp_path).stdout == first.stdout
    go.unlink()
    assert build(tmp_path).stdout == first.stdout
    assert binary.read_text() == "1.24.1\n"


def test_where_nothing_can_be_built_it_is_said_what_to_install(tmp_path: Path) -> None:
    missing = build(tmp_path)
    assert missing.returncode == 1
    assert "prometheus: no go on PATH to build it with; install promtool" in missing.stderr
    install_go(tmp_path, "1.23.9")
    old = build(tmp_path)
    assert old.returncode == 1
    assert "takes Go >= 1.24, found: go version go1.23.9" in old.stderr
    assert not list((tmp_path / "cache").rglob("promtool/*/promtool"))
