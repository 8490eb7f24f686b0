"""Which HAProxy, control and Consul the end-to-end tests run on, through the fixtures that pytest has for each.

Most tests run on one HAProxy, driven directly, with the Consul of the environment: on that of their file (OF_FILE),
so that a run meets every branch and takes half the time that two for each test would. The example's cases run on a
pairwise choice: every HAProxy with every Consul, and each of these with each control.

E2E_HAPROXY names other branches, such as `2.2,3.4`, or `all`; the cases then run on their full product with controls
and Consuls. A build in HAPROXY_BIN of a branch that is none of ours is always run as well.
"""

from __future__ import annotations

import itertools
import os

import pytest

from hcc.haproxy.capabilities import Feature, Version, capabilities
from tests import binaries

DIRECT, DATAPLANE = CONTROLS = ("direct", "dataplane")
_NAMED = os.environ.get("E2E_HAPROXY", "")
_FOREIGN = tuple(branch for branch in (binaries.given_haproxy(),) if branch not in ("", *binaries.HAPROXY_BRANCHES))

# Two where what HAProxy itself can do changes the way (rotation of certificates), or all else would fail with it.
OF_FILE = {
    "test_audit": ("3.2",),
    "test_callers": ("3.4",),
    "test_discovery": ("2.6",),
    "test_drain": ("2.6",),
    "test_intentions": ("3.0",),
    "test_rotation": ("2.6", "3.4"),
    "test_routes": ("3.2",),
    "test_rules": ("3.0",),
    "test_status": ("2.6",),
    "test_tokens": ("3.4",),
    "test_traffic": ("2.6", "3.2"),
}

on_2_6 = pytest.mark.parametrize("haproxy_version", ["2.6"], indirect=True)
on_2_8 = pytest.mark.parametrize("haproxy_version", ["2.8"], indirect=True)


def can(branch: str, feature: Feature) -> bool:
    """Whether HAProxy of a branch such as 2.6 has a feature of the capability table."""
    major, minor = branch.split(".")
    return capabilities(Version(int(major), int(minor))).has(feature)


def haproxies(file: str) -> tuple[str, ...]:
    """The branches that a file of tests runs on, by its name such as `test_traffic`; 2.8 where nothing is said."""
    return _named() or (*OF_FILE.get(file, ("2.8",)), *_FOREIGN)


def on_combinations(control: str) -> pytest.MarkDecorator:
    """The chosen combinations with that control, each in the name of the test.

    A file for each control: files are what the workers of a run share out.
    """
    chosen = [
        pytest.param(consul, branch, control, id=f"haproxy-{branch}-{control}-consul-{consul}")
        for consul, branch, each in sorted(_combinations())
        if each == control
    ]
    return pytest.mark.parametrize(("consul_line", "haproxy_version", "control"), chosen, indirect=True)


def pairwise(branches: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """Few combinations of Consul, HAProxy and control in which every value meets every other."""
    return {
        (line, branch, control)
        for row, branch in enumerate(branches)
        for column, line in enumerate(binaries.CONSUL_LINES)
        for control in _controls(branch, row + column, newest=line == binaries.CONSUL_LINES[-1])
    }


def _combinations() -> set[tuple[str, str, str]]:
    if named := _named():
        return set(itertools.product(binaries.CONSUL_LINES, named, CONTROLS))
    return pairwise((*binaries.HAPROXY_BRANCHES, *_FOREIGN))


def _controls(branch: str, number: int, *, newest: bool) -> tuple[str, ...]:
    if can(branch, Feature.NO_SNI_AUTO):
        # Generation 1 of the Data Plane API refuses these, so that the pair of versions must be run directly.
        return CONTROLS if newest else (DIRECT,)
    return (CONTROLS[number % 2],)


def _named() -> tuple[str, ...]:
    if _NAMED == "all":
        return (*binaries.HAPROXY_BRANCHES, *_FOREIGN)
    return tuple(_NAMED.split(",")) if _NAMED else ()
