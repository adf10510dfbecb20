"""The end of a run: what is under way is completed and saved, and nobody who is silent is waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from dreamfleet.deploy.fleet.fleet_state import FleetState
from dreamfleet.deploy.fleet.learner_side import LearnerSide
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.workers.pool import ANSWER_S

ACTORS_S = 25.0
"""Actors that answer, and have still not come to the end of their orders, are ended after this time."""
LEARNER_S = 120.0
"""A learner that answers has this long to complete its update and to write the last checkpoint."""

log = logging.getLogger("dreamfleet")


class Ending:
    """Ends a run, in order or after a failure.

    A frozen process is told from a busy one by what it answers: actors their orders, the learner a ping, which it
    answers while it trains, and the replay a question of the pool's.

    Args:
        turn: waits a little for answers and takes them.
        lost: empties the slot of a worker, with the cause.

    Attributes:
        ping: the future of a ping that the learner has not answered; whoever sees it done sets it to None.
    """

    def __init__(
        self,
        state: FleetState,
        learner_side: LearnerSide,
        turn: Callable[[], None],
        lost: Callable[[WorkerSlot, str], None],
        clock: Callable[[], float],
    ) -> None:
        self.ping: Any = None
        self._state = state
        self._learner_side = learner_side
        self._turn = turn
        self._lost = lost
        self._clock = clock
        self._begun = 0.0

    def complete(self) -> None:
        """Let the learner complete its update and write a checkpoint, then take what the actors still bring."""
        self._begin()
        deadline = self._begun + LEARNER_S
        learner, side = self._state.roster.learner, self._learner_side
        if side.is_restored:  # else it has learnt nothing yet, and may even wait for room
            self._drain([learner], deadline)
        if side.is_restored:
            side.finish_saving()
            self._drain([learner], deadline)
        if side.is_restored and not side.has_saved_all:
            side.save()
            self._drain([learner], deadline)
        self._drain(self._state.roster.actors, deadline)
        self._finish_learner(deadline)

    def save_if_learner_lives(self) -> None:
        """After a failure, save what was learnt; the failure itself is what the user must hear of."""
        for slot in self._state.roster:
            slot.orders.clear()
        learner, side = self._state.roster.learner, self._learner_side
        if not (side.is_restored and learner.worker):
            return
        try:
            self._begin()
            side.save_what_was_learnt()
            self._drain([learner], self._begun + LEARNER_S)
        except Exception as error:  # noqa: BLE001 (the first failure is raised; a callback may fail again)
            if not side.has_saved_all:
                log.warning("no last checkpoint could be written: %s", error)
        if not learner.orders:
            with suppress(Exception):
                self._finish_learner(self._begun + LEARNER_S)

    def _begin(self) -> None:
        """Ask everybody for an answer, and the learner to come to an end."""
        pool, learner = self._state.pool, self._state.roster.learner
        self._begun = self._clock()
        pool.expect_answers(ANSWER_S)
        if not learner.worker:
            return
        pool.finish_early(learner.worker)
        if pool.workers_can_hang and self._learner_side.is_restored:
            self.ping = pool.give(learner.worker, "ping")

    def _finish_learner(self, deadline: float) -> None:
        """Let the learner complete what it does beside its orders: the copy of its last checkpoint."""
        learner, side = self._state.roster.learner, self._learner_side
        if side.is_restored:
            self._drain([learner], deadline)  # the last evaluation may have given it an order
        if side.is_restored and learner.worker and not learner.orders:
            side.finish()
            self._drain([learner], deadline)

    def _drain(self, slots: Iterable[WorkerSlot], deadline: float) -> None:
        """Wait until these workers have no orders left, but no longer than the deadline."""
        while any(slot.unanswered for slot in slots) and self._clock() < deadline:
            self._turn()
            self._end_the_silent()
        for slot in slots:
            for order in slot.unanswered:
                log.warning("%s did not complete its order '%s' in time", slot.name, order.method)

    def _end_the_silent(self) -> None:
        """End those that have an order and gave no answer in time."""
        if not self._state.pool.workers_can_hang:
            return
        now, roster = self._clock(), self._state.roster
        for slot in roster.actors:
            if slot.unanswered and self._is_silent(slot, now):
                waited_s = now - max(self._begun, slot.orders[0].begun)
                self._lost(slot, f"it gave no answer for {waited_s:.0f} s, and the run is to end")
        if self.ping is not None and roster.learner.orders and now - self._begun >= ANSWER_S:
            self.ping = None
            self._lost(roster.learner, f"it gave no answer for {ANSWER_S:.0f} s, and the run is to end")

    def _is_silent(self, slot: WorkerSlot, now: float) -> bool:
        return now - self._begun >= ACTORS_S or now - max(self._begun, slot.orders[0].begun) >= ANSWER_S
