"""What an agent lacks that newer Consuls have, found by what it answers and never by its version number.

Source: reference/consul.md sections 1, 3 and 6; tried on 1.8.7, 1.14.4 and 1.20.1.
"""

from __future__ import annotations

from enum import Enum

from hcc.consul.fields import fields


class Lack(Enum):
    """One missing ability; its value says, for a log line, what is missing and what that costs."""

    BLOCKING_MATCH = (
        "blocking queries for the intentions of one service; all intentions of the datacenter are watched instead, "
        "so that each change of any costs three questions"
    )
    BLOCKING_INTENTIONS = (
        "blocking queries for intentions, or the right to list them all; they are asked for every 5 seconds, and a "
        "denial is that late"
    )
    INTENTION_ENTRIES = (
        "config entries of kind service-intentions; intentions are for whole services there, without permissions"
    )
    POLICY_HEADER = (
        "the ACL default policy in answers; while the token may not ask agent/connect/authorize, callers that no "
        "intention names are refused"
    )
    CENTRAL_MERGE = (
        "proxy-defaults and service-defaults in registrations (enable_central_service_config is off); of what they "
        "say only protocols reach this sidecar"
    )
    DEFAULT_INTENTION_POLICY = (
        "default_intention_policy; the ACL default policy decides on callers that no intention names"
    )


def default_intention_policy(data: object) -> str | None:
    """What `agent/self` says of it; empty where it is not set, or not known there; None where nothing is said."""
    debug = fields(data, "").child("DebugConfig").values
    return str(debug.get("DefaultIntentionPolicy") or "") if debug else None


def lacks_of_agent(data: object) -> frozenset[Lack]:
    """What the answer of `agent/self` shows to be missing; nothing where it does not say."""
    debug = fields(data, "").child("DebugConfig").values
    found = set()
    if debug.get("EnableCentralServiceConfig") is False:
        found.add(Lack.CENTRAL_MERGE)
    if debug and "DefaultIntentionPolicy" not in debug:
        found.add(Lack.DEFAULT_INTENTION_POLICY)
    return frozenset(found)


def is_unknown_kind(text: str) -> bool:
    """Whether the error of a question about config entries means that this Consul has no such kind."""
    return "invalid config entry kind" in text
