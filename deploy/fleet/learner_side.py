"""The learner's side of the fleet loop: what it is to train, save and have evaluated, and what it published."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.evaluation_schedule import EvaluationSchedule
from dreamfleet.deploy.fleet.fleet_config import ORDERS_QUEUED
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState, GiveOrder

log = logging.getLogger("dreamfleet")

_CHECK_AGAIN = 1.25
"""A replay without a training sequence is examined again after it has grown by this factor, if that may help."""


class LearnerSide:
    """Gives the learner its orders, keeps what it published, and has its checkpoints evaluated.

    Attributes:
        is_restored: whether the learner has loaded its checkpoint, or begun anew; true in a fleet without learner.
    """

    def __init__(self, state: FleetState, give: GiveOrder, callbacks: Sequence[Callbacks]) -> None:
        self.is_restored = not state.config.learns
        self._state = state
        self._give = give
        self._callbacks = callbacks
        self._learner = state.roster.learner
        self._evaluator = state.roster.evaluator
        self._evaluations = EvaluationSchedule(state.config.evaluate_every)
        self._saved_updates = state.ledger.updates
        self._being_saved = 0  # checkpoints that were begun and that no answer has brought
        self._most_updates = 0  # made by any learner of this start
        self._check_at = 0.0  # environment steps at which to examine the replay again
        self._holds_a_batch = False  # whether the replay was found to

    @property
    def has_saved_all(self) -> bool:
        """Whether a checkpoint has all updates made."""
        return self._state.ledger.updates <= self._saved_updates

    @property
    def has_done_all(self) -> bool:
        """Whether all updates made are saved, and evaluated as asked for, unless the evaluator is given up."""
        is_evaluated = self._evaluator.given_up or not self._evaluations.is_owed(self._state.ledger)
        return self.is_restored and self.has_saved_all and is_evaluated

    def check_experience(self) -> None:
        """End a run that has its prefill and cannot train on what it collects, as soon as that is certain.

        Raises:
            RunFailedError: with the cause.
        """
        ledger, config = self._state.ledger, self._state.config
        if not (config.learns and ledger.ratio.updates) or ledger.env_steps < ledger.ratio.prefill:
            return
        if not ledger.valid_starts and (ledger.env_steps >= self._check_at or ledger.has_all_steps):
            self._check_at = ledger.env_steps * _CHECK_AGAIN
            self._check_starts()
        if config.actors != 0 and not self._holds_a_batch and ledger.env_steps >= ledger.ratio.replayed_per_update:
            self._check_size()

    def _check_starts(self) -> None:
        state, ledger = self._state, self._state.ledger
        shortage = state.pool.replay.shortage()
        environments = state.config.environments * max(1, len(state.roster.actors))
        known = shortage.steps + shortage.dropped  # what was lost with a shard tells nothing of what is to come
        lost = ledger.env_steps - known
        share = 1.0 if ledger.has_all_steps else known / (ledger.ratio.env_steps - lost)
        cause = shortage.cause(share, environments, ledger.env_steps - ledger.steps_before)
        if cause:
            raise RunFailedError(
                f"no sequence of learner.sequence_length {shortage.length} can be cut from the {ledger.env_steps} "
                f"steps collected: {cause}"
            )

    def _check_size(self) -> None:
        ledger, stats = self._state.ledger, self._state.pool.replay.stats()
        stored, dropped = int(stats["steps"]), int(stats["dropped_steps"])
        self._holds_a_batch = stored + dropped >= ledger.ratio.replayed_per_update  # else some were lost with a shard
        if stored < ledger.ratio.replayed_per_update <= stored + dropped:
            raise RunFailedError(
                f"the replay keeps {stored} of the {ledger.env_steps} steps collected, fewer than an update replays "
                f"(learner.batch_size × learner.sequence_length = {ledger.ratio.replayed_per_update}): raise "
                "replay.capacity_gb or replay.capacity_steps, or lower these"
            )

    def is_fatal(self, cause: BaseException) -> bool:
        """Whether a failure ends the run, because the next learner would fail the same way."""
        return isinstance(cause, UserError | RunFailedError)

    def lost(self) -> int:
        """Record that the learner is gone: the next one starts from a checkpoint; return the updates beyond that."""
        self.is_restored = False
        self._state.ledger.ordered_updates = 0
        self._being_saved = 0
        if self._evaluations.awaits_checkpoint:  # else the checkpoint is there, and being evaluated
            self._evaluations.lost()
        ledger = self._state.ledger
        again, ledger.updates = ledger.updates - self._saved_updates, self._saved_updates
        return again

    def lost_evaluator(self) -> None:
        """Record that the evaluator is gone: the next one plays a newer checkpoint."""
        self._evaluations.lost()

    # Orders ---------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Have the learner load the newest checkpoint."""
        self._give(self._learner, "restore", then=self._take_restored)

    def give_orders(self) -> None:
        """Have the learner do what it may and what is due."""
        ledger = self._state.ledger
        self._give_train_orders()
        if self.is_restored and self._evaluator.is_placed and self._evaluations.is_due(ledger):
            self._evaluations.begin(ledger)
            self._start_saving()
        if self.is_restored and not self._learner.orders:
            self.finish_saving()
        if ledger.has_all and self.is_restored and not self.has_saved_all and not self._learner.orders:
            self.save()

    def _give_train_orders(self) -> None:
        ledger, wanted = self._state.ledger, self._state.config.updates_per_order
        while self.is_restored and len(self._learner.orders) < ORDERS_QUEUED:
            updates = min(ledger.backlog, wanted)
            if updates < 1 or (updates < wanted and self._learner.orders):
                return  # a short order only so that the learner does not idle
            ledger.ordered_updates += updates
            self._give(self._learner, "train", updates, then=partial(self._take_trained, updates))

    def save(self) -> None:
        """Have a checkpoint written, once the experience it was trained on is on disk."""
        self._state.pool.replay.sync()
        self._give(self._learner, "save", {"env_steps": self._state.ledger.env_steps}, then=self._take_saved)

    def _start_saving(self) -> None:
        """Have a checkpoint written that may be beside the updates after it; it counts when it is on the disk."""
        self._state.pool.replay.sync()
        self._give(
            self._learner, "start_saving", {"env_steps": self._state.ledger.env_steps}, then=self._take_started_saving
        )

    def finish_saving(self) -> None:
        """Have the learner wait for the checkpoints that it writes beside its updates, if there are any."""
        if self._being_saved > 0:
            self._give(self._learner, "finish_saving", then=self._take_all_saved)

    def save_what_was_learnt(self) -> None:
        """Have a last checkpoint written after a failure: neither the replay nor a loss measured on it is asked for."""
        facts = {"env_steps": self._state.ledger.env_steps, "held_out_loss": None}
        self._give(self._learner, "save", facts, then=self._take_saved)

    def finish(self) -> None:
        """Have the learner complete what it does beside its orders: the copy of its last checkpoint."""
        self._give(self._learner, "finish", then=self._take_log)

    # Answers --------------------------------------------------------------------------------------------------------

    def _take_restored(self, answer: Any) -> None:
        state = self._state
        state.weights = answer.published
        state.ledger.updates = self._saved_updates = answer.updates
        self.is_restored = True
        self._compare_with_replay(answer.facts or {})
        state.roster.works(self._learner)
        if not self._most_updates:  # else a learner before this one has begun the evaluations that were due
            self._evaluations.skip(state.ledger)
        for callback in self._callbacks:
            callback.on_start(state, answer.decisions)
        if not answer.is_prepared:  # an order of its own: actors have the weights meanwhile, and it has its own limit
            log.info("the learner compiles its updates, which takes a minute or so; the first update comes after it")
            self._give(self._learner, "prepare", then=self._take_log)

    def _compare_with_replay(self, facts: Mapping[str, Any]) -> None:
        """Say so if the checkpoint was made with more steps than the replay knows of: it was synced before."""
        ledger, known = self._state.ledger, facts.get("env_steps")
        if not isinstance(known, int) or known <= ledger.env_steps:
            return
        early = max(0, ledger.updates - ledger.ratio.updates_allowed(ledger.env_steps))
        follows = f"the learner waits until {early} updates that it is ahead are allowed again" if early else ""
        log.warning(
            "the checkpoint of update %d was made at %d env steps, and the replay knows of %d: %d are lost, and so is "
            "their count. As many are collected anew%s",
            ledger.updates,
            known,
            ledger.env_steps,
            known - ledger.env_steps,
            f"; {follows}" if follows else "",
        )

    def _take_trained(self, ordered: int, report: Any) -> None:
        state, ledger = self._state, self._state.ledger
        ledger.ordered_updates -= ordered
        before, ledger.updates = ledger.updates, report.updates
        if ledger.updates > self._most_updates:  # a learner that always dies at the same update is given up in the end
            self._most_updates = ledger.updates
            self._learner.made_progress(is_useful=True)
        if report.published:
            self._offer(report.published)
        self._take_all_saved(report.saved)
        if _passed(before, ledger.updates, state.config.checkpoint_every):
            self._start_saving()
        if _passed(before, ledger.updates, state.config.picture_every):
            self._give(self._learner, "draw_pictures", then=self._take_pictures)
        for callback in self._callbacks:
            callback.on_updates(state, report)

    def _offer(self, weights: PublishedWeights) -> None:
        """Have actors act with these weights, unless newer ones came earlier: a checkpoint takes longer to write."""
        if self._state.weights is None or weights.version > self._state.weights.version:
            self._state.weights = weights

    def _take_started_saving(self, answer: Any) -> None:
        if answer is None:
            self._being_saved += 1
        else:
            self._take_saved(answer)

    def _take_all_saved(self, answers: Sequence[Any]) -> None:
        for answer in answers:
            self._being_saved -= 1
            self._take_saved(answer)

    def _take_saved(self, answer: Any) -> None:
        state = self._state
        facts, weights = answer
        self._offer(weights)
        self._saved_updates = max(self._saved_updates, facts["updates"])
        state.ledger.updates = max(state.ledger.updates, facts["updates"])  # after a failure no train order is answered
        for callback in self._callbacks:
            callback.on_checkpoint(state, facts)
        if self._evaluations.takes(facts["updates"]):
            take = partial(self._take_evaluated, state.ledger.env_steps)
            self._give(self._evaluator, "evaluate", weights, then=take)

    def _take_evaluated(self, env_steps: int, report: Any) -> None:
        self._evaluator.made_progress(is_useful=True)
        self._evaluations.end()
        for callback in self._callbacks:
            callback.on_evaluation(self._state, env_steps, report)
        if self._learner.worker:  # else it was lost meanwhile, and only the log has the return
            found = {
                "evaluation_return": sum(report.returns) / len(report.returns),
                "evaluation_returns": report.returns,
            }
            self._give(self._learner, "record_evaluation", report.version, found, then=_ignore)

    def _take_pictures(self, pictures: Any) -> None:
        for callback in self._callbacks:
            if pictures is not None:  # else there was no sequence to draw
                callback.on_pictures(self._state, pictures)

    def _take_log(self, records: list[LogRecord] | None) -> None:
        for callback in self._callbacks:
            callback.on_log(records or [])


def _ignore(answer: Any) -> None:
    """Take the answer of an order that brings nothing."""


def _passed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
