import threading
from collections.abc import Callable
from typing import cast

import pytest

from hcc.app import selection
from hcc.app.selection import Chosen, choose_proxy, chosen
from hcc.consul.client import ConsulClient
from hcc.consul.errors import (
    AmbiguousProxyError,
    ConsulCutOffError,
    ConsulUnavailableError,
    InterruptedPollError,
    NoProxyError,
)
from hcc.consul.response import Result
from hcc.settings import Selection


def proxy(proxy_id: str, service_id: str, service: str = "web") -> dict[str, object]:
    return {
        "ID": proxy_id,
        "Service": f"{service}-sidecar-proxy",
        "Kind": "connect-proxy",
        "Address": "10.0.0.1",
        "Proxy": {"DestinationServiceID": service_id, "DestinationServiceName": service},
    }


SERVICES: dict[str, object] = {
    "web1": {"ID": "web1", "Service": "web", "Tags": ["blue"]},
    "web1-proxy": proxy("web1-proxy", "web1"),
    "web2": {"ID": "web2", "Service": "web", "Tags": ["green"]},
    "web2-proxy": proxy("web2-proxy", "web2"),
    "web2-other": proxy("web2-other", "web2"),
}


def test_the_sidecar_of_a_service_is_found_with_what_it_stands_for() -> None:
    found = chosen(SERVICES, Selection(sidecar_for="web1"))

    assert found == Chosen("web1-proxy", "web1", "web", "10.0.0.1")


def test_a_proxy_is_found_by_its_own_id_or_a_tag_of_its_service() -> None:
    assert chosen(SERVICES, Selection(proxy_id="web2-other")).proxy_id == "web2-other"
    assert chosen(SERVICES, Selection(sidecar_for_tag="blue")).proxy_id == "web1-proxy"


def test_several_sidecars_are_an_error_that_names_them() -> None:
    with pytest.raises(AmbiguousProxyError, match="web2-other"):
        chosen(SERVICES, Selection(sidecar_for="web2"))


def test_no_sidecar_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(NoProxyError, match="web1"):
        chosen(SERVICES, Selection(sidecar_for="api"))


class Agent:
    """Answers one after the other; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    def __call__(self) -> "Agent":
        return self

    def services(self) -> Result:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Result(answer)

    def close(self) -> None:
        pass


def choose(*answers: object, instead: Chosen | None = None) -> Chosen | None:
    agent = cast("Callable[[], ConsulClient]", Agent(*answers))
    return choose_proxy(Selection(sidecar_for="web1"), agent, threading.Event(), lambda: instead)


def test_an_agent_that_lists_nothing_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "FIRST_RETRY_S", 0.0)

    found = choose({}, ConsulUnavailableError("nobody there"), {}, {}, ConsulCutOffError("no servers", 403), SERVICES)

    assert found is not None
    assert found.proxy_id == "web1-proxy"
    assert [record.getMessage().count("asking until there is an answer") for record in caplog.records] == [1] * 4


def test_an_agent_that_lists_nothing_may_be_gone_on_without() -> None:
    assert choose({}, instead=Chosen("web1-proxy")) == Chosen("web1-proxy")


def test_among_the_services_that_an_agent_lists_ours_must_be() -> None:
    others = {name: SERVICES[name] for name in ("web2", "web2-proxy")}
    with pytest.raises(NoProxyError, match="web2"):
        choose(others, instead=Chosen("web1-proxy"))


class Silent:
    """Takes the question, and says nothing until it is broken off."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.interrupted = threading.Event()

    def __call__(self) -> "Silent":
        return self

    def services(self) -> Result:
        self.asked.set()
        assert self.interrupted.wait(10)
        raise InterruptedPollError("/v1/agent/services")

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("instead", [None, Chosen("web1-proxy")])
def test_who_stops_us_need_not_wait_for_an_agent_that_says_nothing(
    instead: Chosen | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "STOP_WAIT_S", 0.0)
    agent, stop = Silent(), threading.Event()

    def stop_meanwhile() -> None:
        assert agent.asked.wait(10)
        stop.set()

    threading.Thread(target=stop_meanwhile).start()
    client = cast("Callable[[], ConsulClient]", agent)
    assert choose_proxy(Selection(sidecar_for="web1"), client, stop, lambda: instead) == instead
    assert "asking until there is an answer" not in caplog.text
