"""The roster: which workers the fleet has, who replaces them, and how many there are as the cluster changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy.fleet.deaths import DeathRegister
from dreamfleet.deploy.fleet.failures import Failures
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.state import Death
from dreamfleet.deploy.workers.pool import Pool

ACTOR_PATIENCE_S = 60.0
"""An actor may take this long for an order even if all orders before it were quick."""
EVALUATOR = -2
"""The evaluator's number, which no actor has."""
INFERENCE = -3
"""The number of the process that acts for all actors."""
INFERENCE_TIMEOUT_S, INFERENCE_PATIENCE_S = 120.0, 30.0
"""It may take this long to adopt weights, of which the first make its networks, and later this long to report."""
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
    """The slots of all workers: filled, emptied, and where `config.actors` is None as many actors as fit.

    Attributes:
        deaths: of workers, which this start has seen.
    """

    def __init__(self, pool: Pool, config: FleetConfig, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._config = config
        self._clock = clock
        self.actors: list[WorkerSlot] = []
        self.learner = WorkerSlot("learner", config.learner_timeout_s, self._failures())
        self.evaluator = WorkerSlot("evaluator", config.evaluator_timeout_s, self._failures(), number=EVALUATOR)
        self.inference = WorkerSlot(
            "inference", INFERENCE_TIMEOUT_S, self._failures(), INFERENCE_PATIENCE_S, number=INFERENCE
        )
        self.deaths = DeathRegister()
        self._scarce_checks = 0
        self._waiting_log_due = clock() + WAITING_LOG_S
        self._resize(config.actors if config.actors is not None else max(1, pool.room()))

    def __iter__(self) -> Iterator[WorkerSlot]:
        """Return all slots, the learner's last."""
        return iter([*self.actors, self.evaluator, self.inference, self.learner])

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
        self._check_evaluator()
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

    def fill_inference(self) -> bool:
        """Start the process that acts for all actors, if it is time; return whether it was.

        Raises:
            RunFailedError: if it is given up.
        """
        slot, failures = self.inference, self.inference.failures
        if failures.given_up or failures.is_hopeless:
            raise RunFailedError(f"the inference process failed again and again, at last of: {failures.cause}")
        if not self._config.acts_centrally or slot.worker or not self._may_fill(slot):
            return False
        slot.worker = self._pool.start_inference()
        return True

    def empty(self, slot: WorkerSlot, cause: str, stored: int = 0, updates: int = 0) -> int:
        """Empty the slot of a worker that was lost (see `WorkerSlot.lost`), and return the steps it was to collect.

        Args:
            updates: of a learner, those that are to be made again.
        """
        if slot.worker:
            self._pool.stop(slot.worker)
        now, node = self._clock(), slot.node
        unanswered = slot.lost(now, cause, stored)
        death = Death.now(slot.name, cause, node=node, steps_in_doubt=unanswered, updates_again=updates)
        self.deaths.died(now, death, "given up" if slot.given_up else "replaced")
        return unanswered

    def works(self, slot: WorkerSlot) -> None:
        """Record that the worker in a slot is up."""
        self.deaths.replaced(self._clock(), slot.name)

    def follow_replay(self, steps_in_doubt: int) -> None:
        """Name the replay's processes that died, and those that are up again; Ray restarts them by itself."""
        for change in self._pool.replay_changes():
            if change.cause:
                death = Death.now(change.who, change.cause, steps_in_doubt=steps_in_doubt)
                self.deaths.died(self._clock(), death, "restarted")
            else:
                self.deaths.replaced(self._clock(), change.who)

    @property
    def restarts(self) -> int:
        """How many processes were lost."""
        return self.deaths.count

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
        all_placed = all(slot.is_placed or slot.failures.are_many for slot in self.actors)
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
            name, timeout_s = f"actor {number}", self._config.actor_timeout_s
            self.actors.append(WorkerSlot(name, timeout_s, self._failures(), ACTOR_PATIENCE_S, number))
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

    def _failures(self) -> Failures:
        return Failures(self._config.give_up_after_s)

    def _may_fill(self, slot: WorkerSlot) -> bool:
        return self._clock() >= slot.restart_at

    def _check_learner(self) -> None:
        failures = self.learner.failures
        if failures.given_up or failures.is_hopeless:
            raise RunFailedError(f"the learner failed again and again, at last of: {failures.cause}")

    def _check_evaluator(self) -> None:
        """Give the evaluator up where none ever worked: the run goes on without it."""
        failures = self.evaluator.failures
        if not failures.given_up and failures.is_hopeless:
            failures.given_up = True
            self.evaluator.restart_at = self._clock() + self._config.give_up_after_s
            log.warning("evaluator is given up: it never worked, at last: %s", failures.cause)

    def _check_actors(self) -> None:
        if not self.actors:
            return
        failures = [slot.failures for slot in self.actors]
        if all(one.given_up for one in failures) or self._are_hopeless(failures):
            causes = "; ".join({one.kind: one.cause for one in failures if one.cause}.values())
            raise RunFailedError(f"no actor is left; each failed again and again, at last of: {causes}")

    def _are_hopeless(self, failures: list[Failures]) -> bool:
        """Whether no actor ever worked, on any node, and all failed in the same way; some may wait for room."""
        if any(one.has_worked for one in failures):
            return False
        tried = [slot.failures for slot in self.actors if slot.failures.cause or not slot.waits_for_place]
        return len({one.kind for one in tried}) == 1 and all(one.is_hopeless for one in tried)
