"""The fleet loop: gives collect orders to actors and train orders to the learner, and replaces workers that fail.

Two counters decide who may go on: S, the environment steps that the replay has acknowledged, and U, the learner's
updates.

    the learner may train   while U and its orders stay within ratio.updates_allowed(S)
    an actor may collect    while the learner has less than two orders' worth of updates allowed and not yet made

So the learner never runs ahead of the ratio, and collecting runs ahead of it by no more than the orders in flight. One
of the two may always go on: if the learner lacks work, its backlog is short, and the actors may collect.

`ActorSide` and `LearnerSide` give these orders and take the answers. The loop lets each give orders in turn, waits for
answers, looks after the workers, and ends the run.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy.fleet.actor_side import ActorSide
from dreamfleet.deploy.fleet.ending import Ending
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.inference_side import InferenceSide
from dreamfleet.deploy.fleet.learner_side import LearnerSide
from dreamfleet.deploy.fleet.ledger import Ledger
from dreamfleet.deploy.fleet.roster import CHECK_EVERY_S, Roster
from dreamfleet.deploy.fleet.worker_slot import Order, WorkerSlot
from dreamfleet.deploy.workers.pool import Pool, WorkerFailedError, WorkerLostError

TURN_S = 0.2
"""The longest wait for an answer before the loop goes round again."""

log = logging.getLogger("dreamfleet")


class Fleet:
    """Runs until all steps are collected and all updates made, or until it is asked to stop.

    What it does per order does not depend on the number of workers.

    Args:
        ledger: with the ratio, and what earlier starts of the run counted.
        should_stop: asked every turn; true ends the run cleanly.
        clock: seconds, for tests.
        weights: that the actors of a fleet without learner act with.
    """

    def __init__(
        self,
        pool: Pool,
        config: FleetConfig,
        ledger: Ledger,
        callbacks: Sequence[Callbacks] = (),
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        weights: PublishedWeights | None = None,
    ) -> None:
        self.state = FleetState(pool, config, ledger, Roster(pool, config, clock), weights)
        self._actor_side = ActorSide(self.state, self._give, callbacks)
        self._inference_side = InferenceSide(self.state, self._give, callbacks)
        self._learner_side = LearnerSide(self.state, self._give, callbacks)
        self._ending = Ending(self.state, self._learner_side, self._turn, self._lost, clock)
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._clock = clock
        self._in_flight: dict[Any, tuple[WorkerSlot, Order]] = {}  # by the order's future
        self._next_incarnation = 0
        self._has_failed = False  # whether the run has, and only what was learnt is to be saved
        self._stored_more = False  # whether the replay's counters may have changed
        self._recount_due = 0.0
        self._check_due = 0.0
        self._logged: set[tuple[str, ...]] = set()  # failures whose traceback is in the log

    def run(self) -> FleetState:
        """Run to the end, and return what was done.

        Raises:
            RunFailedError: if no actor or no learner is left, or nothing can be trained on, with the cause.
            UserError: if a worker found the user's input at fault.
            Exception: that a callback raised.
        """
        state = self.state
        self.recount()
        state.ledger.steps_before = state.ledger.env_steps
        try:
            if not state.config.learns:
                for callback in self._callbacks:
                    callback.on_start(state, [])
            while not self._should_stop() and not state.stop_reason and not self._is_finished:
                self._start_workers()
                self._actor_side.give_orders()
                self._learner_side.give_orders()
                self._turn()
                self._learner_side.check_experience()
            self._ending.complete()
            if self._stored_more:
                self.recount()
        except Exception:
            self._has_failed = True
            self._stored_more = False  # nothing is counted any more
            self._in_flight.clear()  # with the order that failed; what other workers bring comes too late
            self._ending.save_if_learner_lives()
            with suppress(Exception):  # the replay may be what failed; if not, the run's state has its count
                self.recount()
            raise
        return state

    @property
    def _is_finished(self) -> bool:
        """Whether all steps are collected, all their updates made and saved, and no order is being carried out."""
        roster = self.state.roster
        # An actor that waits for room is not busy; the inference process always has an order.
        is_busy = any(slot.unanswered for slot in roster if slot is not roster.inference)
        return self.state.ledger.has_all and self._learner_side.has_done_all and not is_busy

    def _turn(self) -> None:
        """Wait a little for answers, take them, and look after the workers from time to time."""
        pool, now = self.state.pool, self._clock()
        patience_s = max(0.0, min(TURN_S, self._recount_due - now)) if self._stored_more else TURN_S
        for future in pool.wait(patience_s):
            if future is self._ending.ping:
                self._ending.ping = None
            elif future in self._in_flight:
                slot, order = self._in_flight.pop(future)
                if order in slot.orders:  # else the slot was emptied since
                    self._take(slot, order)
        fault = pool.fault()
        if fault and not self._has_failed:
            raise RunFailedError(fault)
        if self._has_failed:
            return  # the replay may be what failed: it is not asked for anything
        self._keep_inference()
        self.state.roster.follow_replay(self.state.ledger.ordered_steps)
        now = self._clock()
        if now >= self._check_due:
            self._check_due = now + CHECK_EVERY_S
            for slot in self.state.roster.late():
                self._lost(slot, f"it gave no answer for {slot.allowed_s:.0f} s")
            self.state.roster.follow_cluster(
                is_scarce=self._actor_side.may_collect and not self.state.ledger.has_all_steps
            )
        if self._stored_more and now >= self._recount_due:
            self.recount()
        for callback in self._callbacks:
            callback.on_turn(self.state)

    # Orders and their answers ---------------------------------------------------------------------------------------

    def _give(
        self, slot: WorkerSlot, method: str, *arguments: Any, then: Callable[[Any], None], steps: int = 0
    ) -> None:
        """Give an order to the worker in a slot; see `GiveOrder`."""
        assert slot.worker
        now = self._clock()
        order = Order(self.state.pool.give(slot.worker, method, *arguments), method, then, now, steps, slot.version)
        self._in_flight[order.future] = slot, order
        slot.gave(order, now)

    def _take(self, slot: WorkerSlot, order: Order) -> None:
        try:
            answer = self.state.pool.result(order.future)
        except WorkerLostError as error:
            self._lost(slot, f"its process was lost: {error}")
        except WorkerFailedError as error:
            side = self._learner_side if slot is self.state.roster.learner else self._actor_side
            if side.is_fatal(error.cause):
                raise error.cause from None
            self._log_traceback(slot, error)
            self._lost(slot, str(error))
        else:
            slot.answered(order, self._clock())
            self._stored_more |= order.steps > 0
            order.then(answer)

    def _log_traceback(self, slot: WorkerSlot, error: WorkerFailedError) -> None:
        """Log the traceback of a failure, once if workers fail in the same place again and again."""
        place = (type(error.cause).__name__, *re.findall(r'File "[^"]+", line \d+', error.trace))
        if place not in self._logged:
            self._logged.add(place)
            log.warning("%s failed:\n%s", slot.name, error.trace.rstrip())

    # Looking after the workers --------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Fill the empty slots whose time has come."""
        roster = self.state.roster
        for slot in roster.fill(self._next_incarnation):
            if slot is roster.learner:
                self._learner_side.restore()
            else:
                self._next_incarnation += 1
                self._give(slot, "greet", then=lambda node, slot=slot: self._take_greeting(slot, node))  # type: ignore[misc]

    def _keep_inference(self) -> None:
        """Have a process act for all actors, if the settings say so; also while the run ends, since actors wait."""
        slot = self.state.roster.inference
        if self.state.roster.fill_inference():
            self._give(slot, "greet", then=partial(self._take_greeting, slot))
        self._inference_side.give_orders()

    def _take_greeting(self, slot: WorkerSlot, node: str) -> None:
        slot.is_placed = True
        slot.node = node
        self.state.roster.works(slot)
        if slot.number >= 0:  # an actor
            self._actor_side.add(slot)

    def _lost(self, slot: WorkerSlot, cause: str) -> None:
        """Empty a worker's slot; it is filled again next turn, or after a pause if it has failed before."""
        stored = updates = 0
        if slot is self.state.roster.learner:
            updates = self._learner_side.lost()
        elif slot is self.state.roster.evaluator:
            self._learner_side.lost_evaluator()
        elif slot is self.state.roster.inference:
            self._inference_side.lost()
        else:
            self._inference_side.forget(slot)
            stored = self._actor_side.lost(slot)
        self.state.ledger.ordered_steps -= self.state.roster.empty(slot, cause, stored, updates)
        self._stored_more = True
        self._recount_due = 0.0  # before the next orders: the steps that it stored are no longer counted as ordered

    def recount(self) -> None:
        """Take the replay's count of its steps."""
        self._stored_more = False
        self._recount_due = self._clock() + self.state.pool.counters_every_s
        counters = self.state.pool.replay.counters()
        self.state.ledger.count(counters)
        self._next_incarnation = max(self._next_incarnation, counters.next_incarnation)
