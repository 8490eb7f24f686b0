"""The application behind the server's sidecar: a HAProxy that answers by itself, faster than a program in Python."""

from __future__ import annotations

from pathlib import Path

from tests.bench.programs import Program, started

BODY_BYTES = 1024
LARGE_BYTES = 1024 * 1024
LARGE = "/large"


def origin(haproxy: str, port: int, folder: Path, body_bytes: int = BODY_BYTES) -> Program:
    """The running application: http/1.1, 200 with a body of so many bytes, or of LARGE_BYTES for LARGE."""
    config, large = folder / "origin.cfg", folder / "large"
    large.write_bytes(b"x" * LARGE_BYTES)
    # An answer made by a rule must fit into one buffer.
    config.write_text(
        f"""global
  nbthread 1
  tune.bufsize {LARGE_BYTES + 65536}
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend origin
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain file {large} if {{ path {LARGE} }}
  http-request return status 200{_body(body_bytes)}
"""
    )
    return started("origin", [haproxy, "-db", "-f", str(config)], folder, port)


def _body(size: int) -> str:
    return f" content-type text/plain string {'x' * size}" if size else ""
