"""What the story happens on: programs found, ports taken, agent and sidecars ready to be started."""

from dataclasses import dataclass
from pathlib import Path

from demo.agent import Agent, take_agent_ports
from demo.children import Children
from demo.ports import Ports
from demo.programs import Programs, find_programs
from demo.sidecar import Sidecar, modern, successor
from demo.talk import Talk


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the demo needs, nothing started yet.

    Args:
        folder: logs and Consul's two files; with the sidecars' state in `state`.
        ports: held as long as this is, so that no other demo takes them.
        app_port: of the test server.
        upstream_port: where client calls server.
    """

    folder: Path
    children: Children
    programs: Programs
    ports: Ports
    app_port: int
    upstream_port: int
    agent: Agent
    server: Sidecar
    client: Sidecar


def set_stage(talk: Talk, folder: Path, children: Children) -> Stage:
    """The stage, with the usual ports where they are free.

    Raises:
        StepError: a program or a free port is missing.
    """
    programs = find_programs()
    ports = Ports(talk)
    app_port = ports.take(8181, "the test server")
    upstream_port = ports.take(9191, "where client calls server")
    agent = Agent(programs.consul, children, take_agent_ports(ports), folder)
    make = {"server": modern, "client": successor}
    sidecars = {}
    for service, plan in make.items():
        stats_port = ports.take(20000, f"metrics of {service}'s sidecar")
        planned = plan(programs, service, agent.address, stats_port, folder / "state")
        sidecars[service] = Sidecar(planned, children)
    return Stage(folder, children, programs, ports, app_port, upstream_port, agent, **sidecars)
