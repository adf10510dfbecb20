"""The learner's side of the fleet loop: what it is to train, save and have evaluated, and what it published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.evaluation_schedule import EvaluationSchedule
from dreamfleet.deploy.fleet.fleet_config import ORDERS_QUEUED
from dreamfleet.deploy.fleet.worker_slot import Order, Slot

if TYPE_CHECKING:
    from dreamfleet.deploy.fleet.fleet import Fleet

_LOOK_AGAIN = 1.25
"""Where more steps may help, the replay is looked at again after so many times as many."""


class LearnerSide:
    """Gives the learner its orders, keeps what it published, and has its checkpoints evaluated.

    Attributes:
        weights: the newest published version; None before the first.
        is_restored: whether the learner has said what it goes on from; of a fleet without one nothing is awaited.

    Args:
        fleet: what this is a side of.
        weights: what the actors of a fleet without learner act with.
    """

    def __init__(self, fleet: Fleet, weights: PublishedWeights | None) -> None:
        self.weights = weights
        self.is_restored = not fleet.staffing.learns
        self._fleet = fleet
        self._learner = fleet.roster.learner
        self._evaluator = fleet.roster.evaluator
        self._evaluations = EvaluationSchedule(fleet.staffing.evaluate_every)
        self._saved_at = 0
        self._most_updates = 0  # made by any learner of this start
        self._look_at = 0.0  # environment steps at which to look again why nothing can be trained on
        self._holds_a_batch = False  # whether the replay was found to

    @property
    def has_saved_all(self) -> bool:
        """Whether a checkpoint has all updates made."""
        return self._fleet.updates <= self._saved_at

    @property
    def evaluation_is_due(self) -> bool:
        """Whether a checkpoint should be written now, to be evaluated."""
        return self.is_restored and self._evaluator.is_placed and self._evaluations.is_due(self._fleet.ledger)

    @property
    def has_done_all(self) -> bool:
        """Whether all that was trained is saved, and evaluated as it was to be, unless the evaluator is given up."""
        is_evaluated = self._evaluator.given_up or not self._evaluations.is_owed(self._fleet.ledger)
        return self.is_restored and self.has_saved_all and is_evaluated

    def check_experience(self) -> None:
        """End a run that has its prefill and cannot train on what it collects, as soon as that is known to stay so.

        Raises:
            RunFailedError: with what is the cause.
        """
        ledger, staffing = self._fleet.ledger, self._fleet.staffing
        if not (staffing.learns and ledger.ratio.updates) or ledger.env_steps < ledger.ratio.prefill:
            return
        if not ledger.valid_starts and (ledger.env_steps >= self._look_at or ledger.has_all_steps):
            self._look_at = ledger.env_steps * _LOOK_AGAIN
            self._check_starts()
        if staffing.actors != 0 and not self._holds_a_batch and ledger.env_steps >= ledger.ratio.replayed_per_update:
            self._holds_a_batch = True
            self._check_size()

    def _check_starts(self) -> None:
        fleet, ledger = self._fleet, self._fleet.ledger
        shortage = fleet.pool.shortage()
        environments = fleet.staffing.environments * max(1, len(fleet.actors))
        share = min(1.0, ledger.env_steps / ledger.ratio.env_steps)
        cause = shortage.cause(share, environments, ledger.env_steps - ledger.steps_before)
        if cause:
            raise RunFailedError(
                f"no sequence of learner.sequence_length {shortage.length} can be cut from the {ledger.env_steps} "
                f"steps collected: {cause}"
            )

    def _check_size(self) -> None:
        ledger = self._fleet.ledger
        stored = int(self._fleet.pool.replay_stats().get("steps", ledger.env_steps))
        if stored < ledger.ratio.replayed_per_update:
            raise RunFailedError(
                f"the replay keeps {stored} of the {ledger.env_steps} steps collected, fewer than an update replays "
                f"(learner.batch_size × learner.sequence_length = {ledger.ratio.replayed_per_update}): raise "
                "replay.capacity_gb or replay.capacity_steps, or lower these"
            )

    # Giving orders --------------------------------------------------------------------------------------------------

    def give_orders(self) -> None:
        """Have the learner do what it may and what is due."""
        self._give_train_orders()
        if self.evaluation_is_due:
            self._evaluations.begin(self._fleet.ledger)
            self.order_save()
        if self._fleet.ledger.has_all and self.is_restored and not self.has_saved_all and not self._learner.orders:
            self.order_save()

    def _give_train_orders(self) -> None:
        ledger, wanted = self._fleet.ledger, self._fleet.staffing.updates_per_order
        while self.is_restored and len(self._learner.orders) < ORDERS_QUEUED:
            updates = min(ledger.backlog, wanted)
            if updates < 1 or (updates < wanted and self._learner.orders):
                return  # a short order only so that the learner does not idle
            ledger.ordered_updates += updates
            self._fleet.give(self._learner, "train", updates, updates)

    def order_save(self) -> None:
        """Have a checkpoint written, of experience that is on disk by then."""
        self._fleet.pool.sync_replay()
        self._fleet.give(self._learner, "save", 0, {"env_steps": self._fleet.env_steps})

    def is_fatal(self, cause: BaseException) -> bool:
        """Whether a failure ends the run: a learner in its place would fail of the same."""
        return isinstance(cause, UserError | RunFailedError)

    def lost(self) -> None:
        """Note that the learner is gone: the next one goes on from a checkpoint."""
        self.is_restored = False
        self._fleet.ledger.ordered_updates = 0
        if self._evaluations.awaits_checkpoint:  # else the checkpoint is there, and so is who plays it
            self._evaluations.lost()

    def lost_evaluator(self) -> None:
        """Note that the evaluator is gone: the next one plays a checkpoint of then."""
        self._evaluations.lost()

    # Taking answers -------------------------------------------------------------------------------------------------

    def take_restore(self, slot: Slot, order: Order, answer: Any) -> None:
        """Note what the learner goes on from."""
        del slot, order
        fleet = self._fleet
        self.weights = answer.published
        fleet.ledger.updates = self._saved_at = answer.updates
        self.is_restored = True
        if not self._most_updates:  # else a learner before this one has begun those that were due
            self._evaluations.skip(fleet.ledger)
        fleet.watcher.restored(fleet, answer.decisions)

    def take_train(self, slot: Slot, order: Order, report: Any) -> None:
        """Note the updates made; order what is due after so many."""
        fleet, ledger = self._fleet, self._fleet.ledger
        ledger.ordered_updates -= order.amount
        before, ledger.updates = ledger.updates, report.updates
        if ledger.updates > self._most_updates:  # one that always dies at the same update would be restarted for ever
            self._most_updates = ledger.updates
            slot.succeeded()
        if report.published:
            self.weights = report.published
        if _passed(before, ledger.updates, fleet.staffing.checkpoint_every):
            self.order_save()
        if _passed(before, ledger.updates, fleet.staffing.picture_every):
            fleet.give(slot, "draw_pictures", 0)
        fleet.watcher.trained(fleet, report)

    def take_save(self, slot: Slot, order: Order, answer: Any) -> None:
        """Note that there is a checkpoint; have it evaluated if it was written for that."""
        del slot, order
        fleet = self._fleet
        facts, self.weights = answer
        self._saved_at = facts["updates"]
        fleet.watcher.saved(fleet, facts)
        if self._evaluations.awaits_checkpoint:
            self._evaluations.awaits_checkpoint = False
            fleet.give(self._evaluator, "evaluate", fleet.env_steps, self.weights)

    def take_evaluate(self, slot: Slot, order: Order, report: Any) -> None:
        """Have the checkpoint that was evaluated told of its return."""
        slot.succeeded()
        self._evaluations.end()
        self._fleet.watcher.evaluated(self._fleet, order.amount, report)
        found = {"evaluation_return": sum(report.returns) / len(report.returns), "evaluation_returns": report.returns}
        if self._learner.worker:  # else it was lost meanwhile, and the log has the return
            self._fleet.give(self._learner, "record_evaluation", 0, report.version, found)

    def take_record_evaluation(self, slot: Slot, order: Order, is_kept: bool) -> None:
        """The checkpoint that was evaluated knows its return now, unless newer ones have replaced it."""

    def take_draw_pictures(self, slot: Slot, order: Order, pictures: Any) -> None:
        """Hand on the learner's pictures, if it had what to draw them of."""
        del slot, order
        if pictures is not None:
            self._fleet.watcher.illustrated(self._fleet, pictures)

    def take_finish(self, slot: Slot, order: Order, notes: list[LogRecord] | None) -> None:
        """Hand on what the learner had to say at last."""
        del slot, order
        self._fleet.watcher.noted(notes or [])


def _passed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
