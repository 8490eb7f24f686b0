"""Which of the agent's proxies is ours, from the ID of its service, its own ID, or a tag.

Source: reference/consul.md section 3, "-sidecar-for algorithm"; the tag is from the Go program.
"""

from __future__ import annotations

from hcc.consul.errors import AmbiguousProxyError, NoProxyError
from hcc.consul.fields import Fields, fields

_PROXY = "connect-proxy"
_SIDECAR_SUFFIX = "sidecar-proxy"


def proxy_by_id(services: object, proxy_id: str) -> str:
    """The ID itself, if a connect-proxy has it.

    Args:
        services: the answer of `agent/services`.
        proxy_id: as the operator gave it; compared exactly.

    Raises:
        NoProxyError: there is none.
    """
    ids = tuple(service_id for service_id, service in _services(services) if _is_proxy(service))
    if proxy_id in ids:
        return proxy_id
    msg = f"expected a connect-proxy with the ID {proxy_id!r}, found {_listed(ids)}"
    raise NoProxyError(msg)


def proxy_for_service(services: object, service_id: str) -> str:
    """The ID of the one connect-proxy whose DestinationServiceID is that ID, exactly or else without case.

    Raises:
        NoProxyError, AmbiguousProxyError: none or several; the message names the candidates.
    """
    proxies = tuple(
        (proxy_id, service.child("Proxy").text("DestinationServiceID"))
        for proxy_id, service in _services(services)
        if _is_proxy(service) and service.child("Proxy").text("DestinationServiceID")
    )
    exact = tuple(proxy_id for proxy_id, destination in proxies if destination == service_id)
    alike = tuple(proxy_id for proxy_id, destination in proxies if destination.lower() == service_id.lower())
    found = exact or alike
    if len(found) == 1:
        return found[0]
    if found:
        msg = f"expected one sidecar for the service ID {service_id!r}, found {_listed(found)}"
        msg += "; choose with --proxy-id"
        raise AmbiguousProxyError(msg)
    known = tuple(sorted({destination for _, destination in proxies}))
    msg = f"expected a sidecar proxy for the service ID {service_id!r}, found sidecars for {_listed(known)}"
    raise NoProxyError(msg)


def proxy_for_tag(services: object, tag: str) -> str:
    """The ID of the sidecar of the one service (sidecars apart) that has the tag.

    Raises:
        NoProxyError, AmbiguousProxyError: no or several such services, or sidecars of it.
    """
    tagged = tuple(
        service_id
        for service_id, service in _services(services)
        if tag in service.texts("Tags") and not service.text("Service").endswith(_SIDECAR_SUFFIX)
    )
    if len(tagged) == 1:
        return proxy_for_service(services, tagged[0])
    if tagged:
        msg = f"expected one service with the tag {tag!r}, found {_listed(tagged)}; choose with --sidecar-for"
        raise AmbiguousProxyError(msg)
    msg = f"expected a service with the tag {tag!r}, found none on this agent"
    raise NoProxyError(msg)


def _services(services: object) -> tuple[tuple[str, Fields], ...]:
    return Fields({"services": dict(fields(services, "").values)}, "").entries("services")


def _is_proxy(service: Fields) -> bool:
    return service.text("Kind") == _PROXY


def _listed(ids: tuple[str, ...]) -> str:
    return ", ".join(ids) if ids else "none on this agent"
