"""Prometheus and its promtool for the tests: those asked for or on PATH, if they know Consul, else built with Go.

Debian's cannot be taken: it is built without service discovery by Consul, which is how sidecars are found.
"""

import os
from functools import partial
from pathlib import Path

from installer.gobuild import Source, built
from installer.places import DEPLOY, on_path
from installer.talk import InstallError, output_of, say

_STEP = "prometheus"
_CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
# Of forty ways of discovery the one that is needed: less than half the time to build.
_TAGS = "remove_all_sd,enable_consul_sd"


def choose_prometheus() -> dict[str, Path]:
    """Both programs by the variables that name them.

    Raises:
        InstallError: one that is asked for does not serve, or there is no Go to build one.
    """
    return {f"{program.upper()}_BIN": _chosen(program) for program in ("prometheus", "promtool")}


def _chosen(program: str) -> Path:
    variable = f"{program.upper()}_BIN"
    given = os.environ.get(variable)
    path = on_path(given or program)
    if path and _works(program, path) and _knows_consul(path):
        say(_STEP, str(path))
        return path
    if given:
        raise InstallError(f"{_STEP}: ${variable} names {given}, which is no {program} that knows Consul")
    package = f"github.com/prometheus/prometheus/cmd/{program}"
    otherwise = f"Go, or a {program} that ${variable} names"
    return built(Source("prometheus", package, partial(_works, program), otherwise, _TAGS, (1, 26)))


def _works(program: str, path: Path) -> bool:
    return f"{program}, version" in output_of(path, "--version")


def _knows_consul(path: Path) -> bool:
    # Both come from one build, and promtool tells without starting a server. Where we build them they lie apart.
    beside = path.with_name("promtool")
    promtool = beside if beside.exists() else on_path(os.environ.get("PROMTOOL_BIN") or "promtool")
    return promtool is not None and "SUCCESS" in output_of(promtool, "check", "config", "--syntax-only", _CONFIG)
