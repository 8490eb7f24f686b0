import pytest

from hcc.app.selection import Chosen, chosen
from hcc.consul.errors import AmbiguousProxyError, NoProxyError
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
