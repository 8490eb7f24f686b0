"""The HAProxy Data Plane API for the tests: the one asked for, else 1.2.5, the newest that Go's client gives out."""

import os
from pathlib import Path

from installer.gobuild import Source, built
from installer.places import on_path
from installer.talk import InstallError, output_of, say

_STEP = "dataplaneapi"
_PACKAGE = "github.com/haproxytech/dataplaneapi/cmd/dataplaneapi"


def choose_dataplaneapi() -> Path:
    """The Data Plane API to test with: $DATAPLANEAPI_BIN, else built with Go into the cache.

    Raises:
        InstallError: the one asked for does not run, or there is no Go to build one.
    """
    given = os.environ.get("DATAPLANEAPI_BIN")
    if not given:
        otherwise = "Go, or a Data Plane API that $DATAPLANEAPI_BIN names"
        return built(Source("dataplaneapi", _PACKAGE, _works, otherwise))
    path = on_path(given)
    if path is None or not _works(path):
        raise InstallError(f"{_STEP}: $DATAPLANEAPI_BIN names {given}, which does not run as Data Plane API")
    say(_STEP, f"{path} (from $DATAPLANEAPI_BIN)")
    return path


def _works(path: Path) -> bool:
    return "Data Plane API" in output_of(path, "--version")
