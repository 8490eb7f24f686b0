"""What gets installed: wheel and sdist, made and used as pip does; units and examples beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hcc.app.state_directory import directory_name
from hcc.cli.arguments import parse, parser
from hcc.cli.commands import COMMANDS
from hcc.cli.resolution import strange_variables
from hcc.cli.settings_table import ALL
from hcc.errors import SettingError
from hcc.haproxy.layout import layout
from hcc.version import VERSION

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLES = ("systemd", "container", "nomad", "kubernetes")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSED = 2.5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was made of it."""
    directory = tmp_path_factory.mktemp("dist")
    make("sdist", ROOT, directory)
    # As a packager does; Python's own way has no common form for 3.11.2 (Debian 12) and 3.14.
    (directory / "source").mkdir()
    subprocess.run(["tar", "-xf", next(directory.glob("*.tar.gz")), "-C", directory / "source"], check=True)
    make("wheel", next((directory / "source").iterdir()), directory)
    return directory


def make(target: str, source: Path, into: Path) -> None:
    words = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_the_package_its_types_its_licence_and_the_man_page_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"haproxy_connect-{VERSION}.dist-info/METADATA").decode()

    ours = (path for path in (ROOT / "hcc").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {str(path.relative_to(ROOT)) for path in ours}
    assert "hcc/py.typed" in expected
    assert {name for name in names if name.startswith("hcc/")} == expected
    beside = {name.partition("/")[2] for name in names if not name.startswith("hcc/")}
    assert beside >= {"METADATA", "licenses/LICENSE", "entry_points.txt", "data/share/man/man1/hcc.1"}
    assert len(beside) <= 6, beside
    assert f"\nVersion: {VERSION}\n" in metadata
    assert "Provides-Extra: haproxy" in metadata


def test_the_sdist_has_what_builds_and_tests_it_and_nothing_of_this_machine(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "CHANGELOG.md", "docs/hcc.1", "deploy/bootstrap", "tests/binaries.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", ".git/")) or "__pycache__" in name]


def test_the_installed_commands_run_without_the_work_tree(built: Path, tmp_path: Path) -> None:
    wheel = str(next(built.glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(tmp_path / "site"), wheel], timeout=100, check=True)
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}

    def said(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    scripts = tmp_path / "site" / "bin"
    assert said(str(scripts / "hcc"), "--version") == f"hcc {VERSION}\n"
    assert VERSION in said(str(scripts / "haproxy-consul-connect"), "-version")
    assert "spoe_workers" in said(str(scripts / "hcc"), "settings")
    where = said(sys.executable, "-c", "import hcc; print(hcc.__file__)")
    assert where.startswith(str(tmp_path))


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION


def test_every_setting_that_an_example_or_document_names_exists() -> None:
    files = [path for name in EXAMPLES for path in (ROOT / "deploy" / name).rglob("*") if path.is_file()]
    files += [ROOT / "README.md", *(ROOT / "docs").glob("*")]
    for path in files:
        named = set(re.findall(r"\bHCC_[A-Z_]*[A-Z]\b", path.read_text())) - {"HCC_NAME"}
        known = {setting.own_variable for setting in ALL} | {"HCC_CONFIG_FILE"}
        assert named <= known, f"{path}: {named - known}"
        assert not strange_variables(dict.fromkeys(named, "x"))


def test_the_unit_s_command_line_is_one_of_ours() -> None:
    (words,) = re.findall(r"^ExecStart=/usr/bin/hcc (.*)$", unit(), re.MULTILINE)

    assert parse(parser(COMMANDS), words.split()).command == "run"


def test_the_longest_id_that_the_unit_speaks_of_leaves_room_for_sockets() -> None:
    (size,) = map(int, re.findall(r"or with more than (\d+), gets any NAME", unit()))
    (base,) = re.findall(r"--state-dir %t(/\S+)/%i", unit())
    # Its proxy may be registered by any ID.
    proxy = directory_name("x" * 100)

    layout(f"/run{base}/{'x' * size}/{proxy}")
    with pytest.raises(SettingError, match="socket path of at most"):
        layout(f"/run{base}/{'x' * (size + 1)}/{proxy}")


def test_what_a_stop_leaves_serving_the_next_start_can_adopt() -> None:
    """KillMode=process leaves a HAProxy there that nobody ended; the directory that it is told by has to stay, too."""
    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes"} <= set(unit().splitlines())


def test_a_worker_that_is_killed_for_its_memory_takes_no_sidecar_along() -> None:
    assert "OOMPolicy=continue" in unit().splitlines()


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="only where systemd is; CI's image has it")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    own = tmp_path / "hcc@.service"
    own.write_text(unit().replace("/usr/bin/hcc", f"{Path(sys.executable).parent}/hcc"))

    assert analyze("verify", str(own)) == ""
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", analyze("security", "--offline=true", str(own)))
    assert exposure is not None
    assert float(exposure[1]) <= MOST_EXPOSED


def unit() -> str:
    return (ROOT / "deploy/systemd/hcc@.service").read_text()


def analyze(*words: str) -> str:
    done = subprocess.run(
        [str(SYSTEMD_ANALYZE), *words], capture_output=True, text=True, timeout=60, check=False, env={"LC_ALL": "C"}
    )
    return done.stdout + done.stderr
