"""What Consul's answers mean, as values. `Any` ends here: the JSON is foreign, what leaves is checked.

Source: reference/consul.md sections 1 and 6.
"""

from __future__ import annotations

from dataclasses import replace

from hcc.consul.answers import Answer, Application
from hcc.consul.chains import chain
from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import Fields, fields, items, shown
from hcc.consul.instances import query_instances
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    QueryWatch,
    RootsWatch,
    ServiceWatch,
    TokenProvidersWatch,
    WatchKey,
)
from hcc.consul.mesh_entry import mesh_entry
from hcc.consul.permissions import jwt, permission
from hcc.consul.policy import Probe
from hcc.consul.registration import registration
from hcc.consul.token_providers import token_providers
from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION
from hcc.mesh.intentions import WILDCARD, Action, Intention
from hcc.mesh.permissions import Permission
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf, Root, Roots

_ACTIONS = {"allow": Action.ALLOW, "deny": Action.DENY}


def answer(key: WatchKey, data: object) -> Answer:  # noqa: PLR0911 - one return for each kind of key
    """What the answer to a watch means; that of an `IntentionsWatch` has two parts, see `intentions`.

    That of an `EndpointsWatch` is read by `hcc.consul.entries`.

    Raises:
        ConsulAnswerError: another shape than documented; names the place.
    """
    match key:
        case ProxyWatch():
            return registration(data)
        case ServiceWatch():
            return application(data)
        case RootsWatch():
            return roots(data)
        case LeafWatch():
            return leaf(data)
        case MeshWatch():
            return mesh_entry(data)
        case TokenProvidersWatch():
            return token_providers(data)
        case ChainWatch():
            return chain(data)
        case QueryWatch():
            return query_instances(data, key.home)
        case IntentionsWatch() | EndpointsWatch():
            msg = "read in other ways: intentions(), hcc.consul.entries"
            raise TypeError(msg)


def application(data: object) -> Application:
    """The registration of the application, from `agent/service/:id`."""
    body = fields(data, "")
    return Application(body.required("ID"), body.required("Service"), body.text("Address"), body.number("Port"))


def roots(data: object) -> Roots:
    """The CA certificates. An answer without any is an error: dropping them all can never be meant."""
    body = fields(data, "")
    found = tuple(_root(root) for root in body.children("Roots"))
    if not found:
        raise ConsulAnswerError("Roots", "at least one CA certificate", "none")
    return Roots(body.required("TrustDomain"), found)


def leaf(data: object) -> Leaf:
    """A service's certificate and key."""
    body = fields(data, "")
    return Leaf(
        service=body.required("Service"),
        uri=body.required("ServiceURI"),
        cert_pem=body.required("CertPEM"),
        key_pem=_private_key(body),
        not_before=body.text("ValidAfter"),
        not_after=body.text("ValidBefore"),
    )


def intentions(data: object) -> tuple[Intention, ...]:
    """The intentions of a match answer (a map with one name, whose list may be null), in Consul's order."""
    lists = fields(data, "").values
    if len(lists) != 1:
        # That there are none Consul says by name; taking less for it could open the door.
        raise ConsulAnswerError("answer", "an object with one list", shown(data))
    return tuple(
        _intention(fields(item, f"[{name}][{position}]"))
        for name in sorted(lists)
        for position, item in enumerate(items(lists[name], f"[{name}]"))
    )


def probe(data: object) -> Probe:
    """The answer of `agent/connect/authorize`."""
    body = fields(data, "")
    if "Authorized" not in body.values:
        raise body.error("Authorized", "true or false")
    reason = body.text("Reason").lower()
    # "Default behavior configured by ACLs", "ACLs disabled, access is allowed by default", or "Matched ..".
    by_intention = reason.startswith("matched") or "default" not in reason
    return Probe(body.flag("Authorized"), by_intention=by_intention)


def maintenance_reason(data: object, service_id: str) -> str | None:
    """Why a service is in maintenance mode, by `agent/checks`; None where it is not."""
    # The keys are not taken: what they are is not documented.
    checks = [check for _, check in fields({"checks": data}, "").entries("checks")]
    ours = (check for check in checks if check.text("CheckID") == f"_service_maintenance:{service_id}")
    return next((check.text("Notes") for check in ours), None)


def _root(root: Fields) -> Root:
    return Root(root.required("ID"), root.required("RootCert"))


def _private_key(body: Fields) -> Secret:
    text = body.values.get("PrivateKeyPEM")
    if not isinstance(text, str) or not text:
        # What was found must not be shown: it may be half a key.
        raise ConsulAnswerError("PrivateKeyPEM", "a private key", "nothing usable")
    return Secret(text)


def _intention(item: Fields) -> Intention:
    permissions = tuple(permission(each) for each in item.children("Permissions"))
    # An action that is not known denies, here as everywhere.
    action = Action.PERMISSIONS if permissions else _ACTIONS.get(item.text("Action"), Action.DENY)
    group = item.text("SourceSamenessGroup")
    found = Intention(
        source=item.required("SourceName"),
        action=action,
        precedence=item.number("Precedence"),
        permissions=permissions,
        source_namespace=item.text("SourceNS") or DEFAULT_NAMESPACE,
        source_partition=item.text("SourcePartition") or DEFAULT_PARTITION,
        peer=item.text("SourcePeer"),
        jwt=jwt(item),
    )
    return _of_group(found, group) if group else found


def _of_group(found: Intention, group: str) -> Intention:
    """An intention for a sameness group (Enterprise), which cannot be resolved here: our partition may be in it.

    What it just allows is for others then. What it denies, or lets depend on requests or tokens, is denied to our own
    callers of that name, too: one that did not see it would be let in by what comes after it.
    """
    if found.action is Action.ALLOW and found.jwt is None:
        return replace(found, peer=f"sameness group {group}")
    if found.action is not Action.DENY:
        fault = f"who is in the sameness group {group!r} is not known"
        found = replace(found, action=Action.PERMISSIONS, permissions=(Permission(allow=False, fault=fault),), jwt=None)
    return replace(found, source_partition=WILDCARD)
