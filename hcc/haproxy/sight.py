"""What one worker of HAProxy looks at in a request, and which rules it can therefore not decide by. Pure.

That is part of its configuration: under a policy that looks at more it takes a reload until such rules are decided by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hcc.haproxy.model import Authorisation
from hcc.haproxy.render_tokens import token_places
from hcc.haproxy.request_rules import sees
from hcc.mesh.judgement import Judgement
from hcc.mesh.request import LookedAt
from hcc.mesh.rules import DENY, RuleSet
from hcc.mesh.token_demands import TOKEN_PREFIX
from hcc.mesh.token_providers import TokenPlace


@dataclass(frozen=True, slots=True)
class Sight:
    """What a worker looks at: headers for rules, and places where tokens may be."""

    headers: tuple[LookedAt, ...] = ()
    places: tuple[TokenPlace, ...] = ()


def sight_for(judgement: Judgement) -> Sight:
    """That of a worker whose configuration was made for this policy. All of its permissions are compiled for it."""
    return Sight(judgement.headers, token_places(judgement.policy))


def sight_by(authorisation: Authorisation | None) -> Sight:
    """That of a worker with this configuration."""
    return Sight(authorisation.headers, authorisation.token_places) if authorisation is not None else Sight()


def unseen_sets(judgement: Judgement, sight: Sight) -> frozenset[str]:
    """The names of those of the policy's rule sets that a worker with this sight cannot decide by."""
    asking = {name for name, each in judgement.sets.items() if _asks(each)}
    # This looks at every intention, and few policies leave anything to tokens.
    if not asking or set(token_places(judgement.policy)) <= set(sight.places):
        asking = set()
    return frozenset(asking | {name for name, each in judgement.sets.items() if not sees(each, sight.headers)})


def held_verdicts(wanted: Mapping[str, str], found: Mapping[str, str], unseen: Collection[str]) -> dict[str, str]:
    """Verdicts that are to stay as they are found for now, by the caller's key.

    They let in, by whatever rules, who would be denied everything by rules that cannot be looked at yet.
    """
    return {
        key: found[key]
        for key, verdict in wanted.items()
        if verdict in unseen and found.get(key, DENY) not in (DENY, verdict)
    }


def _asks(rules: RuleSet) -> bool:
    """Whether it leaves a request to its token."""
    return any(says.startswith(TOKEN_PREFIX) for says in (rules.default, *(rule.says for rule in rules.rules)))
