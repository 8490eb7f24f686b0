"""What is still to be cut of the sessions of callers that are denied, where, and how far. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Reach:
    """Whose sessions are cut beyond those of callers that are known to be denied.

    Args:
        unknown: of whom nobody knows who it is.
        everybody: of all callers, as those that are open began under another trust domain.
    """

    unknown: bool = False
    everybody: bool = False


@dataclass(frozen=True, slots=True)
class CutDebt:
    """What is owed in the worker that serves, and in those that stop; each event makes another one of it.

    Args:
        version: of the policy that counts; None before the first.
        denial: whether there may be sessions of callers that were let in before and are denied now.
        inherited: whether there may be sessions that a predecessor, or an earlier hcc, was to cut: what it owed is not
            known.
        strangers: whether all that are open began under another trust domain; a denial then, too.
        cut_by: version of the policy by which whom nobody knows was cut last; under another one such a caller may be
            one that it lets in.
        stopping: whether workers that stop have not all been told of that cut.
        stopping_strangers: whether all that are open there began under another trust domain.
    """

    version: int | None = None
    denial: bool = False
    inherited: bool = True
    strangers: bool = False
    cut_by: int | None = None
    stopping: bool = False
    stopping_strangers: bool = False

    # ---- what happened

    def taken(self, version: int, *, denies: bool, strangers: bool) -> CutDebt:
        """Another policy counts, which denies callers that the one before let in, or has another trust domain."""
        strangers = self.strangers or strangers
        return replace(self, version=version, strangers=strangers, denial=self.denial or strangers or denies)

    def found(self, *, denied: bool) -> CutDebt:
        """It was seen whether HAProxy lets in callers that are denied."""
        return replace(self, denial=self.denial or denied)

    def cut(self, *, runs: bool) -> CutDebt:
        """The current worker's are cut; where it is not known that HAProxy `runs`, there may just be nobody to ask."""
        left = replace(self, inherited=self.inherited and not runs)
        if not self.denial:
            return left
        everywhere = self.stopping_strangers or self.strangers
        return replace(
            left, denial=False, strangers=False, cut_by=self.version, stopping=True, stopping_strangers=everywhere
        )

    def repeated(self) -> CutDebt:
        """The moment came to cut once more, for those that came in meanwhile: in workers that stop, too."""
        return replace(self, stopping=True)

    def told(self) -> CutDebt:
        """All workers that stop did what they were to do, or none is there."""
        return replace(self, stopping=False, stopping_strangers=False)

    # ---- what is to be done

    def is_due(self, *, runs: bool) -> bool:
        """Whether to cut now. Of a predecessor's only where HAProxy `runs`: nobody may listen on it for a moment."""
        return self.denial or (self.inherited and runs)

    @property
    def due(self) -> Reach:
        """Of a predecessor's nobody unknown: such a caller may be one that every policy lets in."""
        return Reach(self.denial, self.strangers)

    @property
    def again(self) -> Reach:
        """When it is cut once more; a denial that could not be cut yet is made good then."""
        return Reach(self.denial or self._still_counts, self.strangers)

    @property
    def in_stopping(self) -> Reach:
        """In workers that stop, which may hear of it before the one that serves."""
        return Reach(self.stopping and self._still_counts, self.stopping_strangers or self.strangers)

    @property
    def _still_counts(self) -> bool:
        return self.cut_by is not None and self.cut_by == self.version
