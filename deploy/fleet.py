"""The fleet loop: gives collect orders to actors and train orders to the learner, and decides who may go on.

Two counters of its ledger decide: S, the acknowledged environment steps (the replay's own count), and U, the learner's
updates.

    the learner may train   while U and its orders stay within ratio.updates_allowed(S)
    an actor may collect    while the learner has less than two orders' worth of updates allowed and not yet made

So the learner never runs ahead of the ratio, and collecting runs ahead of it by the orders in flight at most. One of
the two may always go on: if the learner lacks work, its backlog is short, and the actors may collect.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dreamfleet.common.errors import RunFailedError, UserError, WrongHereError
from dreamfleet.common.notes import Note
from dreamfleet.deploy.evaluation_schedule import EvaluationSchedule
from dreamfleet.deploy.ledger import Ledger
from dreamfleet.deploy.pool import Pool, WorkerFailedError, WorkerLostError
from dreamfleet.deploy.ratio import TrainRatio
from dreamfleet.deploy.roster import LOOK_EVERY_S, Roster
from dreamfleet.deploy.slot import Order, Slot
from dreamfleet.deploy.staffing import Staffing
from dreamfleet.deploy.watcher import Watcher

ORDERS_QUEUED = 2
"""Orders each worker has at most: one that it does, and one so that it need not wait for the next."""
STOP_TIMEOUT_S = 120.0
"""A run that was asked to stop waits so long at most for the orders in flight and its last checkpoint."""

log = logging.getLogger("dreamfleet")


class Fleet:
    """Runs a fleet until all steps are collected and all updates made, or until it is asked to stop.

    What it does per order does not depend on how many workers there are.

    Attributes:
        ledger: what was collected and trained, and what is ordered.
        roster: who is in it.

    Args:
        pool: where the workers live.
        staffing: how many there are and how they are ordered about.
        ratio: what allows updates.
        watcher: who is told of what happens.
        stop: asked every turn; true ends the run cleanly.
        clock: seconds, for tests.
        weights: what the actors of a fleet without learner act with: a version and what stands for its weights.
    """

    def __init__(
        self,
        pool: Pool,
        staffing: Staffing,
        ratio: TrainRatio,
        watcher: Watcher | None = None,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        weights: Sequence[tuple[int, Any]] = (),
    ) -> None:
        self.pool = pool
        self.staffing = staffing
        self.watcher = watcher or Watcher()
        self.roster = Roster(pool, staffing, clock)
        self.ledger = Ledger(ratio)
        self._stop = stop
        self._clock = clock
        self._open: dict[Any, tuple[Slot, Order]] = {}  # orders given and not answered, by their futures
        self._hungry: dict[int, Slot] = {}  # placed actors that may have more orders, by turns
        self._next_incarnation = 0
        self._weights: list[tuple[int, Any]] = list(weights)  # the newest published version, or nothing yet
        self._saved_at = 0
        self._evaluations = EvaluationSchedule(staffing.evaluate_every)
        self._restored = not staffing.learns  # whether the learner has said what it goes on from
        self._has_collected = False  # whether any actor ever did
        self._is_failing = False  # whether the run has failed, and only what was learnt is to be saved
        self._stored_more = False  # whether the replay's counters are to be asked again
        self._recount_due = 0.0
        self._look_due = 0.0
        self._most_updates = 0  # made by any learner of this start
        self._told: set[tuple[str, ...]] = set()  # failures whose traceback is in the log

    @property
    def ratio(self) -> TrainRatio:
        """What allows updates."""
        return self.ledger.ratio

    @property
    def env_steps(self) -> int:
        """S, acknowledged environment steps."""
        return self.ledger.env_steps

    @property
    def updates(self) -> int:
        """U, updates made."""
        return self.ledger.updates

    @property
    def updates_allowed(self) -> int:
        """Updates that may have been made by now."""
        return self.ledger.updates_allowed

    @property
    def actors(self) -> list[Slot]:
        """The actors' slots."""
        return self.roster.actors

    @property
    def learner(self) -> Slot:
        """The learner's slot."""
        return self.roster.learner

    @property
    def restarts(self) -> int:
        """How often a worker was replaced."""
        return self.roster.restarts

    # What the loop does ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end.

        Raises:
            RunFailedError: if no actor or no learner is left, with the cause.
            UserError: if a worker found the user's input at fault.
        """
        self._recount()
        if not self.staffing.learns:
            self.watcher.restored(self, [])
        try:
            while not self._stop() and not self.finished:
                self._start_workers()
                self._give_collect_orders()
                self._give_train_orders()
                self._give_evaluation_order()
                self._give_last_save_order()
                self._turn()
            self._end()
            self._check_trained()
        except (RunFailedError, UserError):
            self._save_if_learner_lives()
            raise

    @property
    def finished(self) -> bool:
        """Whether all steps are collected, all their updates made, and what was learnt is saved."""
        learnt = self.ledger.has_all and self._restored and self.updates <= self._saved_at
        return learnt and not self._is_busy and not self._evaluation_is_due

    @property
    def _is_busy(self) -> bool:
        """Whether an order is being carried out; an actor that waits for its place does nothing."""
        return any(_unanswered(slot) for slot in self.roster)

    @property
    def published_version(self) -> int:
        """Version of the newest published weights, -1 before the first."""
        return self._weights[0][0] if self._weights else -1

    def _turn(self) -> None:
        """Wait a little for answers, take them, and look after the workers now and then."""
        patience_s = 0.2
        if self._stored_more:
            patience_s = max(0.0, min(patience_s, self._recount_due - self._clock()))
        for future in self.pool.wait(patience_s):
            given = self._open.pop(future, None)
            if given and given[1] in given[0].orders:  # else the slot was emptied since
                self._take(*given)
        if self._is_failing:
            return  # the replay may be what failed: nothing is asked of it any more
        now = self._clock()
        if now >= self._look_due:
            self._look_due = now + LOOK_EVERY_S
            for slot in self.roster.late():
                self._lost(slot, f"it gave no answer for {slot.allowed_s:.0f} s")
            self.roster.follow(is_scarce=self._may_collect() and not self.ledger.has_all_steps)
        if self._stored_more and now >= self._recount_due:
            self._recount()
        self.watcher.turned(self)

    # Giving orders --------------------------------------------------------------------------------------------------

    def _give_collect_orders(self) -> None:
        for depth in range(ORDERS_QUEUED):  # everyone gets one before anyone gets two
            for slot in list(self._hungry.values()):
                left = self.ledger.steps_left
                if left <= 0 or not self._may_collect():
                    return
                if len(slot.orders) <= depth:
                    steps = min(self.staffing.steps_per_order, left)
                    self.ledger.ordered_steps += steps
                    weights = self._weights if self._is_prefilled else []
                    slot.version = weights[0][0] if weights else -1
                    self._give(slot, "collect", steps, steps, weights)
                    del self._hungry[slot.number]  # and again to the end of the line, if it may have more
                    if len(slot.orders) < ORDERS_QUEUED:
                        self._hungry[slot.number] = slot

    @property
    def _is_prefilled(self) -> bool:
        """Whether actors are to act on weights; until there is a prefill, chance acts."""
        return not self.staffing.learns or self.env_steps >= self.ratio.prefill

    def _may_collect(self) -> bool:
        return self.ledger.backlog < ORDERS_QUEUED * self.staffing.updates_per_order

    def _give_train_orders(self) -> None:
        while self._restored and len(self.learner.orders) < ORDERS_QUEUED:
            updates = min(self.ledger.backlog, self.staffing.updates_per_order)
            if updates < 1 or (updates < self.staffing.updates_per_order and self.learner.orders):
                return  # a short order only so that the learner does not idle
            self.ledger.ordered_updates += updates
            self._give(self.learner, "train", updates, updates)

    def _give_last_save_order(self) -> None:
        if self.ledger.has_all and self._restored and self.updates > self._saved_at and not self.learner.orders:
            self._order_save()

    def _give_evaluation_order(self) -> None:
        """Have a checkpoint written that is then evaluated."""
        if self._evaluation_is_due:
            self._evaluations.begin(self.ledger)
            self._order_save()

    @property
    def _evaluation_is_due(self) -> bool:
        evaluator = self.roster.evaluator
        is_free = self._restored and evaluator.is_placed and not _unanswered(evaluator)
        return is_free and self._evaluations.is_due(self.ledger)

    def _give(self, slot: Slot, kind: str, amount: int, *arguments: Any) -> None:
        assert slot.worker
        now = self._clock()
        order = Order(self.pool.give(slot.worker, kind, *arguments), kind, amount, now)
        self._open[order.future] = slot, order
        slot.gave(order, now)

    # Taking answers -------------------------------------------------------------------------------------------------

    def _take(self, slot: Slot, order: Order) -> None:
        try:
            answer = self.pool.result(order.future)
        except WorkerLostError as error:
            self._lost(slot, f"its process was lost: {error}")
        except WorkerFailedError as error:
            if self._is_fatal(slot, error.cause):
                raise error.cause from None
            self._tell_trace(slot, error)
            self._lost(slot, str(error))
        else:
            slot.answered(order, self._clock())
            getattr(self, f"_take_{order.kind}")(slot, order, answer)

    def _is_fatal(self, slot: Slot, cause: BaseException) -> bool:
        """Whether a failure ends the run: what no other worker in its place would mend.

        Once an actor has collected, an environment that cannot be made elsewhere is a fault of that place. An actor
        that cannot reach the replay is lost; the others may reach it.
        """
        if slot is self.learner:
            return isinstance(cause, UserError | RunFailedError)
        return isinstance(cause, UserError) and not (isinstance(cause, WrongHereError) and self._has_collected)

    def _tell_trace(self, slot: Slot, error: WorkerFailedError) -> None:
        """Log the traceback of a failure; once, if workers fail of the same in the same place again and again."""
        place = (type(error.cause).__name__, *re.findall(r'File "[^"]+", line \d+', error.trace))
        if place not in self._told:
            self._told.add(place)
            log.warning("%s failed:\n%s", slot.name, error.trace.rstrip())

    def _take_greet(self, slot: Slot, order: Order, node: str) -> None:
        del order
        slot.is_placed = True
        slot.node = node
        if slot is not self.roster.evaluator:
            self._hungry[slot.number] = slot

    def _take_collect(self, slot: Slot, order: Order, report: Any) -> None:
        self.ledger.ordered_steps -= order.amount
        self.ledger.uncounted_steps += order.amount
        self._stored_more = self._has_collected = True
        self._hungry[slot.number] = slot
        slot.succeeded()
        self.watcher.collected(self, slot, report)

    def _take_train(self, slot: Slot, order: Order, answer: Any) -> None:
        report, published = answer
        self.ledger.ordered_updates -= order.amount
        before, self.ledger.updates = self.updates, report.updates
        if self.updates > self._most_updates:  # one that always dies at the same update would be restarted for ever
            self._most_updates = self.updates
            slot.succeeded()
        if published:
            self._weights = published
        if _passed(before, self.updates, self.staffing.checkpoint_every):
            self._order_save()
        if _passed(before, self.updates, self.staffing.picture_every):
            self._give(slot, "illustrate", 0)
        self.watcher.trained(self, report)

    def _take_restore(self, slot: Slot, order: Order, answer: Any) -> None:
        del slot, order
        self._weights = answer.published
        self.ledger.updates = self._saved_at = answer.updates
        self._restored = True
        if not self._most_updates:  # else a learner before this one has begun those that were due
            self._evaluations.skip(self.ledger)
        self.watcher.restored(self, answer.decisions)

    def _take_save(self, slot: Slot, order: Order, answer: Any) -> None:
        del slot, order
        facts, self._weights = answer
        self._saved_at = facts["updates"]
        self.watcher.saved(self, facts)
        if self._evaluations.awaits_checkpoint and self.roster.evaluator.is_placed:
            self._evaluations.awaits_checkpoint = False
            self._give(self.roster.evaluator, "evaluate", self.env_steps, self._weights)

    def _take_evaluate(self, slot: Slot, order: Order, report: Any) -> None:
        slot.succeeded()
        self.watcher.evaluated(self, order.amount, report)
        found = {"evaluation_return": sum(report.returns) / len(report.returns), "evaluation_returns": report.returns}
        if self.learner.worker:  # else it was lost meanwhile, and the log has the return
            self._give(self.learner, "judge", 0, report.version, found)

    def _take_judge(self, slot: Slot, order: Order, is_kept: bool) -> None:
        """The checkpoint that was evaluated knows its return now, unless newer ones have replaced it."""

    def _take_illustrate(self, slot: Slot, order: Order, pictures: Any) -> None:
        del slot, order
        if pictures is not None:
            self.watcher.illustrated(self, pictures)

    def _take_finish(self, slot: Slot, order: Order, notes: list[Note] | None) -> None:
        del slot, order
        self.watcher.noted(notes or [])

    def _order_save(self) -> None:
        self.pool.sync_replay()
        self._give(self.learner, "save", 0, {"env_steps": self.env_steps})

    def _check_trained(self) -> None:
        """A run that collected everything and could train on nothing did not do what it was for."""
        if self.ledger.has_all and not self.ledger.valid_starts and self.ratio.updates:
            raise RunFailedError(
                f"no training sequence could be cut from the {self.env_steps} steps collected: episodes or actors' "
                "lives are shorter than learner.sequence_length, or too much is held out"
            )

    # Looking after the workers --------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Fill the empty slots whose time has come."""
        for slot in self.roster.fill(self._next_incarnation):
            if slot is self.learner:
                self._give(slot, "restore", 0)
            else:
                self._next_incarnation += 1
                self._give(slot, "greet", 0)

    def _lost(self, slot: Slot, cause: str) -> None:
        """Empty a worker's slot; it is filled again by the next turn, or in a while if it failed before."""
        self._hungry.pop(slot.number, None)
        self.ledger.ordered_steps -= self.roster.empty(slot, cause)
        self._stored_more = True
        if slot is self.learner:
            self._restored = False
            self.ledger.ordered_updates = 0
            self._evaluations.take_back()
        elif slot is not self.roster.evaluator:
            self.pool.retire(slot.number, slot.incarnation)  # whatever of it is still on its way is not stored

    def _recount(self) -> None:
        """Ask the replay for its counters."""
        self._stored_more = False
        self._recount_due = self._clock() + self.pool.counters_every_s
        counters = self.pool.counters()
        self.ledger.count(counters)
        self._next_incarnation = max(self._next_incarnation, counters.next_incarnation)

    # The end --------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let the learner end its update and write a checkpoint, then take what the actors still bring."""
        deadline = self._clock() + STOP_TIMEOUT_S
        if self.learner.worker and self.learner.orders:
            self.pool.hurry(self.learner.worker)
        if self._restored:  # else it has learnt nothing yet, and may even wait for its place
            self._drain([self.learner], deadline)
        if self._restored and self.updates > self._saved_at:
            self._order_save()
            self._drain([self.learner], deadline)
        self._drain(self.actors, deadline)
        if self._stored_more:
            self._recount()
        self._finish_learner(deadline)

    def _finish_learner(self, deadline: float) -> None:
        """Let the learner end what goes on beside its orders: the copy of its last checkpoint."""
        if self._restored and self.learner.worker and not self.learner.orders:
            self._give(self.learner, "finish", 0)
            self._drain([self.learner], deadline)

    def _drain(self, slots: Iterable[Slot], deadline: float) -> None:
        """Wait until these workers have no orders left, but not for ever."""
        while any(_unanswered(slot) for slot in slots) and self._clock() < deadline:
            self._turn()
        for slot in slots:
            for order in _unanswered(slot):
                log.warning("%s did not end its order '%s' in time", slot.name, order.kind)

    def _save_if_learner_lives(self) -> None:
        """After a failure, keep what was learnt; the failure itself is what the user must hear of."""
        self._is_failing = True
        self._open.clear()  # the order that failed among them; whatever the others bring comes too late
        for slot in self.roster:
            slot.orders.clear()
        if not (self._restored and self.learner.worker):
            return
        try:
            self.pool.hurry(self.learner.worker)
            # The replay may be what failed: neither it nor a loss measured on it is asked for.
            self._give(self.learner, "save", 0, {"env_steps": self.env_steps, "held_out_loss": None})
            self._drain([self.learner], deadline := self._clock() + STOP_TIMEOUT_S)
            self._finish_learner(deadline)
        except (RunFailedError, UserError) as error:
            log.warning("no last checkpoint could be written: %s", error)


def _unanswered(slot: Slot) -> list[Order]:
    """Return a worker's orders, but for the greeting of one that waits for its place."""
    return [order for order in slot.orders if order.kind != "greet"]


def _passed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
