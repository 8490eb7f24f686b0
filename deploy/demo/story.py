"""The steps of the demo: what happens, in order, and why."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from demo.agent import registrations
from demo.caller import Answer, fetch
from demo.programs import ROOT, version_of
from demo.sidecar import Sidecar
from demo.stage import Stage
from demo.talk import Talk

_CALL_S = 10.0
_HEALTHY_S = 25.0
_LOG_S, _LOG_POLL_S = 1.0, 0.01
_DENIAL = "denied: source="
_OK = 200
_INTRODUCTION = """\
HAProxy Connect: the example of the original README, for real.

   you           client's sidecar                server's sidecar               test server
   curl --http-- 127.0.0.1:{upstream:<5} HAProxy ==mTLS== HAProxy: may client in? --http-- 127.0.0.1:{app}
                               hcc               hcc
                                  `------ Consul ------'

Both services share one machine and one Consul agent here. The original wants two machines: the end-to-end
tests (make test) do that for real, with two network namespaces.
"""


class Story:
    """All steps; each may raise StepError (it did not work) or StoppedError (a signal came)."""

    def __init__(self, talk: Talk, stage: Stage) -> None:
        self._talk = talk
        self._stage = stage

    def tell(self) -> None:
        """Go through them."""
        self._introduce()
        self._start_consul()
        self._start_test_server()
        self._start_server_sidecar()
        self._start_client_sidecar()
        self._call()
        self._deny()
        self._allow()
        self._look_inside()

    def stay(self) -> NoReturn:
        """Leave everything running until a signal comes."""
        talk, stage = self._talk, self._stage
        talk.step("Your turn: everything stays up until Ctrl-C")
        talk.say("In another terminal (the first line makes hcc and consul known there):")
        talk.command("export", f"PATH={stage.programs.hcc.parent}:{stage.programs.consul.parent}:$PATH")
        talk.command("curl", self._url())
        talk.command(*stage.agent.intention_command("deny"))
        talk.command("hcc", "status", *stage.client.about())
        talk.command("hcc", "troubleshoot", "upstream", "server", *stage.client.about(), *stage.agent.hcc_flags())
        talk.command("hcc", "restart", "ConsulWatcher", *stage.client.about())
        pages = " and ".join(f"http://127.0.0.1:{one.plan.stats_port}/" for one in (stage.client, stage.server))
        talk.say(f"Status pages, for a browser: {pages}")
        talk.say(f"Logs: {stage.folder}")
        stage.children.pause()

    def _introduce(self) -> None:
        stage = self._stage
        self._talk.plain(_INTRODUCTION.format(upstream=stage.upstream_port, app=stage.app_port))
        programs = stage.programs
        versions = ((programs.consul, "version"), (programs.haproxy, "-v"), (programs.hcc, "--version"))
        lines = [f"{version_of(program, flag)}: {program}" for program, flag in versions]
        self._talk.block("\n".join([*lines, f"Logs while it runs: {stage.folder}"]), mark="")

    def _start_consul(self) -> None:
        stage = self._stage
        self._talk.step("Start Consul, with both services registered")
        self._talk.say("Each asks for a sidecar; client says that it wants to call server:")
        for name, text in registrations(stage.app_port, stage.upstream_port).items():
            (stage.folder / f"{name}.json").write_text(text + "\n")
            self._talk.block(f"{name}.json: {text}")
        self._talk.command(*stage.agent.command())
        seconds = stage.agent.start()
        self._talk.say(f"Up after {seconds:.1f} s. It is the mesh's certificate authority, too.")

    def _start_test_server(self) -> None:
        stage = self._stage
        self._talk.step("Start the test server")
        program = Path(__file__).with_name("hello.py")
        self._talk.command("python3", str(program.relative_to(ROOT)), str(stage.app_port))
        name = "test-server"
        stage.children.start(name, [sys.executable, program, str(stage.app_port)])
        stage.children.wait("the test server starts", self._app_missing, _CALL_S, stage.children.log(name))
        self._talk.say("It speaks plain http and knows nothing of Consul, TLS or intentions.")

    def _start_server_sidecar(self) -> None:
        self._talk.step("Start server's sidecar")
        self._start_sidecar(self._stage.server)
        port = self._stage.agent.public_port("server")
        self._talk.say(
            f"Its HAProxy holds a certificate from Consul that says 'server', and listens on port {port}. "
            "Only callers with such a certificate get in, and only if Consul's intentions let them."
        )

    def _start_client_sidecar(self) -> None:
        self._talk.step("Start client's sidecar, by the name and flags of the Go program")
        self._start_sidecar(self._stage.client)
        self._talk.say(
            f"What comes in on 127.0.0.1:{self._stage.upstream_port} it takes to server's sidecars, "
            "encrypted, with a certificate that says 'client'."
        )

    def _call(self) -> None:
        self._talk.step("client calls server")
        self._wait_healthy()
        self._call_until("the answer", lambda answer: answer.status == _OK)
        self._talk.say(
            "Plain http at both ends, mutual TLS in between. It may: no intention forbids it, and with "
            "Consul's access control off the default is to allow. (The demo calls as curl would.)"
        )

    def _wait_healthy(self) -> None:
        stage = self._stage
        self._talk.say(
            "Consul looks at a sidecar's port every 10 s and calls it healthy from the first success on. "
            "Until then client's sidecar has nobody to send calls to."
        )
        seconds = stage.children.wait(
            "waiting for Consul's health check", stage.agent.unhealthy, _HEALTHY_S, stage.children.log("consul")
        )
        self._talk.say(f"Healthy after {seconds:.1f} s.")

    def _deny(self) -> None:
        self._talk.step("Forbid it with an intention")
        self._intend("deny")
        self._call_until("the refusal", lambda answer: answer.closed and self._is_logged())
        self._talk.say(
            "Consul told server's sidecar, which closes the connection as soon as the certificate says who "
            "calls (curl: 'Empty reply from server'). The test server never hears of it. The sidecar's log:"
        )
        self._talk.block(self._denials()[0])

    def _is_logged(self) -> bool:
        """Whether a call that got no answer was denied: its line is written just after it.

        One that was under way already when the intention came is cut, which is no denial.
        """
        given_up_s = time.monotonic() + _LOG_S
        while not self._denials():
            if time.monotonic() > given_up_s:
                return False
            time.sleep(_LOG_POLL_S)
        return True

    def _denials(self) -> list[str]:
        return [line for line in self._stage.server.log.read_text().splitlines() if _DENIAL in line]

    def _allow(self) -> None:
        self._talk.step("Allow it again")
        self._intend("allow")
        self._call_until("the answer", lambda answer: answer.status == _OK)

    def _look_inside(self) -> None:
        stage = self._stage
        self._talk.step("Look inside")
        self._talk.say("A sidecar is a tree of actors; `hcc restart NAME` restarts one of them, and traffic goes on:")
        command = ("actors", *stage.server.about())
        self._talk.command("hcc", *command)
        self._talk.block(stage.children.output_of([stage.programs.hcc, *command]))
        self._talk.say("For health checks and for Prometheus (some lines of what it reads):")
        for sidecar in (stage.client, stage.server):
            for path in ("health", "ready", "metrics"):
                self._talk.command("curl", f"http://127.0.0.1:{sidecar.plan.stats_port}/{path}")
        self._talk.block(stage.server.metrics())

    def _start_sidecar(self, sidecar: Sidecar) -> None:
        self._talk.command(*sidecar.plan.command)
        self._talk.say(f"Ready after {sidecar.start():.1f} s.")

    def _intend(self, action: str) -> None:
        command = self._stage.agent.intention_command(action)
        self._talk.command(*command)
        self._stage.children.output_of([self._stage.programs.consul, *command[1:]])

    def _call_until(self, what: str, wanted: Callable[[Answer], bool]) -> None:
        """Call again and again until the wanted answer comes, and show it."""
        answers: list[Answer] = []

        def missing() -> str:
            answers.append(fetch(self._stage.upstream_port))
            return "" if wanted(answers[-1]) else f"so far: {answers[-1].body.splitlines()[0]}"

        self._talk.command("curl", self._url())
        seconds = self._stage.children.wait(f"waiting for {what}", missing, _CALL_S, self._stage.server.log)
        self._talk.block(answers[-1].body)
        if len(answers) > 1:
            self._talk.say(f"({what} came after {seconds * 1000:.0f} ms, to request {len(answers)}.)")

    def _app_missing(self) -> str:
        return "" if fetch(self._stage.app_port, "/up").status else "not listening yet"

    def _url(self) -> str:
        return f"http://127.0.0.1:{self._stage.upstream_port}/"
