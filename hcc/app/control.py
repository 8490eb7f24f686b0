"""Which back end drives HAProxy, and why; and its parts."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.haproxy.capabilities import Build, Capabilities, capabilities_of
from hcc.haproxy.control import Control
from hcc.haproxy.dataplane import DataplaneControl
from hcc.haproxy.dataplane_process import DataplaneProcess, end_left_over, own_password
from hcc.haproxy.dataplane_program import DataplaneProgram, find_dataplane, reload_command, without_dropped
from hcc.haproxy.direct import DirectControl
from hcc.haproxy.files import remove
from hcc.haproxy.layout import Layout
from hcc.haproxy.process import HAProxyProcess
from hcc.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Choice:
    """A back end, in words too.

    Args:
        program: of the Data Plane API, None for `direct`.
    """

    capabilities: Capabilities
    program: DataplaneProgram | None
    reason: str


@dataclass(frozen=True, slots=True)
class Driven:
    """One HAProxy, what drives it, and what that needs to run beside it."""

    control: Control
    process: HAProxyProcess
    dataplane: DataplaneProcess | None


def choose_control(settings: RunSettings, build: Build) -> Choice:
    """The back end to use.

    Raises:
        SettingError: the Data Plane API is wanted and there is none, or it cannot serve this HAProxy.
    """
    able = capabilities_of(build)
    if settings.control == "direct":
        return Choice(able, None, "direct, over HAProxy's own sockets")
    program = find_dataplane(settings.dataplane)
    reason = f"Data Plane API {program.generation}.x at {program.binary}, from {program.origin}"
    return Choice(without_dropped(able, program), program, reason)


def driven(choice: Choice, binary: str, layout: Layout, *, shares_stdout: bool) -> Driven:
    """The parts of a back end; nothing of it runs yet.

    Raises:
        SettingError: the Data Plane API cannot run in this directory.
    """
    process = HAProxyProcess(binary, layout, shares_stdout=shares_stdout)
    # A Data Plane API of an earlier hcc would go on writing to our file, and may want to know what was posted.
    # Later than here that may be by us.
    end_left_over(layout)
    remove(layout.wanted)
    if choice.program is None:
        return Driven(DirectControl(binary, layout, choice.capabilities), process, None)
    reload_command(layout)
    password = own_password(layout)
    control = DataplaneControl(binary, layout, choice.capabilities, password)
    return Driven(control, process, DataplaneProcess(choice.program, binary, layout, password))
