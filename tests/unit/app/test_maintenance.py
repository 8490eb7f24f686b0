"""Consul is told of a drain, and of its end, also where it does not take it at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import cast

import pytest

from hcc.app import maintenance
from hcc.app.maintenance import REASON, Maintenance
from hcc.consul.client import ConsulClient
from hcc.consul.errors import ConsulStatusError, ConsulUnavailableError
from hcc.consul.response import Result


class Agent:
    """Refuses as often as it has reasons to, then takes what it is told.

    Args:
        reasons: why it refuses.
        reason: the reason of the proxy's maintenance mode, None without one.
    """

    def __init__(self, *reasons: Exception, reason: str | None = REASON) -> None:
        self._reasons = list(reasons)
        self._reason = reason
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self.taken = threading.Event()
        self.told: list[tuple[str, bool]] = []

    def __call__(self) -> Agent:
        return self

    def critical_checks(self) -> Result:
        self.asked += 1
        checks = {"web-proxy": self._reason, "db-proxy": REASON}
        return Result(
            {
                f"check-{proxy}": {"CheckID": f"_service_maintenance:{proxy}", "Notes": reason}
                for proxy, reason in checks.items()
                if reason is not None
            }
        )

    def maintenance(self, service_id: str, *, on: bool, reason: str) -> None:
        assert reason == REASON
        self.told.append((service_id, on))
        assert self.answers.wait(10)
        if self._reasons:
            raise self._reasons.pop(0)
        self.taken.set()

    def close(self) -> None:
        pass


def of(agent: Agent) -> Maintenance:
    return Maintenance(cast("Callable[[], ConsulClient]", agent), "web-proxy")


def test_a_start_tells_of_the_end_until_consul_takes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "RETRY_S", 0.0)
    no_leader = ConsulStatusError("found 500 'No cluster leader'", 500)
    agent = Agent(no_leader, no_leader, ConsulUnavailableError("nobody there"))

    of(agent).end(threading.Event())

    assert agent.taken.wait(10)
    assert agent.told == [("web-proxy", False)] * 4
    # The same is said once.
    assert [record.getMessage() for record in caplog.records] == [
        "maintenance mode: found 500 'No cluster leader'",
        "maintenance mode: nobody there",
    ]


def test_who_stops_is_not_told_out_of_maintenance_any_more() -> None:
    agent, stop = Agent(ConsulUnavailableError("nobody there")), threading.Event()
    stop.set()

    of(agent).end(stop)

    wait_for_ends()
    assert agent.told == [("web-proxy", False)]


@pytest.mark.parametrize(
    ("reason", "lines"),
    [(None, []), ("disk", ["Consul has this proxy in maintenance mode, so that nobody calls it: disk"])],
)
def test_a_start_leaves_maintenance_that_no_drain_began(
    reason: str | None, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(reason=reason)

    of(agent).end(threading.Event())

    wait_for_ends()
    assert (agent.asked, agent.told) == (1, [])
    assert [record.getMessage() for record in caplog.records] == lines


def wait_for_ends() -> None:
    for thread in [thread for thread in threading.enumerate() if thread.name == "maintenance"]:
        thread.join(10)


def test_a_drain_that_consul_does_not_hear_of_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "BEGIN_TIMEOUT_S", 0.05)
    agent = Agent()
    agent.answers.clear()

    of(agent).begin()

    assert caplog.record_tuples == [
        (
            "hcc.app.maintenance",
            logging.ERROR,
            "maintenance mode: Consul does not answer: callers may come until the listener closes",
        )
    ]
    agent.answers.set()
    assert agent.taken.wait(10)
