"""Marks of tests that take long, or show nothing new on the other version: they run on one HAProxy only."""

from __future__ import annotations

import pytest

from hcc.haproxy.capabilities import Feature, Version, capabilities

on_2_6 = pytest.mark.parametrize("haproxy_version", ["2.6"], indirect=True)
on_2_8 = pytest.mark.parametrize("haproxy_version", ["2.8"], indirect=True)


def can(branch: str, feature: Feature) -> bool:
    """Whether HAProxy of a branch such as 2.6 has a feature of the capability table."""
    major, minor = branch.split(".")
    return capabilities(Version(int(major), int(minor))).has(feature)
