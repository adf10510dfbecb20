"""The fleet loop: gives collect orders to actors and train orders to the learner, and decides who may go on.

Two counters of its ledger decide: S, the acknowledged environment steps (the replay's own count), and U, the learner's
updates.

    the learner may train   while U and its orders stay within ratio.updates_allowed(S)
    an actor may collect    while the learner has less than two orders' worth of updates allowed and not yet made

So the learner never runs ahead of the ratio, and collecting runs ahead of it by the orders in flight at most. One of
the two may always go on: if the learner lacks work, its backlog is short, and the actors may collect.

Two sides give these orders and take their answers, `ActorSide` and `LearnerSide`; the loop itself lets them go on by
turns, looks after the workers, and comes to an end.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.deploy.fleet.actor_side import ActorSide
from dreamfleet.deploy.fleet.callbacks import Watcher
from dreamfleet.deploy.fleet.fleet_config import Staffing
from dreamfleet.deploy.fleet.learner_side import LearnerSide
from dreamfleet.deploy.fleet.ledger import Ledger
from dreamfleet.deploy.fleet.roster import LOOK_EVERY_S, Roster
from dreamfleet.deploy.fleet.simulator_count import SimulatorCount
from dreamfleet.deploy.fleet.train_ratio import TrainRatio
from dreamfleet.deploy.fleet.worker_slot import Order, Slot
from dreamfleet.deploy.workers.pool import Pool, WorkerFailedError, WorkerLostError

STOP_TIMEOUT_S = 120.0
"""A run that was asked to stop waits so long at most for the orders in flight and its last checkpoint."""

log = logging.getLogger("dreamfleet")


class Fleet:
    """Runs a fleet until all steps are collected and all updates made, or until it is asked to stop.

    What it does per order does not depend on how many workers there are.

    Attributes:
        ledger: what was collected and trained, and what is ordered.
        roster: who is in it.
        actor_side: gives out collecting; `learner_side` training, saving and evaluating.

    Args:
        pool: where the workers live.
        staffing: how many there are and how they are ordered about.
        ratio: what allows updates.
        watcher: who is told of what happens.
        stop: asked every turn; true ends the run cleanly.
        clock: seconds, for tests.
        weights: what the actors of a fleet without learner act with; None for chance.
        simulator: the simulator steps counted by the run's earlier starts.
    """

    def __init__(
        self,
        pool: Pool,
        staffing: Staffing,
        ratio: TrainRatio,
        watcher: Watcher | None = None,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        weights: PublishedWeights | None = None,
        simulator: SimulatorCount | None = None,
    ) -> None:
        self.pool = pool
        self.staffing = staffing
        self.watcher = watcher or Watcher()
        self.roster = Roster(pool, staffing, clock)
        self.ledger = Ledger(ratio, simulator=simulator or SimulatorCount())
        # The sides come last: they take roster and ledger from the fleet.
        self.actor_side = ActorSide(self)
        self.learner_side = LearnerSide(self, weights)
        self._stop = stop
        self._clock = clock
        self._open: dict[Any, tuple[Slot, Order]] = {}  # orders given and not answered, by their futures
        self._next_incarnation = 0
        self._is_failing = False  # whether the run has failed, and only what was learnt is to be saved
        self._stored_more = False  # whether the replay's counters are to be asked again
        self._recount_due = 0.0
        self._look_due = 0.0
        self._told: set[tuple[str, ...]] = set()  # failures whose traceback is in the log
        self._takers: dict[str, Callable[[Slot, Order, Any], None]] = {
            "greet": self._take_greet,
            "collect": self._take_collect,
            "restore": self.learner_side.take_restore,
            "train": self.learner_side.take_train,
            "save": self.learner_side.take_save,
            "evaluate": self.learner_side.take_evaluate,
            "record_evaluation": self.learner_side.take_record_evaluation,
            "draw_pictures": self.learner_side.take_draw_pictures,
            "finish": self.learner_side.take_finish,
        }

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
            RunFailedError: if no actor or no learner is left, or nothing can be trained on, with the cause.
            UserError: if a worker found the user's input at fault.
        """
        self._recount()
        self.ledger.steps_before = self.env_steps
        if not self.staffing.learns:
            self.watcher.restored(self, [])
        try:
            while not self._stop() and not self.finished:
                self._start_workers()
                self.actor_side.give_orders()
                self.learner_side.give_orders()
                self._turn()
                self.learner_side.check_experience()
            self._end()
        except (RunFailedError, UserError):
            self._save_if_learner_lives()
            raise

    @property
    def finished(self) -> bool:
        """Whether all steps are collected, all their updates made, and what was learnt is saved."""
        return self.ledger.has_all and self.learner_side.has_done_all and not self._is_busy

    @property
    def _is_busy(self) -> bool:
        """Whether an order is being carried out; an actor that waits for its place does nothing."""
        return any(slot.unanswered for slot in self.roster)

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
            self.roster.follow(is_scarce=self.actor_side.may_collect and not self.ledger.has_all_steps)
        if self._stored_more and now >= self._recount_due:
            self._recount()
        self.watcher.turned(self)

    # Orders and their answers ---------------------------------------------------------------------------------------

    def give(self, slot: Slot, kind: str, amount: int, *arguments: Any) -> None:
        """Give an order to who fills a slot, as `Order` describes it."""
        assert slot.worker
        now = self._clock()
        order = Order(self.pool.give(slot.worker, kind, *arguments), kind, amount, now, slot.version)
        self._open[order.future] = slot, order
        slot.gave(order, now)

    def _take(self, slot: Slot, order: Order) -> None:
        try:
            answer = self.pool.result(order.future)
        except WorkerLostError as error:
            self._lost(slot, f"its process was lost: {error}")
        except WorkerFailedError as error:
            side = self.learner_side if slot is self.learner else self.actor_side
            if side.is_fatal(error.cause):
                raise error.cause from None
            self._tell_trace(slot, error)
            self._lost(slot, str(error))
        else:
            slot.answered(order, self._clock())
            self._takers[order.kind](slot, order, answer)

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
            self.actor_side.joined(slot)

    def _take_collect(self, slot: Slot, order: Order, report: Any) -> None:
        self._stored_more = True
        self.actor_side.take_collect(slot, order, report)

    # Looking after the workers --------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Fill the empty slots whose time has come."""
        for slot in self.roster.fill(self._next_incarnation):
            if slot is self.learner:
                self.give(slot, "restore", 0)
            else:
                self._next_incarnation += 1
                self.give(slot, "greet", 0)

    def _lost(self, slot: Slot, cause: str) -> None:
        """Empty a worker's slot; it is filled again by the next turn, or in a while if it failed before."""
        stored = 0
        if slot is self.learner:
            self.learner_side.lost()
        elif slot is self.roster.evaluator:
            self.learner_side.lost_evaluator()
        else:
            stored = self.actor_side.lost(slot)
        self.ledger.ordered_steps -= self.roster.empty(slot, cause, stored)
        self._stored_more = True

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
            self.pool.finish_early(self.learner.worker)
        if self.learner_side.is_restored:  # else it has learnt nothing yet, and may even wait for its place
            self._drain([self.learner], deadline)
        if self.learner_side.is_restored and not self.learner_side.has_saved_all:
            self.learner_side.order_save()
            self._drain([self.learner], deadline)
        self._drain(self.actors, deadline)
        if self._stored_more:
            self._recount()
        self._finish_learner(deadline)

    def _finish_learner(self, deadline: float) -> None:
        """Let the learner end what goes on beside its orders: the copy of its last checkpoint."""
        if self.learner_side.is_restored:
            self._drain([self.learner], deadline)  # an evaluation may have been recorded last
        if self.learner_side.is_restored and self.learner.worker and not self.learner.orders:
            self.give(self.learner, "finish", 0)
            self._drain([self.learner], deadline)

    def _drain(self, slots: Iterable[Slot], deadline: float) -> None:
        """Wait until these workers have no orders left, but not for ever."""
        while any(slot.unanswered for slot in slots) and self._clock() < deadline:
            self._turn()
        for slot in slots:
            for order in slot.unanswered:
                log.warning("%s did not end its order '%s' in time", slot.name, order.kind)

    def _save_if_learner_lives(self) -> None:
        """After a failure, keep what was learnt; the failure itself is what the user must hear of."""
        self._is_failing = True
        self._open.clear()  # the order that failed among them; whatever the others bring comes too late
        for slot in self.roster:
            slot.orders.clear()
        if not (self.learner_side.is_restored and self.learner.worker):
            return
        try:
            self.pool.finish_early(self.learner.worker)
            # The replay may be what failed: neither it nor a loss measured on it is asked for.
            self.give(self.learner, "save", 0, {"env_steps": self.env_steps, "held_out_loss": None})
            self._finish_learner(self._clock() + STOP_TIMEOUT_S)
        except (RunFailedError, UserError) as error:
            log.warning("no last checkpoint could be written: %s", error)
