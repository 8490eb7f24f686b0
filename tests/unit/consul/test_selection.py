from __future__ import annotations

from typing import Any

import pytest

from hcc.consul.errors import AmbiguousProxyError, ConsulAnswerError, NoProxyError
from hcc.consul.selection import proxy_by_id, proxy_for_service, proxy_for_tag


def sidecar(proxy_id: str, destination: str) -> dict[str, dict[str, Any]]:
    proxy = {"DestinationServiceID": destination, "DestinationServiceName": destination}
    return {proxy_id: {"Kind": "connect-proxy", "ID": proxy_id, "Service": "web-sidecar-proxy", "Proxy": proxy}}


def service(service_id: str, *tags: str, name: str = "web") -> dict[str, dict[str, Any]]:
    return {service_id: {"ID": service_id, "Service": name, "Tags": list(tags)}}


def test_the_sidecar_of_a_service_is_found_by_its_destination() -> None:
    assert proxy_for_service(sidecar("p1", "web") | sidecar("p2", "db") | service("web"), "db") == "p2"


def test_mixed_case_is_compared_exactly_first() -> None:
    services = sidecar("p1", "web") | sidecar("p2", "Web")
    assert proxy_for_service(services, "Web") == "p2"
    assert proxy_for_service(services, "web") == "p1"
    with pytest.raises(AmbiguousProxyError):
        proxy_for_service(services, "WEB")


def test_another_case_is_found_when_it_is_the_only_one() -> None:
    assert proxy_for_service(sidecar("p1", "Web-1"), "web-1") == "p1"


def test_none_names_the_services_that_have_sidecars() -> None:
    with pytest.raises(NoProxyError, match="'nobody', found sidecars for db, web"):
        proxy_for_service(sidecar("p1", "web") | sidecar("p2", "db"), "nobody")


def test_none_on_an_empty_agent_says_so() -> None:
    with pytest.raises(NoProxyError, match="none on this agent"):
        proxy_for_service({}, "web")


def test_a_proxy_without_destination_id_never_matches_nothing() -> None:
    with pytest.raises(NoProxyError):
        proxy_for_service(sidecar("p1", ""), "")


def test_several_name_the_candidates_and_the_way_out() -> None:
    with pytest.raises(AmbiguousProxyError, match="found p1, p2; choose with --proxy-id"):
        proxy_for_service(sidecar("p2", "web") | sidecar("p1", "web"), "web")


def test_a_proxy_is_found_by_its_own_id_and_nothing_else_is() -> None:
    services = sidecar("p1", "web") | service("web")
    assert proxy_by_id(services, "p1") == "p1"
    with pytest.raises(NoProxyError, match="'web', found p1"):
        proxy_by_id(services, "web")


def test_a_tag_names_the_service_and_not_its_sidecar() -> None:
    services = service("web-1", "blue") | service("web-2", "green") | sidecar("p1", "web-1") | sidecar("p2", "web-2")
    services["p1"]["Tags"] = ["blue"]
    assert proxy_for_tag(services, "blue") == "p1"


def test_a_tag_of_several_services_names_them() -> None:
    with pytest.raises(AmbiguousProxyError, match="found a, b"):
        proxy_for_tag(service("b", "blue") | service("a", "blue"), "blue")


def test_a_tag_of_no_service_is_refused() -> None:
    with pytest.raises(NoProxyError, match="tag 'red'"):
        proxy_for_tag(service("a", "blue"), "red")


def test_an_answer_of_another_shape_is_an_error() -> None:
    with pytest.raises(ConsulAnswerError):
        proxy_for_service({"web": "no object"}, "web")
