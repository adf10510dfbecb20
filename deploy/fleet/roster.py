"""The roster: which workers the fleet has, who replaces them, and how many there are as the cluster changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.workers.pool import Pool

ACTOR_PATIENCE_S = 60.0
"""An actor may take this long for an order even if all orders before it were quick."""
EVALUATOR = -2
"""The evaluator's number, which no actor has."""
CHECK_EVERY_S = 2.0
"""Seconds between two checks of the room in the cluster, and of workers that are late."""
SCARCE_CHECKS = 5
"""More room is asked for once this many checks in a row have found that experience is scarce."""
LEAST_GROWTH = 8
"""Room is asked for at least this many more actors, and for twice as many as there are if that is more."""
WAITING_LOG_S = 60.0
"""Seconds between two log lines that say that actors wait for room."""

log = logging.getLogger("dreamfleet")


class Roster:
    """The slots of actors, evaluator and learner: filled, emptied, and where `config.actors` is None as many as fit.

    Attributes:
        restarts: how often a worker was replaced.
    """

    def __init__(self, pool: Pool, config: FleetConfig, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._config = config
        self._clock = clock
        self.actors: list[WorkerSlot] = []
        self.learner = WorkerSlot("learner", config.learner_timeout_s)
        self.evaluator = WorkerSlot("evaluator", config.evaluator_timeout_s, number=EVALUATOR)
        self.restarts = 0
        self._scarce_checks = 0
        self._waiting_log_due = clock() + WAITING_LOG_S
        self._resize(config.actors if config.actors is not None else max(1, pool.room()))

    def __iter__(self) -> Iterator[WorkerSlot]:
        """Return all slots, the learner's last."""
        return iter([*self.actors, self.evaluator, self.learner])

    @property
    def placed(self) -> int:
        """Actors that have their place."""
        return sum(slot.is_placed for slot in self.actors)

    def fill(self, next_incarnation: int) -> list[WorkerSlot]:
        """Start workers in the empty slots whose time has come, and return these slots.

        Args:
            next_incarnation: of the first actor started; each further one takes the next.

        Raises:
            RunFailedError: if the learner or all actors are given up.
        """
        filled = []
        self._check_learner()
        if self._config.learns and not self.learner.worker and self._may_fill(self.learner):
            self.learner.worker = self._pool.start_learner()
            filled.append(self.learner)
        if self._config.evaluate_every and not self.evaluator.worker and self._may_fill(self.evaluator):
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

    def empty(self, slot: WorkerSlot, cause: str, stored: int = 0) -> int:
        """Empty the slot of a worker that was lost (see `WorkerSlot.lost`), and return the steps it was to collect."""
        if slot.worker:
            self._pool.stop(slot.worker)
        where = f" (on {slot.node})" if slot.node else ""
        unanswered = slot.lost(self._clock(), cause, stored)
        self.restarts += 1
        log.warning("%s is %s: %s%s", slot.name, "given up" if slot.given_up else "replaced", cause, where)
        return unanswered

    def late(self) -> list[WorkerSlot]:
        """Return the slots whose workers have not answered in time; that of a greeting begins once a process runs."""
        if not self._pool.workers_can_hang:
            return []
        now = self._clock()
        waiting = {slot.worker: slot for slot in self if slot.worker and slot.waits_for_place}
        for worker in self._pool.running(list(waiting)) if waiting else []:
            waiting[worker].started(now)
        return [slot for slot in self if slot.worker and slot.is_late(now)]

    def follow_cluster(self, is_scarce: bool) -> None:
        """Have as many slots as there is room for, and ask for more room while experience `is_scarce`."""
        self._log_waiting()
        if self._config.actors is not None:
            return
        self._resize(max(1, self._pool.room()))
        placed = self.placed
        all_placed = placed == sum(not slot.given_up for slot in self.actors)
        self._scarce_checks = self._scarce_checks + 1 if is_scarce and all_placed else 0
        if self._scarce_checks >= SCARCE_CHECKS:
            self._scarce_checks = 0
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
            self.actors.append(WorkerSlot(f"actor {number}", self._config.actor_timeout_s, ACTOR_PATIENCE_S, number))
        if before and len(self.actors) != before:
            log.info("actors: %d instead of %d, as many as the cluster has room for", len(self.actors), before)

    def _log_waiting(self) -> None:
        """Log from time to time that actors wait for room: else nobody would know why nothing happens."""
        now = self._clock()
        waiting = sum(slot.waits_for_place for slot in self.actors)
        if not waiting:
            self._waiting_log_due = now + WAITING_LOG_S
        elif now >= self._waiting_log_due:
            self._waiting_log_due = now + WAITING_LOG_S
            room = self._pool.room()
            log.warning("%d of %d actors have no place yet; there is room for %d", waiting, len(self.actors), room)

    def _may_fill(self, slot: WorkerSlot) -> bool:
        return not slot.given_up and self._clock() >= slot.restart_at

    def _check_learner(self) -> None:
        if self.learner.given_up:
            raise RunFailedError(f"the learner failed again and again, at last of: {self.learner.last_cause}")

    def _check_actors(self) -> None:
        if self.actors and all(slot.given_up for slot in self.actors):
            causes = "; ".join(dict.fromkeys(slot.last_cause for slot in self.actors))
            raise RunFailedError(f"no actor is left; each failed again and again, at last of: {causes}")
