"""When checkpoints are evaluated."""

from __future__ import annotations

from dreamfleet.deploy.fleet.ledger import Ledger


class EvaluationSchedule:
    """Says when an evaluation is due: at regular numbers of environment steps, and once more when training is done.

    Evaluations that fall due while one is under way become one.

    An evaluation counts once its report is there: one that is lost on the way is due again.

    Attributes:
        awaits_checkpoint: whether a checkpoint is being written that is then to be evaluated.

    Args:
        every: environment steps between two evaluations; 0 for none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._done = 0
        self._under_way: int | None = None  # `_done` after the evaluation under way
        self.awaits_checkpoint = False
        self._least_updates = 0  # of the checkpoint awaited: one begun earlier may be written later

    def is_owed(self, ledger: Ledger) -> bool:
        """Whether one is due or under way."""
        return self._wanted(ledger) > self._done

    def is_due(self, ledger: Ledger) -> bool:
        """Whether one should begin now."""
        return self._under_way is None and self.is_owed(ledger)

    def begin(self, ledger: Ledger) -> None:
        """Record that a checkpoint is being written for it."""
        self._under_way = self._wanted(ledger)
        self.awaits_checkpoint = True
        self._least_updates = ledger.updates

    def takes(self, updates: int) -> bool:
        """Whether a checkpoint of so many updates is the one that is awaited, or as good; if so, it is taken."""
        is_taken = self.awaits_checkpoint and updates >= self._least_updates
        self.awaits_checkpoint = self.awaits_checkpoint and not is_taken
        return is_taken

    def end(self) -> None:
        """Record that its report is there."""
        assert self._under_way is not None
        self._done, self._under_way = self._under_way, None

    def lost(self) -> None:
        """Record that the evaluation under way, if any, is lost: it is due again."""
        self._under_way = None
        self.awaits_checkpoint = False

    def skip(self, ledger: Ledger) -> None:
        """Count those due so far as done by earlier starts of the run."""
        self._done = self._wanted(ledger)

    def _wanted(self, ledger: Ledger) -> int:
        """Return how many should be done by now; none of a model that has learnt nothing."""
        return ledger.env_steps // self._every + ledger.has_all if self._every and ledger.updates else 0
