"""Which certificate files TLS to the agent goes by, as they change."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from hcc.consul.agent_tls import AgentTls
from hcc.consul.environment import consul_settings


class Files:
    """The CA file of an agent, and what gives the context for it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ca.pem"
        self.put(ca())
        self.tls = AgentTls(consul_settings(http_addr="https://127.0.0.1:8501", ca_file=str(self.path)))

    def put(self, text: bytes) -> None:
        other = self.path.with_name("other")
        other.write_bytes(text)
        other.replace(self.path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def ca() -> bytes:
    """Of a new one, always as long."""
    return trustme.CA().cert_pem.bytes().ljust(4096, b"\n")


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_that_did_not_change_are_not_read_again(files: Files) -> None:
    assert files.tls() is files.tls()


def test_new_files_that_cannot_be_read_at_first_are_tried_again(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    before = files.tls()
    files.put(ca())
    with no_descriptor_left():
        for _ in range(3):
            assert files.tls() is before
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "Too many open files" in caplog.text
    assert files.tls() is not before


def test_new_files_with_something_else_in_them_are_not_read_again_and_again(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = files.tls()
    files.put(b"no PEM at all")
    assert files.tls() is before
    assert "found something else" in caplog.text

    def read(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as counting:
        counting.setattr("hcc.consul.agent_tls.tls_context", read)
        assert files.tls() is before
    files.put(ca())
    assert files.tls() is not before


def test_a_file_that_was_overwritten_by_a_copy_with_the_time_of_before_is_read_again(files: Files) -> None:
    before, found = files.tls(), files.path.stat()
    # The clock of files may stand still for some milliseconds.
    while files.path.stat().st_ctime_ns == found.st_ctime_ns:
        files.path.write_bytes(ca())
        os.utime(files.path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert files.path.stat().st_ino == found.st_ino
    assert files.tls() is not before
