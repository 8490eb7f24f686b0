"""The fuzz targets, each for a few seconds from a corpus of real frames and certificates.

atheris has wheels for few machines; hypothesis does its part everywhere (tests/unit/spoe, tests/protocol).
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spoe_certificates import odd_leaves
from tests.spop_frames import CAPTURED, caller, captured, farewell, health_check, hello

SECONDS = 8
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 14),
    reason="atheris has no wheel for this machine or Python",
)


def fuzz(target: str, corpus: dict[str, bytes], directory: Path, seconds: int = SECONDS) -> str:
    """Run a target from this corpus; what it said. Its inputs that fail are kept in the directory."""
    seeds = directory / "corpus"
    seeds.mkdir()
    for name, content in corpus.items():
        (seeds / name).write_bytes(content)
    flags = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", f"-artifact_prefix={directory}/", "-seed=1"]
    command = [sys.executable, "-m", target, *flags, str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    found = {path.name: path.read_bytes().hex() for path in directory.iterdir() if path.is_file()}
    assert done.returncode == 0, f"{found}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stderr


def runs(said: str) -> int:
    """How many inputs were run, from libFuzzer's last line."""
    return int(said.rsplit("Done ", 1)[1].split(maxsplit=1)[0])


def test_no_stream_of_bytes_breaks_a_connection(tmp_path: Path) -> None:
    corpus = {path.stem: b"\x00" + b"".join(captured(path.stem)) for path in CAPTURED.glob("*.hex")}
    corpus |= {
        "questions": b"\x01" + caller(b"one") + caller(b"two", 300, 2),
        "farewell": b"\x0f" + farewell(),
        "check": b"\x00" + health_check(),
        "twice": b"\x03" + hello(),
    }
    assert runs(fuzz("tests.fuzz.spop", corpus, tmp_path)) > 1000


def test_no_certificate_means_something_else_to_us_than_to_cryptography(tmp_path: Path) -> None:
    corpus = {name.replace(" ", "-"): der for name, der in odd_leaves().items()}
    assert runs(fuzz("tests.fuzz.der", corpus, tmp_path)) > 1000
