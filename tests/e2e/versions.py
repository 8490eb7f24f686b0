"""Marks of tests that take long, or show nothing new on the other version: they run on one HAProxy only."""

from __future__ import annotations

import pytest

on_2_6 = pytest.mark.parametrize("haproxy_version", ["2.6"], indirect=True)
on_2_8 = pytest.mark.parametrize("haproxy_version", ["2.8"], indirect=True)
