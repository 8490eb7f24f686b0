"""Which sidecar is meant: the flags for it, what the environment says of it, and asking it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path


def add_choice(group: argparse._ActionsContainer) -> None:
    """The flags that choose one proxy; `chosen` completes them."""
    group.add_argument("--sidecar-for", metavar="ID", help="service ID (CONNECT_SIDECAR_FOR)")
    group.add_argument("--proxy-id", metavar="ID", help="the proxy's own ID (CONNECT_PROXY_ID)")


def add_state_dir(group: argparse._ActionsContainer) -> None:
    """The flag for the directory below which sidecars have theirs."""
    default = default_state_dir(os.environ)
    group.add_argument("--state-dir", default=default, metavar="DIR", help=f"base directory ({default})")


def add_instance(command: argparse.ArgumentParser) -> None:
    """The flags by which a running sidecar is found."""
    add_choice(command)
    add_state_dir(command)


def chosen(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, str]:
    """Service ID and proxy ID: of the flags, and without any of the environment, where the proxy ID wins."""
    by_flag = (options.sidecar_for, options.proxy_id, getattr(options, "sidecar_for_tag", None))
    if any(value is not None for value in by_flag):
        return options.sidecar_for or "", options.proxy_id or ""
    proxy_id = environ.get("CONNECT_PROXY_ID", "")
    return "" if proxy_id else environ.get("CONNECT_SIDECAR_FOR", ""), proxy_id


def asked(options: argparse.Namespace, method: str, target: str) -> object:
    """The JSON that the chosen running sidecar answers to a request on its control socket.

    Raises:
        ControlError: it is not there, or it refused.
    """
    from hcc.cli import control

    sidecar_for, proxy_id = chosen(options, os.environ)
    return control.ask(control.find_control_socket(Path(options.state_dir), proxy_id, sidecar_for), method, target)


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Where state goes when --state-dir is not given: the user's or the system's run-time directory."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return f"{runtime}/hcc"
    return "/run/hcc" if os.geteuid() == 0 else f"/tmp/hcc-{os.geteuid()}"  # noqa: S108 (made 0700, owner checked)
