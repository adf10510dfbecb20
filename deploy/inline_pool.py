"""The pool without Ray: everything in this process, one order at a time, in the order in which they were given."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamfleet.actors.collector import CollectReport, build_collector
from dreamfleet.actors.evaluator import EvaluationReport, evaluate_weights
from dreamfleet.common.notes import Note
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.steps import StepFormat
from dreamfleet.deploy.pool import Counters, Worker, WorkerFailedError
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.publishing_learner import PublishingLearner
from dreamfleet.replay.client import DirectSink
from dreamfleet.replay.sharded import Shard, shard_of
from dreamfleet.replay.shards import open_shards
from dreamfleet.replay.shortage import Shortage

LOCK_WAIT_S = 20.0
"""How long to wait for the replay of a run that was killed: its replay process ends within seconds of it."""


class InlineActor:
    """What `ActorProcess` is on Ray: a collector that adopts weights before it collects."""

    def __init__(self, settings: Settings, actor: int, incarnation: int, shard: Shard) -> None:
        self.collector = build_collector(settings, actor, incarnation, DirectSink(shard))

    def greet(self) -> str:
        """Return nothing of note: the actor is where everything is."""
        return ""

    def collect(self, steps: int, weights: list[tuple[int, np.ndarray]]) -> CollectReport:
        """Adopt the weights if they are newer, and collect exactly so many steps."""
        for version, flat in weights:
            if version > self.collector.version:
                self.collector.adopt(version, flat)
        return self.collector.collect(steps)


class InlineEvaluator:
    """What an `ActorProcess` that only evaluates is on Ray."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def greet(self) -> str:
        """Return nothing of note: it is where everything is."""
        return ""

    def evaluate(self, weights: list[tuple[int, np.ndarray]]) -> EvaluationReport:
        """Play the evaluation's episodes with these weights."""
        return evaluate_weights(self._settings, *weights[0])


class InlineFuture:
    """An order that is carried out when somebody waits for it."""

    def __init__(self, worker: Worker, work: Callable[[], Any]) -> None:
        self.worker = worker
        self._work = work
        self._answer: Any = None
        self._error: WorkerFailedError | None = None

    def run(self) -> InlineFuture:
        """Carry the order out."""
        try:
            self._answer = self._work()
        except Exception as error:  # noqa: BLE001 (whatever a worker raises is its answer)
            self._error = WorkerFailedError(error, traceback.format_exc())
        return self

    def result(self) -> Any:
        """Return the answer, or raise what went wrong."""
        if self._error:
            raise self._error
        return self._answer


class InlinePool:
    """Actors, learner and replay in this process. The same settings and seed give the same run, bit for bit, on a CPU.

    Args:
        settings: the run's.
        spaces: what the environment shows and takes.
        run: the run's directory.

    Raises:
        UserError: if the replay finds its directory at fault.
    """

    counters_every_s = 0.0
    workers_can_hang = False

    def __init__(self, settings: Settings, spaces: Spaces, run: RunDirectory) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run = run
        experience, read_only = run.experience(settings)
        self._replay = open_shards(experience, StepFormat(spaces), settings.replay, settings.learner.sequence_length,
                                   settings.seed, read_only, LOCK_WAIT_S)  # fmt: skip
        self._actors: dict[Worker, InlineActor] = {}
        self._orders: deque[InlineFuture] = deque()

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Make an actor when its first order is carried out, so that a failing environment fails there."""
        return Worker(f"actor {actor}", (actor, incarnation))

    def start_evaluator(self) -> Worker:
        """Make the evaluator."""
        return Worker("evaluator", InlineEvaluator(self._settings))

    def start_learner(self) -> Worker:
        """Make the learner."""
        learner = Learner(self._settings, self._spaces, self._replay, self._run.path, prefetch=False)
        return Worker("learner", PublishingLearner(learner, self._settings.learner.publish_every, np.copy))

    def stop(self, worker: Worker) -> None:
        """Forget a worker and its orders."""
        self._orders = deque(order for order in self._orders if order.worker is not worker)
        actor = self._actors.pop(worker, None)
        if actor:
            actor.collector.close()

    def hurry(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        worker.target.hurry()

    def give(self, worker: Worker, method: str, *arguments: Any) -> InlineFuture:
        """Take an order, to be carried out when it is waited for."""
        self._orders.append(InlineFuture(worker, lambda: getattr(self._target(worker), method)(*arguments)))
        return self._orders[-1]

    def wait(self, timeout_s: float) -> list[InlineFuture]:
        """Carry out the oldest order and return it."""
        if not self._orders:
            time.sleep(timeout_s)
        return [self._orders.popleft().run()] if self._orders else []

    def placed(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return none: greetings are answered here when their turn comes."""
        del workers
        return []

    def room(self) -> int:
        """Return the number of actors that work side by side here."""
        return 1

    def ask_for_room(self, actors: int) -> None:
        """Do nothing: there is this process, and no more."""

    def result(self, future: InlineFuture) -> Any:
        """Return what a done order brought.

        Raises:
            WorkerFailedError: if it raised.
        """
        return future.result()

    def publish(self, flat: np.ndarray) -> np.ndarray:
        """Return the weights themselves."""
        return flat

    def retire(self, actor: int, incarnation: int) -> None:
        """Have the replay store nothing more of a life that is over; here there is nothing on its way."""
        self._replay.retire(actor, incarnation)

    def counters(self) -> Counters:
        """Ask the replay for its counters."""
        return Counters(*self._replay.counters())

    def replay_stats(self) -> dict[str, float]:
        """Ask the replay for its figures."""
        return self._replay.stats()

    def shortage(self) -> Shortage:
        """Ask the replay what it holds, where no training sequence can be cut from it."""
        return self._replay.shortage()

    def replay_notes(self) -> list[Note]:
        """Return nothing: the replay logs to this process's log."""
        return self._replay.notes()

    def sync_replay(self) -> None:
        """Have the replay write all it holds through to the disk."""
        self._replay.sync()

    def close(self) -> None:
        """Close environments and replay."""
        for worker in list(self._actors):
            self.stop(worker)
        self._replay.close()

    def _target(self, worker: Worker) -> Any:
        if isinstance(worker.target, PublishingLearner | InlineEvaluator):
            return worker.target
        if worker not in self._actors:
            actor, incarnation = worker.target
            shard = self._replay.shards[shard_of(actor, self._replay.alive)]
            self._actors[worker] = InlineActor(self._settings, actor, incarnation, shard)
        return self._actors[worker]
