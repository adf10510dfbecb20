"""A pool of simulated workers in real time: orders are answered when they are due, by nobody."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from dreamfleet.actors.collector import CollectReport
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.deploy.workers.pool import ReplayChange, Worker
from dreamfleet.replay.interface import Counters


@dataclass(eq=False)
class DueOrder:
    """An order, when its answer is due, and the answer."""

    due: float
    worker: Worker
    answer: Any = field(repr=False)


class RealTimePool:
    """Actors that take their time for an order, a learner that makes this many updates a second, a replay that counts.

    Attributes:
        delays: seconds between an answer being due and the next order of the same actor being given.
        orders: collect orders given.

    Args:
        actors: how many there will be; their first orders are spread over a second.
        steps_per_s: of one actor, give or take a fifth for each order.
        updates_per_s: of the learner.
    """

    counters_every_s = 0.02
    workers_can_hang = True

    def __init__(self, actors: int, steps_per_s: float, updates_per_s: float) -> None:
        self.delays: list[float] = []
        self.orders = 0
        self._actors = actors
        self._steps_per_s = steps_per_s
        self._updates_per_s = updates_per_s
        self._chance = random.Random(0)
        self._heap: list[tuple[float, int, DueOrder]] = []
        self._number = itertools.count()
        self._free_at: dict[Worker, float] = defaultdict(float)
        self._answered: dict[Worker, deque[float]] = defaultdict(deque)
        self._steps = 0
        self._updates = 0

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Return an actor."""
        del incarnation
        return Worker(f"actor {actor}", actor)

    def start_learner(self) -> Worker:
        """Return the learner."""
        return Worker("learner", None)

    def stop(self, worker: Worker) -> None:
        """Nobody fails here."""

    def finish_early(self, worker: Worker) -> None:
        """Take an end as it comes."""

    def give(self, worker: Worker, method: str, *arguments: Any) -> DueOrder:
        """Take an order: it is due when the worker has done all before it, and it."""
        now = time.perf_counter()
        seconds, answer = getattr(self, f"_{method}")(*arguments)
        if method == "collect":
            self.orders += 1
            if self._answered[worker]:
                self.delays.append(now - self._answered[worker].popleft())
        due = self._free_at[worker] = max(now, self._free_at[worker]) + seconds
        order = DueOrder(due, worker, answer)
        heapq.heappush(self._heap, (due, next(self._number), order))
        return order

    def wait(self, timeout_s: float) -> list[DueOrder]:
        """Sleep until an answer is due, and return those that are."""
        until = time.perf_counter() + timeout_s
        if self._heap:
            until = min(until, self._heap[0][0])
        time.sleep(max(0.0, until - time.perf_counter()))
        now, done = time.perf_counter(), []
        while self._heap and self._heap[0][0] <= now:
            done.append(heapq.heappop(self._heap)[2])
        return done

    def result(self, future: DueOrder) -> Any:
        """Return the answer, which for steps means that they are stored."""
        if isinstance(future.answer, CollectReport):
            self._steps += future.answer.steps
            self._answered[future.worker].append(future.due)
        return future.answer

    @property
    def replay(self) -> Any:
        """The pool counts what its actors store."""
        return self

    def running(self, workers: list[Worker]) -> list[Worker]:
        """All have their place."""
        return workers

    def replay_changes(self) -> list[ReplayChange]:
        """Return none."""
        return []

    def expect_answers(self, within_s: float) -> None:
        """Do nothing."""

    def fault(self) -> str:
        """Return nothing."""
        return ""

    def room(self) -> int:
        """Return the number of actors."""
        return self._actors

    def ask_for_room(self, actors: int) -> None:
        """There is room for all."""

    def counters(self) -> Counters:
        """Return what is stored."""
        return Counters(self._steps, self._steps, 0)

    def stats(self) -> dict[str, float]:
        """Return what is stored; nothing is dropped."""
        return {"steps": self._steps, "dropped_steps": 0}

    def log_records(self) -> list[tuple[int, str]]:
        """Return nothing."""
        return []

    def sync(self) -> None:
        """There is nothing to sync."""

    def close(self) -> None:
        """There is nothing to close."""

    def _greet(self) -> tuple[float, str]:
        return self._chance.random(), "simulated"

    def _collect(self, steps: int, weights: PublishedWeights | None) -> tuple[float, CollectReport]:
        del weights
        timings = {"environment": 1.0, "policy": 0.1, "store": 0.1}
        report = CollectReport(steps=steps, episodes=[], timings=timings)
        return steps / self._steps_per_s * self._chance.uniform(0.8, 1.2), report

    def _restore(self) -> tuple[float, Any]:
        return 0.1, SimpleNamespace(updates=0, published=PublishedWeights(0, None), decisions=[])

    def _train(self, updates: int) -> tuple[float, Any]:
        self._updates += updates
        published = PublishedWeights(self._updates, None) if self._updates % 16 == 0 else None
        return updates / self._updates_per_s, SimpleNamespace(
            updates=self._updates,
            metrics={"loss/total": 1.0},
            timings={"wait": 0.1},
            log_records=[],
            published=published,
            saved=[],
        )

    def _save(self, facts: dict[str, Any]) -> tuple[float, Any]:
        return 0.1, (facts | {"updates": self._updates}, PublishedWeights(self._updates, None))

    def _start_saving(self, facts: dict[str, Any]) -> tuple[float, Any]:
        return self._save(facts)

    def _finish(self) -> tuple[float, Any]:
        return 0.0, []

    def _draw_pictures(self) -> tuple[float, Any]:
        return 0.1, None
