"""One sidecar of the demo: hcc under either of its names, with its own HAProxy."""

from dataclasses import dataclass
from pathlib import Path

from demo.caller import fetch
from demo.children import Children
from demo.programs import Programs

_READY_S = 20.0
_METRICS = (
    "hcc_ready ",
    "hcc_haproxy_up ",
    "hcc_leaf_expiry_timestamp_seconds ",
    "hcc_spoe_verdicts_total",
    "hcc_reloads_total ",
)
_OK = 200


@dataclass(frozen=True, slots=True)
class SidecarPlan:
    """What a sidecar is started with: `command` as a user types it, `words` the same with full paths."""

    service: str
    stats_port: int
    state: Path
    command: tuple[str, ...]
    words: tuple[str, ...]


def modern(programs: Programs, service: str, agent: str, stats_port: int, state: Path) -> SidecarPlan:
    """A sidecar under the new name, with the new flags."""
    flags = (
        "run", "--sidecar-for", service, "--http-addr", agent, "--stats-addr", f"127.0.0.1:{stats_port}",
        "--state-dir", str(state), "--haproxy", str(programs.haproxy), "--drain-timeout", "2s", "--log-format", "text",
    )  # fmt: skip
    return SidecarPlan(service, stats_port, state, ("hcc", *flags), (str(programs.hcc), *flags))


def successor(programs: Programs, service: str, agent: str, stats_port: int, state: Path) -> SidecarPlan:
    """A sidecar under the Go program's name, with the Go program's flags."""
    flags = (
        "-sidecar-for", service, "-log-level", "debug", "-http-addr", agent, "-stats-addr",
        f"127.0.0.1:{stats_port}", "-haproxy-cfg-base-path", str(state), "-haproxy", str(programs.haproxy),
    )  # fmt: skip
    return SidecarPlan(service, stats_port, state, ("haproxy-consul-connect", *flags), (str(programs.old_name), *flags))


class Sidecar:
    """A sidecar, started by `start`."""

    def __init__(self, plan: SidecarPlan, children: Children) -> None:
        self.plan = plan
        self._children = children
        self._name = f"sidecar-{plan.service}"
        self.log = children.log(self._name)

    def start(self) -> float:
        """Seconds from its start until it says that it is ready."""
        self._children.start(self._name, self.plan.words)
        what = f"{self.plan.service}'s sidecar starts"
        return self._children.wait(what, self._missing, _READY_S, self.log)

    def about(self) -> tuple[str, ...]:
        """The flags by which other hcc commands find it."""
        return ("--sidecar-for", self.plan.service, "--state-dir", str(self.plan.state))

    def metrics(self) -> str:
        """A few lines of what Prometheus would read."""
        text = fetch(self.plan.stats_port, "/metrics").body
        return "\n".join(line for line in text.splitlines() if line.startswith(_METRICS))

    def _missing(self) -> str:
        answer = fetch(self.plan.stats_port, "/ready")
        if answer.status == _OK:
            return ""
        return "not ready: " + ", ".join(answer.body.split()) if answer.status else "not listening yet"
