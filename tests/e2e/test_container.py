"""The image of deploy/container: built, and run as an engine would run it.

Only where there is a builder (`apt-get install buildah debootstrap`, root): a minute and a half at first, 40 s with the
base in the cache. The base that the Containerfile names comes from a registry; here it is made of Debian's own packages
under the same name. No engine is needed: the sidecars run in namespaces of their own, as nobody's user, with a
read-only root and tini as PID 1.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import binaries
from tests.bench.mesh import ask
from tests.bench.programs import Program, started
from tests.e2e.processes import ROOT
from tests.e2e.waiting import wait_until
from tests.ports import free_ports

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("debootstrap") and os.geteuid() == 0),
        reason="only where an image can be built: buildah, debootstrap, root",
    ),
]

BASE = "docker.io/library/python:3.13-slim-trixie"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hcc" / "container-base.tar"
# How this machine reaches packages; the base has Debian's own.
OURS = ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt", "etc/resolv.conf", "etc/hosts")
USER = "10001:10001"


class Builder:
    """buildah with all it stores in one directory."""

    def __init__(self, folder: Path) -> None:
        self.own = ("--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run"))

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["buildah", *self.own, *words], capture_output=True, text=True, timeout=500, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a container of the image."""
    folder = tmp_path_factory.mktemp("image")
    build = Builder(folder)
    try:
        base = build("from", "scratch")
        build("add", "--quiet", base, str(_base(folder)), "/")
        build("commit", "--quiet", base, BASE)
        file = str(ROOT / "deploy" / "container" / "Containerfile")
        build("bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "-f", file, "-t", "hcc", str(ROOT))
        container = build("from", "--pull-never", "localhost/hcc")
        yield Path(build("mount", container))
    finally:
        subprocess.run(["buildah", *build.own, "umount", "--all"], capture_output=True, check=False)
        shutil.rmtree(folder)


def _base(folder: Path) -> Path:
    if not CACHE.exists():
        root = folder / "base"
        packages = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "trixie", str(root), _mirror()],
            capture_output=True,
            timeout=500,
            check=True,
        )
        (root / "usr/bin/python").symlink_to("python3")
        shutil.copytree("/etc/apt/apt.conf.d", root / "etc/apt/apt.conf.d", dirs_exist_ok=True)
        for name in OURS:
            if Path("/", name).exists():
                shutil.copy(Path("/", name), root / name)
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        made = CACHE.with_suffix(".new")
        subprocess.run(["tar", "-C", str(root), "-cf", str(made), "."], timeout=100, check=True)
        made.rename(CACHE)
        shutil.rmtree(root)
    return CACHE


def _mirror() -> str:
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return next(line for line in done.stdout.splitlines() if "-security" not in line)


def _sidecar(image: Path, service: str, consul: int, stats: int, folder: Path) -> Program:
    """As an engine would start the image's entry point."""
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && mount -t proc proc "$1/proc"'
        ' && mount --rbind /dev "$1/dev" && mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$1/run/hcc"'
        ' && root=$1 && shift && exec chroot --userspec=10001:10001 "$root" env -i "$@"'
    )
    settings = {
        "PATH": "/opt/hcc/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HCC_STATE_DIR": "/run/hcc",
        "HCC_SIDECAR_FOR": service,
        "HCC_HTTP_ADDR": f"127.0.0.1:{consul}",
        "HCC_STATS_ADDR": f"127.0.0.1:{stats}",
    }
    given = [f"{name}={value}" for name, value in settings.items()]
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    inside = ("sh", "-c", script, "sh", str(image), *given, "tini", "--", "hcc", "run")
    return Program(f"container-{service}", [*unshare, *inside], folder)


def _inside(program: Program, image: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command beside the sidecar, as an engine's `exec` runs it."""
    enter = (
        "nsenter",
        "--target",
        str(_first(program)),
        "--mount",
        "--pid",
        "chroot",
        f"--userspec={USER}",
        str(image),
    )
    own = ("env", "-i", "PATH=/opt/hcc/bin:/usr/sbin:/usr/bin:/bin", "HCC_STATE_DIR=/run/hcc")
    return subprocess.run([*enter, *own, *words], capture_output=True, text=True, timeout=60, check=False)


def _first(program: Program) -> int:
    """PID 1 of the container, as we see it."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert children, program.log.read_text()
    return int(children[0])


def test_the_image_is_built_and_its_sidecars_allow_refuse_and_drain(image: Path, tmp_path: Path) -> None:
    consul, server, serf, wan, app, public, upstream, caller, *stats = free_ports(10)
    services = [
        {"name": "server", "port": app, "connect": {"sidecar_service": {"port": public}}},
        {
            "name": "client",
            "port": 1,
            "connect": {
                "sidecar_service": {
                    "port": caller,
                    "proxy": {"upstreams": [{"destination_name": "server", "local_bind_port": upstream}]},
                }
            },
        },
    ]
    ports = {"http": consul, "server": server, "serf_lan": serf, "serf_wan": wan, "grpc": -1, "grpc_tls": -1, "dns": -1}
    file = tmp_path / "consul.json"
    file.write_text(json.dumps({"ports": ports, "services": services}))
    with ExitStack() as stack:
        words = [binaries.consul(), "agent", "-dev", "-config-file", str(file)]
        stack.enter_context(started("consul", words, tmp_path, consul))
        hello = ["python3", str(ROOT / "deploy/demo/hello.py"), str(app)]
        stack.enter_context(started("app", hello, tmp_path, app))
        sidecars = [
            stack.enter_context(_sidecar(image, name, consul, port, tmp_path))
            for name, port in zip(("server", "client"), stats, strict=True)
        ]
        wait_until("an answer through the mesh", lambda: _status(upstream) == 200, 60)
        deny = {"Kind": "service-intentions", "Name": "server", "Sources": [{"Name": "client", "Action": "deny"}]}
        assert ask(consul, "/v1/config", "PUT", json.dumps(deny))[0] == 200
        wait_until("the refusal", lambda: _status(upstream) == 0)

        assert _inside(sidecars[0], image, "hcc", "wait-ready", "--timeout", "1s").returncode == 0
        assert _inside(sidecars[0], image, "hcc", "status").stdout.startswith("server-sidecar-proxy  ready")
        assert _inside(sidecars[0], image, "cat", "/proc/1/cmdline").stdout.startswith("tini\0")
        assert _inside(sidecars[0], image, "touch", "/x").returncode != 0
        os.kill(_first(sidecars[0]), signal.SIGTERM)
        wait_until("the end", lambda: '"message": "stopped"' in sidecars[0].log.read_text(), 20)


def _status(port: int) -> int:
    try:
        return ask(port, "/")[0]
    except (OSError, http.client.HTTPException):
        return 0
