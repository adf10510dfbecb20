"""The fleet loop: gives collect orders to actors and train orders to the learner, and decides who may go on.

Two counters decide: S, the acknowledged environment steps (the replay's own count), and U, the learner's updates.

    the learner may train   while U and its orders stay within ratio.updates_allowed(S)
    an actor may collect    while the learner has less than two orders' worth of updates allowed and not yet made

So the learner never runs ahead of the ratio, and collecting runs ahead of it by the orders in flight at most. One of
the two may always go on: if the learner lacks work, its backlog is short, and the actors may collect.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.deploy.pool import Counters, Pool, WorkerFailedError, WorkerLostError
from dreamfleet.deploy.ratio import TrainRatio
from dreamfleet.deploy.slot import Order, Slot
from dreamfleet.deploy.staffing import Staffing
from dreamfleet.deploy.watcher import Watcher

ORDERS_QUEUED = 2
"""Orders each worker has at most: one that it does, and one so that it need not wait for the next."""
STOP_TIMEOUT_S = 120.0
"""A run that was asked to stop waits so long at most for the orders in flight and its last checkpoint."""
ACTOR_PATIENCE_S = 60.0
"""An actor may take so long for an order even if all orders before it were quick."""

log = logging.getLogger("dreamfleet")


class Fleet:
    """Runs a fleet until all steps are collected and all updates made, or until it is asked to stop.

    Attributes:
        env_steps: S, acknowledged environment steps.
        updates: U, updates made.
        actors: the actors' slots; `learner` is the learner's.
        restarts: how often a worker was replaced.

    Args:
        pool: where the workers live.
        staffing: how many there are and how they are ordered about.
        ratio: what allows updates.
        watcher: who is told of what happens.
        stop: asked every turn; true ends the run cleanly.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        pool: Pool,
        staffing: Staffing,
        ratio: TrainRatio,
        watcher: Watcher | None = None,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.staffing = staffing
        self.ratio = ratio
        self.watcher = watcher or Watcher()
        self.actors = [Slot(f"actor {n}", staffing.actor_timeout_s, ACTOR_PATIENCE_S) for n in range(staffing.actors)]
        self.learner = Slot("learner", staffing.learner_timeout_s)
        self.env_steps = 0
        self.updates = 0
        self.restarts = 0
        self._stop = stop
        self._clock = clock
        self._given = 0  # orders in all
        self._ordered_steps = 0  # given to actors and not yet answered
        self._ordered_updates = 0  # likewise, to the learner
        self._valid_starts = 0
        self._next_incarnation = 0
        self._weights: list[tuple[int, Any]] = []  # the newest published version, or nothing yet
        self._saved_at = 0
        self._restored = False  # whether the learner has said what it goes on from
        self._stored_more = False  # whether the replay's counters are to be asked again
        self._most_updates = 0  # made by any learner of this start
        self._told: set[tuple[str, ...]] = set()  # failures whose traceback is in the log

    # What the loop does ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end.

        Raises:
            RunFailedError: if no actor or no learner is left, with the cause.
            UserError: if a worker found the user's input at fault.
        """
        self._recount()
        try:
            while not self._stop() and not self.finished:
                self._start_workers()
                self._give_collect_orders()
                self._give_train_orders()
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
        return self._has_all and self._restored and self.updates <= self._saved_at and not self._orders()

    @property
    def _has_all(self) -> bool:
        trained = self.updates >= self.ratio.updates or self._valid_starts == 0
        return trained and self.env_steps >= self.ratio.env_steps

    @property
    def updates_allowed(self) -> int:
        """Updates that may have been made by now; none before the replay holds a whole sequence."""
        return self.ratio.updates_allowed(self.env_steps) if self._valid_starts else 0

    @property
    def published_version(self) -> int:
        """Version of the newest published weights, -1 before the first."""
        return self._weights[0][0] if self._weights else -1

    def _turn(self) -> None:
        """Wait a little for answers, take them, and look after the workers."""
        in_order = sorted(self._orders(), key=lambda pair: pair[1].number)
        for future in self.pool.wait([order.future for _, order in in_order], 0.2):
            slot, order = next((pair for pair in self._orders() if pair[1].future is future), (None, None))
            if slot and order:  # else its slot was emptied since
                self._take(slot, order)
        self._replace_late()
        if self._stored_more:
            self._recount()
        self.watcher.turned(self)

    def _orders(self) -> list[tuple[Slot, Order]]:
        return [(slot, order) for slot in [*self.actors, self.learner] for order in slot.orders]

    # Giving orders --------------------------------------------------------------------------------------------------

    def _give_collect_orders(self) -> None:
        for depth in range(ORDERS_QUEUED):  # everyone gets one before anyone gets two
            for slot in self.actors:
                left = self.ratio.env_steps - self.env_steps - self._ordered_steps
                if left <= 0 or not self._may_collect():
                    return
                if slot.worker and len(slot.orders) <= depth:
                    steps = min(self.staffing.steps_per_order, left)
                    self._ordered_steps += steps
                    slot.version = self.published_version
                    self._give(slot, "collect", steps, steps, self._weights)

    def _may_collect(self) -> bool:
        backlog = self.updates_allowed - self.updates - self._ordered_updates
        return backlog < ORDERS_QUEUED * self.staffing.updates_per_order

    def _give_train_orders(self) -> None:
        while self._restored and len(self.learner.orders) < ORDERS_QUEUED:
            backlog = self.updates_allowed - self.updates - self._ordered_updates
            updates = min(backlog, self.staffing.updates_per_order)
            if updates < 1 or (updates < self.staffing.updates_per_order and self.learner.orders):
                return  # a short order only so that the learner does not idle
            self._ordered_updates += updates
            self._give(self.learner, "train", updates, updates)

    def _give_last_save_order(self) -> None:
        if self._has_all and self._restored and self.updates > self._saved_at and not self.learner.orders:
            self._order_save()

    def _give(self, slot: Slot, kind: str, amount: int, *arguments: Any) -> None:
        assert slot.worker
        now = self._clock()
        self._given += 1
        slot.gave(Order(self.pool.give(slot.worker, kind, *arguments), kind, amount, self._given, now), now)

    # Taking answers -------------------------------------------------------------------------------------------------

    def _take(self, slot: Slot, order: Order) -> None:
        try:
            answer = self.pool.result(order.future)
        except WorkerLostError as error:
            self._lost(slot, f"its process was lost: {error}")
        except WorkerFailedError as error:
            fatal = UserError if slot is not self.learner else (UserError, RunFailedError)
            if isinstance(error.cause, fatal):  # an actor that cannot reach the replay is lost; the others may reach it
                raise error.cause from None
            self._tell_trace(slot, error)
            self._lost(slot, str(error))
        else:
            slot.answered(order, self._clock())
            getattr(self, f"_take_{order.kind}")(slot, order, answer)

    def _tell_trace(self, slot: Slot, error: WorkerFailedError) -> None:
        """Log the traceback of a failure; once, if workers fail of the same in the same place again and again."""
        place = (type(error.cause).__name__, *re.findall(r'File "[^"]+", line \d+', error.trace))
        if place not in self._told:
            self._told.add(place)
            log.warning("%s failed:\n%s", slot.name, error.trace.rstrip())

    def _take_collect(self, slot: Slot, order: Order, report: Any) -> None:
        self._ordered_steps -= order.amount
        self._stored_more = True
        slot.succeeded()
        self.watcher.collected(self, slot, report)

    def _take_train(self, slot: Slot, order: Order, answer: Any) -> None:
        report, published = answer
        self._ordered_updates -= order.amount
        before, self.updates = self.updates, report.updates
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
        self.updates = self._saved_at = answer.updates
        self._restored = True
        self.watcher.restored(self, answer.decisions)

    def _take_save(self, slot: Slot, order: Order, facts: dict[str, Any]) -> None:
        del slot, order
        self._saved_at = facts["updates"]
        self.watcher.saved(self, facts)

    def _take_illustrate(self, slot: Slot, order: Order, pictures: Any) -> None:
        del slot, order
        if pictures is not None:
            self.watcher.illustrated(self, pictures)

    def _order_save(self) -> None:
        self.pool.sync_replay()
        self._give(self.learner, "save", 0, {"env_steps": self.env_steps})

    def _check_trained(self) -> None:
        """A run that collected everything and could train on nothing did not do what it was for."""
        if self._has_all and not self._valid_starts and self.ratio.updates:
            raise RunFailedError(
                f"no training sequence could be cut from the {self.env_steps} steps collected: episodes or actors' "
                "lives are shorter than learner.sequence_length, or too much is held out"
            )

    # Looking after the workers --------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Fill the empty slots whose time has come."""
        now = self._clock()
        if not self.learner.worker and now >= self.learner.restart_at:
            self.learner.worker = self.pool.start_learner()
            self._give(self.learner, "restore", 0)
        for number, slot in enumerate(self.actors):
            if not slot.worker and not slot.given_up and now >= slot.restart_at:
                slot.worker = self.pool.start_actor(number, self._next_incarnation)
                self._next_incarnation += 1
        if self.learner.given_up:
            raise RunFailedError(f"the learner failed again and again, at last of: {self.learner.last_cause}")
        if all(slot.given_up for slot in self.actors):
            causes = "; ".join(dict.fromkeys(slot.last_cause for slot in self.actors))
            raise RunFailedError(f"no actor is left; each failed again and again, at last of: {causes}")

    def _replace_late(self) -> None:
        now = self._clock()
        for slot in [*self.actors, self.learner]:
            if slot.worker and slot.is_late(now):
                self._lost(slot, f"it gave no answer for {slot.allowed_s:.0f} s")

    def _lost(self, slot: Slot, cause: str) -> None:
        """Empty a worker's slot; it is filled again by the next turn, or in a while if it failed before."""
        if slot.worker:
            self.pool.stop(slot.worker)
        self._ordered_steps -= slot.lost(self._clock(), cause)
        self.restarts += 1
        what = "given up" if slot.given_up else "replaced"
        log.warning("%s is %s: %s", slot.name, what, cause)
        self._stored_more = True
        if slot is self.learner:
            self._restored = False
            self._ordered_updates = 0

    def _recount(self) -> None:
        """Take S from the replay itself: nobody else knows whether a lost actor's last chunks were stored."""
        self._stored_more = False
        counters: Counters = self.pool.counters()
        self.env_steps = counters.total_steps
        self._valid_starts = counters.valid_starts
        self._next_incarnation = max(self._next_incarnation, counters.next_incarnation)

    # The end --------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let the learner end its update and write a checkpoint, then take what the actors still bring."""
        deadline = self._clock() + STOP_TIMEOUT_S
        if self.learner.worker and self.learner.orders:
            self.pool.hurry(self.learner.worker)
        self._drain([self.learner], deadline)
        if self._restored and self.updates > self._saved_at:
            self._order_save()
            self._drain([self.learner], deadline)
        self._drain(self.actors, deadline)

    def _drain(self, slots: list[Slot], deadline: float) -> None:
        """Wait until these workers have no orders left, but not for ever."""
        while any(slot.orders for slot in slots) and self._clock() < deadline:
            self._turn()
        for slot in slots:
            for order in slot.orders:
                log.warning("%s did not end its order '%s' in time", slot.name, order.kind)

    def _save_if_learner_lives(self) -> None:
        """After a failure, keep what was learnt; the failure itself is what the user must hear of."""
        for slot in [*self.actors, self.learner]:
            slot.orders.clear()  # the one that failed among them, and whatever the others bring comes too late
        if not (self._restored and self.learner.worker):
            return
        try:
            self.pool.hurry(self.learner.worker)
            # The replay may be what failed: neither it nor a loss measured on it is asked for.
            self._give(self.learner, "save", 0, {"env_steps": self.env_steps, "held_out_loss": None})
            self._drain([self.learner], self._clock() + STOP_TIMEOUT_S)
        except (RunFailedError, UserError) as error:
            log.warning("no last checkpoint could be written: %s", error)


def _passed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
