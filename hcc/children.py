"""The environment of every process that we start: no token of ours, nothing that is there by accident."""

from __future__ import annotations

import os

# What programs and their libraries need to be found and to speak as they would without us. HAProxy could expand any
# other by its configuration, and the workers of SPOE read what strangers send.
KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "PYTHONHOME",
)


def child_environment(**added: str) -> dict[str, str]:
    """What is kept of ours, and these."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | added
