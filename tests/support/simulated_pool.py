"""A pool of simulated workers on a clock of its own: the fleet loop alone, with any number of actors and any fault."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy.workers.pool import ReplayChange, Worker, WorkerFailedError, WorkerLostError
from dreamfleet.replay.interface import Counters, Shortage


@dataclass(eq=False)
class SimulatedFuture:
    """An order under way: when it is done, and what doing it means."""

    done_at: float
    finish: Callable[[], Any]
    worker: Worker


@dataclass
class SimulatedPool:
    """Actors that take a random time per step, a learner that takes a fixed time per update, and a replay that counts.

    Attributes:
        slower_on_weights: orders that act on weights take this many times as long as those by chance.
        lose: asked before each collect order with (actor, order number); answers "lost", "failed", "hung", "cut off",
            or "" for a good one.
        lose_learner_at: updates at which the learner dies, in rising order.
        lose_restoring: asked with the time whether a learner dies as it restores.
        seconds_to_prepare: that a learner compiles before its first update; 0 for one that needs not.
        fail_learner_at: updates after which the learner refuses to go on; 0 is never.
        has_sequences: whether what is collected can be trained on.
        shortage_at: asked with the steps stored for what the replay says where it cannot.
        kept_steps: most that the replay keeps.
        is_mute: asked with (actor, incarnation) whether it never answers, though it has its place.
        evaluator_starts_in_s: seconds until the evaluator answers its greeting.
        seconds_per_evaluation: of all its episodes.
        seconds_per_write: of a checkpoint beside the updates; 0: it is written before the order is answered.
        lose_evaluation: asked with the number of each evaluation, from 1, whether the evaluator dies in it.
        lose_inference_at: seconds at which the process that acts for all actors dies, in rising order.
        saved_updates: of the checkpoint that there is at the beginning.
        fault_at: asked with the time for what keeps all workers from being reached.
        frozen_at: asked with the time whether the learner answers no ping, and no order given then.
        room_at: how many actors have a place at a time; the youngest beyond it wait, or are lost if they had one.
    """

    seconds_per_step: float = 0.01
    seconds_per_update: float = 0.05
    slower_on_weights: float = 1.0
    sequence_length: int = 10
    publish_every: int = 4
    lose: Callable[[int, int], str] = lambda actor, order: ""
    lose_learner_at: list[int] = field(default_factory=list)
    lose_restoring: Callable[[float], bool] = lambda now: False
    seconds_to_prepare: float = 0.0
    fail_learner_at: int = 0
    has_sequences: bool = True
    shortage_at: Callable[[int], Shortage] = lambda steps: Shortage(10, True, steps, 0, 3, 9, 9)
    kept_steps: int = 1_000_000
    seed: int = 0
    is_mute: Callable[[int, int], bool] = lambda actor, incarnation: False
    room_at: Callable[[float], int] = lambda now: 1_000_000
    evaluator_starts_in_s: float = 0.5
    seconds_per_evaluation: float = 3.0
    lose_evaluation: Callable[[int], bool] = lambda evaluation: False
    seconds_per_write: float = 0.0
    lose_inference_at: list[float] = field(default_factory=list)
    saved_updates: int = 0
    fault_at: Callable[[float], str] = lambda now: ""
    frozen_at: Callable[[float], bool] = lambda now: False
    counters_every_s: float = 0.0
    workers_can_hang: bool = True

    def __post_init__(self) -> None:
        self.now = 0.0
        self.total_steps = 0
        self._stored: dict[int, int] = {}  # steps of each actor's newest incarnation
        self.updates = 0
        self.saved = {"updates": self.saved_updates}
        self.restored_from: list[int] = []
        self.started: list[tuple[int, int]] = []
        self.stopped: list[str] = []
        self.syncs = 0
        self.is_finishing = False
        self.finished_at_last = False
        self.evaluations = 0
        self._being_written: list[tuple[float, dict[str, Any]]] = []  # when each is written, and what it holds
        self._orders = 0
        self._chance = random.Random(self.seed)
        self._free_at: dict[Worker, float] = {}
        self._under_way: list[SimulatedFuture] = []
        self._actors: list[Worker] = []
        self._placed: set[Worker] = set()
        self._mute: set[Worker] = set()
        self.adopted: list[list[int]] = []  # versions, by each process that acted for all actors
        self.forgotten: list[tuple[int, int]] = []
        self.asked_for: list[int] = []
        self.changes: list[ReplayChange] = []
        self.retired: list[tuple[int, int]] = []
        self.evaluated: list[tuple[int, float]] = []
        self.shortages_asked: list[int] = []

    @property
    def replay(self) -> Any:
        return self

    def clock(self) -> float:
        return self.now

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        self.started.append((actor, incarnation))
        self._stored[actor] = 0
        worker = self._started(Worker(f"actor {actor}", actor))
        self._actors.append(worker)
        if self.is_mute(actor, incarnation):
            self._mute.add(worker)
        return worker

    def start_evaluator(self) -> Worker:
        return self._started(Worker("evaluator", "evaluator"))

    def start_inference(self) -> Worker:
        self.adopted.append([])
        return self._started(Worker("inference", "inference"))

    def start_learner(self) -> Worker:
        self.updates = -1
        self.is_finishing = False
        self._being_written.clear()
        return self._started(Worker("learner", "learner"))

    def stop(self, worker: Worker) -> None:
        self.stopped.append(worker.name)
        if worker in self._actors:
            self._actors.remove(worker)
            self._placed.discard(worker)

    def finish_early(self, worker: Worker) -> None:
        self.is_finishing = True

    def give(self, worker: Worker, method: str, *arguments: Any) -> SimulatedFuture:
        seconds, finish = getattr(self, f"_{method}")(worker, *arguments)
        if worker.target == "learner" and self.frozen_at(self.now):
            seconds = 1e9
        done_at = max(self.now, self._free_at[worker]) + seconds
        if method == "ping":
            done_at = self.now + seconds
        elif method not in ("greet", "report"):
            self._free_at[worker] = done_at
        self._under_way.append(SimulatedFuture(done_at, finish, worker))
        return self._under_way[-1]

    def wait(self, timeout_s: float) -> list[SimulatedFuture]:
        self._place()
        self.now = max(self.now, min([self.now + timeout_s, *(future.done_at for future in self._under_way)]))
        done = [future for future in self._under_way if future.done_at <= self.now]
        self._under_way = [future for future in self._under_way if future.done_at > self.now]
        return done

    def running(self, workers: list[Worker]) -> list[Worker]:
        return [worker for worker in workers if worker in self._placed]

    def replay_changes(self) -> list[ReplayChange]:
        changes, self.changes = self.changes, []
        return changes

    def room(self) -> int:
        return self.room_at(self.now)

    def ask_for_room(self, actors: int) -> None:
        self.asked_for.append(actors)

    def result(self, future: SimulatedFuture) -> Any:
        return future.finish()

    def expect_answers(self, within_s: float) -> None:
        self.expected = within_s

    def fault(self) -> str:
        return self.fault_at(self.now)

    def publish(self, version: int, flat: Any) -> PublishedWeights:
        return PublishedWeights(version, flat)

    def retire(self, actor: int, incarnation: int) -> int:
        self.retired.append((actor, incarnation))
        return self._stored[actor]

    def counters(self) -> Counters:
        next_incarnation = 1 + max((incarnation for _, incarnation in self.started), default=-1)
        return Counters(
            self.total_steps,
            max(0, self.total_steps - self.sequence_length) if self.has_sequences else 0,
            next_incarnation,
        )

    def stats(self) -> dict[str, float]:
        kept = min(self.total_steps, self.kept_steps)
        return {"steps": kept, "dropped_steps": self.total_steps - kept}

    def shortage(self) -> Shortage:
        self.shortages_asked.append(self.total_steps)
        return self.shortage_at(self.total_steps)

    def log_records(self) -> list[tuple[int, str]]:
        return []

    def sync(self) -> None:
        self.syncs += 1

    def close(self) -> None:
        pass

    def _place(self) -> None:
        """Give a place to who waits for one, oldest first, and take those away that are too many, youngest first."""
        for number, worker in enumerate(self._actors):
            has_room = number < self.room_at(self.now)
            for future in self._under_way:
                if future.worker is worker and has_room and worker not in self._placed:
                    up_at = max(self.now + 0.5, self._free_at[worker])
                    future.done_at = float("inf") if worker in self._mute else up_at
                elif future.worker is worker and not has_room and worker in self._placed:
                    future.done_at, future.finish = self.now, _lose_with_the_node
            if has_room:
                self._placed.add(worker)

    def _started(self, worker: Worker) -> Worker:
        self._free_at[worker] = self.now + 1.0
        return worker

    def _greet(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        starts_in_s = {"evaluator": self.evaluator_starts_in_s, "inference": 0.5}
        seconds = starts_in_s.get(worker.target, float("inf"))
        return seconds, lambda: "a simulated node"

    def _adopt(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
        def finish() -> bool:
            self.adopted[-1].append(weights.version)
            return True

        return 0.1, finish

    def _forget(self, worker: Worker, actor: int, incarnation: int) -> tuple[float, Callable[[], Any]]:
        self.forgotten.append((actor, incarnation))
        return 0.0, lambda: None

    def _report(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        def finish() -> Any:
            if self.lose_inference_at and self.now >= self.lose_inference_at[0]:
                self.lose_inference_at.pop(0)
                raise WorkerLostError("the simulated process died")
            return SimpleNamespace(steps=1, batches=0, clients=0, log_records=[])

        return 2.0, finish

    def _evaluate(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
        version = weights.version
        self.evaluations += 1
        is_lost = self.lose_evaluation(self.evaluations)

        def finish() -> Any:
            if is_lost:
                raise WorkerLostError("the simulated evaluator died")
            return SimpleNamespace(version=version, returns=[1.0, 2.0], log_records=[])

        return self.seconds_per_evaluation, finish

    def _record_evaluation(
        self, worker: Worker, updates: int, found: dict[str, Any]
    ) -> tuple[float, Callable[[], Any]]:
        def finish() -> bool:
            self.evaluated.append((updates, found["evaluation_return"]))
            return True

        return 0.1, finish

    def _collect(self, worker: Worker, steps: int, weights: PublishedWeights | None) -> tuple[float, Callable[[], Any]]:
        self._orders += 1
        fate = self.lose(worker.target, self._orders)
        seconds = steps * self.seconds_per_step * self._chance.uniform(0.5, 2.0)
        if weights:
            seconds *= self.slower_on_weights

        def finish() -> Any:
            if fate == "lost":
                self._store(worker, steps // 2)  # half of its chunks had been stored, and nobody knew
                raise WorkerLostError("the simulated actor died")
            if fate == "cut off":
                raise WorkerFailedError(RunFailedError("the replay server did not answer"), "Traceback: simulated")
            if fate == "failed":
                raise WorkerFailedError(ZeroDivisionError("simulated"), "Traceback: simulated")
            self._store(worker, steps)
            return SimpleNamespace(steps=steps, simulator_steps=steps, episodes=[], weights_lost=0)

        return (1e9 if fate == "hung" else seconds), finish

    def _store(self, worker: Worker, steps: int) -> None:
        self._stored[worker.target] += steps
        self.total_steps += steps

    def _restore(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        def finish() -> Any:
            if self.lose_restoring(self.now):
                raise WorkerLostError("the simulated learner died as it came up")
            self.updates = self.saved["updates"]
            self.restored_from.append(self.updates)
            return SimpleNamespace(
                updates=self.updates,
                published=PublishedWeights(self.updates, "weights"),
                decisions=[],
                facts=None,
                is_prepared=not self.seconds_to_prepare,
            )

        return 0.5, finish

    def _prepare(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        return self.seconds_to_prepare, lambda: [(logging.INFO, "prepared")]

    def _train(self, worker: Worker, updates: int) -> tuple[float, Callable[[], Any]]:
        def finish() -> Any:
            if self.fail_learner_at and self.updates + updates > self.fail_learner_at:
                raise WorkerFailedError(RunFailedError("the loss is not finite"), "Traceback: simulated")
            if self.lose_learner_at and self.updates + updates > self.lose_learner_at[0]:
                self.lose_learner_at.pop(0)
                raise WorkerLostError("the simulated learner died")
            before, self.updates = self.updates, self.updates + (0 if self.is_finishing else updates)
            due = self.updates // self.publish_every > before // self.publish_every
            published = PublishedWeights(self.updates, "weights") if due else None
            return SimpleNamespace(
                updates=self.updates,
                metrics={},
                timings={},
                log_records=[],
                published=published,
                saved=self._written(),
            )

        return updates * self.seconds_per_update, finish

    def _save(self, worker: Worker, facts: dict[str, Any]) -> tuple[float, Callable[[], Any]]:
        def finish() -> Any:
            self.saved = facts | {"updates": self.updates}
            return self.saved, PublishedWeights(self.updates, "weights")

        return 0.2, finish

    def _start_saving(self, worker: Worker, facts: dict[str, Any]) -> tuple[float, Callable[[], Any]]:
        if not self.seconds_per_write:
            return self._save(worker, facts)

        def finish() -> None:
            taken = facts | {"updates": self.updates}
            self._being_written.append((self.now + self.seconds_per_write, taken))

        return 0.01, finish

    def _finish_saving(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        left_s = max([written_at - self.now for written_at, _ in self._being_written], default=0.0)
        return max(0.0, left_s), self._written

    def _written(self) -> list[Any]:
        """Return the checkpoints that were begun and are written by now: they count from now on."""
        done = [taken for written_at, taken in self._being_written if written_at <= self.now]
        self._being_written = [(at, taken) for at, taken in self._being_written if at > self.now]
        for taken in done:
            self.saved = taken
        return [(taken, PublishedWeights(taken["updates"], "weights")) for taken in done]

    def _ping(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        return (1e9 if self.frozen_at(self.now) else 0.01), lambda: 1

    def _finish(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        self.finished_at_last = True
        return 0.1, lambda: None

    def _draw_pictures(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
        return 0.2, lambda: None


def _lose_with_the_node() -> Any:
    raise WorkerLostError("the simulated node was lost")
