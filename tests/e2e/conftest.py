"""Fixtures of the end-to-end tests: one pair of namespaces with Consul, one standing mesh per HAProxy."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import binaries
from tests.e2e.agents import ConsulAgent, client_config, server_config
from tests.e2e.mesh import Mesh, Site
from tests.e2e.namespaces import PREFIX, joined_pair, require_namespaces, sweep
from tests.e2e.processes import EVIDENCE, drop_obsolete
from tests.e2e.standing import Standing
from tests.e2e.versions import DATAPLANE, DIRECT, haproxies

HERE = Path(__file__).parent
# Of a test with its fixtures, several members of which may take as long as Consul lets them.
TIMEOUT_S = 300
_SHOWN: list[BaseException] = []


@pytest.fixture(scope="session")
def consul_line(request: pytest.FixtureRequest) -> str:
    """A line of Consul such as 1.8; empty for the Consul of the environment."""
    return str(getattr(request, "param", ""))


@pytest.fixture(scope="session")
def control(request: pytest.FixtureRequest) -> str:
    """How hcc drives HAProxy: direct, or dataplane."""
    return str(getattr(request, "param", DIRECT))


@pytest.fixture(scope="session")
def site(consul_line: str) -> Iterator[Site]:
    """Two "servers" with a Consul agent each, the first of them Consul's server."""
    require_namespaces()
    sweep()
    # Short, as unix sockets must fit into 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-e2e-{os.getpid()}-"))
    try:
        with joined_pair() as (one, two):
            server = ConsulAgent(one, directory / "alpha", server_config("alpha", one.address), line=consul_line)
            joining = client_config("beta", two.address, one.address)
            client = ConsulAgent(two, directory / "beta", joining, line=consul_line)
            try:
                server.start()
                # A client that joins before there is a leader syncs its services 15 seconds later.
                server.wait_ready()
                client.start()
                client.wait_ready()
                yield Site(server, client, directory)
            finally:
                # Killed, as a graceful leave takes seconds and nobody is left to be told.
                client.process.kill()
                server.process.kill()
                client.process.forget()
                server.process.forget()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test the HAProxys of its file, where it names none itself."""
    named = any("haproxy_version" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "haproxy_version" in metafunc.fixturenames and not named:
        file = Path(metafunc.module.__file__ or "").stem
        metafunc.parametrize("haproxy_version", haproxies(file), indirect=True, scope="session")


@pytest.fixture(scope="session")
def haproxy_version(request: pytest.FixtureRequest) -> str:
    """A branch such as 2.6."""
    return str(request.param)


@pytest.fixture(scope="session")
def haproxy(haproxy_version: str) -> str:
    """Path of the HAProxy; its version is in the test's ID."""
    return binaries.haproxy(haproxy_version)


@pytest.fixture
def mesh(site: Site, haproxy: str, control: str) -> Iterator[Mesh]:
    """A mesh for one test."""
    mesh = Mesh(site, haproxy, ("--dataplane", binaries.dataplaneapi()) if control == DATAPLANE else ())
    try:
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(scope="session")
def standing(site: Site, haproxy: str) -> Iterator[Standing]:
    """The services that most tests use, started once for each HAProxy."""
    mesh = Mesh(site, haproxy)
    try:
        yield Standing(mesh)
    finally:
        mesh.close()


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the logs of hcc, HAProxy, Consul and the applications to the report of a failed test."""
    report = yield
    # A fixture that failed for many tests fails each of them with one exception: its logs are shown once.
    if report.failed and call.excinfo is not None and call.excinfo.value not in _SHOWN:
        _SHOWN.append(call.excinfo.value)
        report.sections += [(f"log of {process.title}", process.log_tail()) for process in EVIDENCE]
    if report.when == "teardown":
        drop_obsolete()
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one Consul and one HAProxy together, so that each is started once."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    for item in (items[place] for place in places):
        # What they wait for says more than where they were when all of their time was over.
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    ordered = sorted((items[place] for place in places), key=_version)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _version(item: pytest.Item) -> tuple[str, str]:
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    return str(params.get("consul_line", "")), str(params.get("haproxy_version", ""))
