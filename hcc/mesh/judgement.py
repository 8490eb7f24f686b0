"""What one policy says of many callers: each of its intentions is looked at once, when a caller first comes under it.

The words are those of HAProxy's map of verdicts, and what `hcc.mesh.intentions.verdict_of` says for each caller.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION, ServiceIdentity
from hcc.mesh.intentions import WILDCARD, Intention, Policy, Verdict, by_default, by_intention, governing
from hcc.mesh.request import LookedAt
from hcc.mesh.rules import ALLOW, DENY, RuleSet, looked_at


class Judgement:
    """A policy, and what came out of it so far. For one thread.

    Args:
        policy: it does not change; another one has a judgement of its own.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._trust_domain = policy.trust_domain.lower()
        # By the intention's identity, as to compare its permissions takes as long as to compile them.
        self._said: dict[int, tuple[str, RuleSet | None]] = {}

    def word_on(self, caller: ServiceIdentity) -> str:
        """`ALLOW`, `DENY`, or the name of the rules that decide request by request."""
        if caller.trust_domain != self._trust_domain:
            return DENY
        one = governing(self.by_source.get(caller.service, self.by_source[WILDCARD]), caller)
        return word_of(by_default(self.policy, caller)) if one is None else self._says(one)[0]

    def denies(self, caller: ServiceIdentity | None) -> bool:
        """Whether whatever it requests is denied; None is whoever is no service."""
        return caller is None or self.word_on(caller) == DENY

    @cached_property
    def by_source(self) -> dict[str, tuple[Intention, ...]]:
        """The intentions that can match a source of that name; under the wildcard those for all other names."""
        ours = [one for one in self.policy.intentions if not one.peer]
        general = tuple(one for one in ours if one.source == WILDCARD)
        found = {WILDCARD: general}
        for one in ours:
            if one.source != WILDCARD:
                found[one.source] = (*found.get(one.source, general), one)
        return found

    @cached_property
    def sets(self) -> dict[str, RuleSet]:
        """Every rule set that a caller may get, by its name, in the order of the intentions."""
        said = (self._says(one) for one in self.policy.intentions if not one.peer)
        return {word: rules for word, rules in said if rules is not None}

    @cached_property
    def headers(self) -> tuple[LookedAt, ...]:
        """The headers that rules look at, by name."""
        return looked_at(self.sets.values())

    def _says(self, intention: Intention) -> tuple[str, RuleSet | None]:
        found = self._said.get(id(intention))
        if found is None:
            verdict = by_intention(intention, self.policy)
            found = self._said[id(intention)] = (word_of(verdict), verdict.rules)
        return found


def word_of(verdict: Verdict) -> str:
    """The word for the map of verdicts."""
    return verdict.rules.name if verdict.rules else ALLOW if verdict.allowed else DENY


def may_deny_anew(before: Judgement, now: Judgement) -> bool:
    """Whether some caller, of whatever name, was let in by `before` and is denied whatever it requests by `now`."""
    if before.policy.trust_domain.lower() != now.policy.trust_domain.lower():
        return True
    told = [one for one in (*before.policy.intentions, *now.policy.intentions) if not one.peer]
    namespaces = {one.source_namespace for one in told} | {WILDCARD, DEFAULT_NAMESPACE}
    partitions = {one.source_partition for one in told} | {WILDCARD, DEFAULT_PARTITION}
    earlier, later = before.by_source, now.by_source
    alike = replace(before.policy, intentions=(), version=0) == replace(now.policy, intentions=(), version=0)
    sources = [
        source
        for source in earlier.keys() | later.keys()
        # Of most sources a change says nothing, and it is enforced after this.
        if not alike or earlier.get(source, earlier[WILDCARD]) != later.get(source, later[WILDCARD])
    ]
    # A wildcard in a name's place is a name that no intention has: only wildcards match it.
    callers = (
        ServiceIdentity(now.policy.trust_domain.lower(), source, "", namespace, partition)
        for source in sources
        for namespace in namespaces
        for partition in partitions
    )
    return any(not before.denies(one) and now.denies(one) for one in callers)
