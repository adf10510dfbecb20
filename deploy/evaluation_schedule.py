"""When a checkpoint is evaluated: each so many environment steps, and once more when all is learnt."""

from __future__ import annotations

from dreamfleet.deploy.ledger import Ledger


class EvaluationSchedule:
    """Says when an evaluation is due; while one is under way those that fall due become one.

    Attributes:
        awaits_checkpoint: whether a checkpoint is being written that is then to be evaluated.

    Args:
        every: environment steps between two evaluations; 0 wants none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._begun = 0
        self.awaits_checkpoint = False

    def is_due(self, ledger: Ledger) -> bool:
        """Whether one should begin now."""
        return not self.awaits_checkpoint and self._wanted(ledger) > self._begun

    def begin(self, ledger: Ledger) -> None:
        """Note that a checkpoint is being written for it."""
        self.awaits_checkpoint = True
        self.skip(ledger)

    def take_back(self) -> None:
        """Note that the checkpoint will not come: the learner was lost, and the evaluation is due again."""
        if self.awaits_checkpoint:
            self.awaits_checkpoint = False
            self._begun -= 1

    def skip(self, ledger: Ledger) -> None:
        """Count those wanted so far as done: by earlier starts of the run."""
        self._begun = self._wanted(ledger)

    def _wanted(self, ledger: Ledger) -> int:
        """Evaluations that should have begun by now; none of a model that has learnt nothing."""
        return ledger.env_steps // self._every + ledger.has_all if self._every and ledger.updates else 0
