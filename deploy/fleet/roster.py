"""The roster: which workers the fleet has, who replaces them, and how many there are as the cluster changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy.fleet.fleet_config import Staffing
from dreamfleet.deploy.fleet.worker_slot import Slot
from dreamfleet.deploy.workers.pool import Pool

ACTOR_PATIENCE_S = 60.0
"""An actor may take so long for an order even if all orders before it were quick."""
EVALUATOR = -2
"""The evaluator's number, which no actor has."""
LOOK_EVERY_S = 2.0
"""Seconds between two looks at how much room there is, and at who is late."""
WANTED_LOOKS = 5
"""So many looks in a row must find that experience is what is scarce, before more room is asked for."""
LEAST_GROWTH = 8
"""Room is asked for so many more actors at least, and for twice as many as there are when there are more."""
WAITING_NOTE_S = 60.0
"""Seconds between two notes in the log that actors wait for room."""

log = logging.getLogger("dreamfleet")


class Roster:
    """The places of actors and learner: filled, emptied, and with `actors` None as many as there is room for.

    Attributes:
        actors: the actors' slots; `learner` is the learner's, `evaluator` that of the actor that only evaluates.
        restarts: how often a worker was replaced.

    Args:
        pool: where the workers live.
        staffing: how many there are.
        clock: seconds.
    """

    def __init__(self, pool: Pool, staffing: Staffing, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._staffing = staffing
        self._clock = clock
        self.actors: list[Slot] = []
        self.learner = Slot("learner", staffing.learner_timeout_s)
        self.evaluator = Slot("evaluator", staffing.evaluator_timeout_s, number=EVALUATOR)
        self.restarts = 0
        self._wanted_looks = 0
        self._note_due = clock() + WAITING_NOTE_S
        self._resize(staffing.actors if staffing.actors is not None else max(1, pool.room()))

    def __iter__(self) -> Iterator[Slot]:
        """Return all slots, the learner's last."""
        return iter([*self.actors, self.evaluator, self.learner])

    @property
    def placed(self) -> int:
        """Actors that have their place."""
        return sum(slot.is_placed for slot in self.actors)

    def fill(self, next_incarnation: int) -> list[Slot]:
        """Start workers in the empty slots whose time has come, and return these slots.

        Args:
            next_incarnation: number of the first actor's life; each further one takes the next.

        Raises:
            RunFailedError: if there is no actor or no learner that is not given up.
        """
        filled = []
        self._check_learner()
        if self._staffing.learns and not self.learner.worker and self._may_fill(self.learner):
            self.learner.worker = self._pool.start_learner()
            filled.append(self.learner)
        if self._staffing.evaluate_every and not self.evaluator.worker and self._may_fill(self.evaluator):
            self.evaluator.worker = self._pool.start_evaluator()
            filled.append(self.evaluator)
        for slot in self.actors:
            if not slot.worker and self._may_fill(slot):
                slot.worker = self._pool.start_actor(slot.number, next_incarnation)
                slot.incarnation = next_incarnation
                next_incarnation += 1
                filled.append(slot)
        self._check_actors()
        return filled

    def empty(self, slot: Slot, cause: str, stored: int = 0) -> int:
        """Empty the slot of a worker that was lost, and return the steps that it was to collect.

        Args:
            slot: the worker's.
            cause: what it was lost by.
            stored: steps that it had collected in its life and that are stored.
        """
        if slot.worker:
            self._pool.stop(slot.worker)
        where = f" (on {slot.node})" if slot.node else ""
        unanswered = slot.lost(self._clock(), cause, stored)
        self.restarts += 1
        log.warning("%s is %s: %s%s", slot.name, "given up" if slot.given_up else "replaced", cause, where)
        return unanswered

    def late(self) -> list[Slot]:
        """Return the slots whose workers have not answered in time, their greeting included once they have a place."""
        if not self._pool.workers_can_hang:
            return []
        now = self._clock()
        waiting = {slot.worker: slot for slot in self if slot.worker and slot.waits_for_place}
        for worker in self._pool.placed(list(waiting)) if waiting else []:
            waiting[worker].got_place(now)
        return [slot for slot in self if slot.worker and slot.is_late(now)]

    def follow(self, is_scarce: bool) -> None:
        """Have as many slots as there is room for, and ask for more room while experience is what is scarce.

        Args:
            is_scarce: whether the learner could train more if there were more experience.
        """
        self._note_waiting()
        if self._staffing.actors is not None:
            return
        self._resize(max(1, self._pool.room()))
        placed = self.placed
        all_placed = placed == sum(not slot.given_up for slot in self.actors)
        self._wanted_looks = self._wanted_looks + 1 if is_scarce and all_placed else 0
        if self._wanted_looks >= WANTED_LOOKS:
            self._wanted_looks = 0
            self._pool.ask_for_room(placed + max(LEAST_GROWTH, placed))

    def _resize(self, count: int) -> None:
        """Add slots, or take away those whose actors have no place; one that works is never taken away."""
        before = len(self.actors)
        for slot in reversed(self.actors):
            if len(self.actors) > count and not slot.is_placed:
                if slot.worker:
                    self._pool.stop(slot.worker)
                slot.orders.clear()  # its greeting
                self.actors.remove(slot)
        taken = {slot.number for slot in self.actors}
        free = (number for number in range(len(taken) + count) if number not in taken)
        while len(self.actors) < count:
            number = next(free)
            self.actors.append(Slot(f"actor {number}", self._staffing.actor_timeout_s, ACTOR_PATIENCE_S, number))
        if before and len(self.actors) != before:
            log.info("actors: %d instead of %d, as many as the cluster has room for", len(self.actors), before)

    def _note_waiting(self) -> None:
        """Say now and then that actors wait for room: nobody would know otherwise why nothing happens."""
        now = self._clock()
        waiting = sum(slot.waits_for_place for slot in self.actors)
        if not waiting:
            self._note_due = now + WAITING_NOTE_S
        elif now >= self._note_due:
            self._note_due = now + WAITING_NOTE_S
            log.warning("%d of %d actors have no place yet; there is room for %d", waiting, len(self.actors),
                        self._pool.room())  # fmt: skip

    def _may_fill(self, slot: Slot) -> bool:
        return not slot.given_up and self._clock() >= slot.restart_at

    def _check_learner(self) -> None:
        if self.learner.given_up:
            raise RunFailedError(f"the learner failed again and again, at last of: {self.learner.last_cause}")

    def _check_actors(self) -> None:
        if self.actors and all(slot.given_up for slot in self.actors):
            causes = "; ".join(dict.fromkeys(slot.last_cause for slot in self.actors))
            raise RunFailedError(f"no actor is left; each failed again and again, at last of: {causes}")
