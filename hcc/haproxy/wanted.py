"""What HAProxy is to decide callers' requests by: verdicts, and the rules that verdicts name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hcc.haproxy.request_rules import is_small, rule_entries
from hcc.haproxy.sight import Sight
from hcc.mesh.caller import keyed_caller
from hcc.mesh.judgement import Judgement
from hcc.mesh.rules import DENY, RuleSet


@dataclass(frozen=True, slots=True)
class Wanted:
    """For one HAProxy, by what was found in it.

    Args:
        verdicts: by the caller's key.
        held: those among them that stay as they are for now.
        rules: entries of the map of rules, in their order.
        denies: whether callers that it lets in, as found, are denied.
    """

    verdicts: dict[str, str]
    held: dict[str, str]
    rules: dict[str, str]
    denies: bool


class WantedRules:
    """Entries for each rule set that a verdict may name; worked out once until it is another; for one thread.

    Args:
        before: what stands before each entry.

    Attributes:
        left_out: names of the policy's rule sets that are too long for HAProxy, as of the last entries.
    """

    def __init__(self, before: str) -> None:
        self.left_out: tuple[str, ...] = ()
        self._before = before
        # Rule sets of the policy, and those that verdicts in HAProxy name.
        self._sets: dict[str, RuleSet] = {}
        # What was worked out last, and from what.
        self._source: tuple[object, ...] = ()
        self._entries: dict[str, str] = {}

    def take(self, judgement: Judgement, verdicts: Iterable[str]) -> None:
        """Another policy counts; of those before only rule sets stay that these verdicts, which HAProxy has, name."""
        named = set(verdicts)
        self._sets = {name: each for name, each in self._sets.items() if name in named} | judgement.sets

    def entries(self, judgement: Judgement, held: Iterable[str], sight: Sight | None) -> dict[str, str]:
        """Those for the text that HAProxy will make of a request, and for that which it makes until it is reloaded.

        Args:
            judgement: the policy that was taken last.
            held: verdicts that stay for now.
            sight: what HAProxy looks at until it is reloaded; None: at what the policy asks.
        """
        coming, sets = judgement.headers, judgement.sets
        seen = sight.headers if sight is not None else coming
        names = tuple(name for name in sorted(set(held)) if name in self._sets)
        # Callers come far more often than rules change.
        source = judgement, names, seen
        if self._source != source:
            self.left_out = tuple(name for name, each in sets.items() if not is_small(each, coming))
            kept = [self._sets[name] for name in names]
            self._entries = rule_entries([*kept, *sets.values()], seen, self._before)
            if kept or seen != coming:
                self._entries |= rule_entries(sets.values(), coming, self._before)
            self._source = source
        return self._entries


def denies_some(judgement: Judgement, found: Mapping[str, str], decided: Mapping[str, str]) -> bool:
    """Whether the policy denies callers that HAProxy lets in.

    Args:
        judgement: of the policy.
        found: verdicts in HAProxy.
        decided: the policy's, of callers for whom it was asked already.
    """
    trust_domain = judgement.policy.trust_domain
    return any(
        verdict != DENY
        and (decided[key] == DENY if key in decided else judgement.denies(keyed_caller(key, trust_domain)))
        for key, verdict in found.items()
    )
