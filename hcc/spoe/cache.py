"""Decisions already made under the current policy, with their answers ready to send."""

from __future__ import annotations

from typing import NamedTuple

from hcc.mesh.intentions import Policy
from hcc.spoe.caller import BRIEF_ACTIONS, answer_actions
from hcc.spoe.decision import Decision, judge, read

MAX_ENTRIES = 4096
MAX_BYTES = 4 * 1024 * 1024
# Services let in whose next certificates are only read, not judged anew.
MAX_SERVICES = 1024


class Answer(NamedTuple):
    """One decision, ready to send.

    Args:
        actions: payload of the ACK.
        counted: 1 unless the caller is denied.
        brief: what to send where that is too long.
    """

    actions: bytes
    counted: int
    decision: Decision
    brief: bytes


def answer_for(decision: Decision) -> Answer:
    """The answer that tells HAProxy a decision."""
    actions = answer_actions(decision.allowed, decision.caller, decision.rules)
    return Answer(actions, int(not decision.denied), decision, BRIEF_ACTIONS[decision.allowed])


class DecisionCache:
    """Answers by raw certificate; the oldest leave when they are too many, all leave with their policy.

    Args:
        max_entries: most certificates remembered.
        max_bytes: most bytes of certificates remembered, together.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        # To be read directly, as one lookup per question is all that a known caller may cost.
        self.answers: dict[bytes, Answer] = {}
        self.policy: Policy | None = None
        # By the URIs of a certificate, of those that are let in.
        self._services: dict[tuple[str, ...], Answer] = {}
        self.size_bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def set_policy(self, policy: Policy) -> None:
        """Decide by this policy from now on."""
        self.policy = policy
        self.answers.clear()
        self._services.clear()
        self.size_bytes = 0

    def decide(self, der: bytes) -> Answer:
        """The answer for a certificate that is not remembered yet; it is remembered now."""
        answer = self._answer(der)
        self.answers[der] = answer
        self.size_bytes += len(der)
        while len(self.answers) > self._max_entries or self.size_bytes > self._max_bytes:
            oldest = next(iter(self.answers))
            del self.answers[oldest]
            self.size_bytes -= len(oldest)
        return answer

    def _answer(self, der: bytes) -> Answer:
        certificate = read(der)
        if isinstance(certificate, Decision):
            return answer_for(certificate)
        answer = self._services.get(certificate.uris)
        if answer is None:
            answer = answer_for(judge(certificate, self.policy))
            if not answer.decision.denied and len(self._services) < MAX_SERVICES:
                self._services[certificate.uris] = answer
        return answer
