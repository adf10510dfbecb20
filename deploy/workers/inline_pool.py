"""The pool without Ray: everything in this process, one order at a time, in the order in which they were given."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from dreamfleet.actors.collector import CollectReport, build_collector
from dreamfleet.actors.environments.user_code import process_kept
from dreamfleet.actors.evaluator import EvaluationReport, EvaluationStoppedError, evaluate_weights
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.stop_sign import NeverStop, StopSign
from dreamfleet.common.torch_state import own_torch_state
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.pool import ReplayChange, Worker, WorkerFailedError
from dreamfleet.learner.hardware import torch_threads
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.interface import DirectChunkWriter, Shard
from dreamfleet.replay.sharded import shard_of
from dreamfleet.replay.shards import open_shards

LOCK_WAIT_S = 20.0
"""How long to wait for the replay of a run that was killed: its replay process ends within seconds of it."""


class InlineActor:
    """What `ActorProcess` is on Ray: a collector that adopts weights before it collects."""

    def __init__(self, settings: Settings, actor: int, incarnation: int, shard: Shard, stop: StopSign) -> None:
        self.collector = build_collector(settings, actor, incarnation, DirectChunkWriter(shard))
        self._stop = stop

    def greet(self) -> str:
        """Return the empty name of a node: there is only this one."""
        return ""

    def collect(self, steps: int, weights: PublishedWeights | None) -> CollectReport:
        """Adopt the weights if they are newer, and collect exactly these steps, or fewer once a stop is asked for."""
        if weights and weights.version > self.collector.version:
            self.collector.adopt(weights.version, weights.handle)
        return self.collector.collect(steps, self._stop)


class InlineEvaluator:
    """What an `ActorProcess` that only evaluates is on Ray."""

    def __init__(self, settings: Settings, stop: StopSign) -> None:
        self._settings = settings
        self._stop = stop

    def greet(self) -> str:
        """Return the empty name of a node: there is only this one."""
        return ""

    def evaluate(self, weights: PublishedWeights) -> EvaluationReport:
        """Play the evaluation's episodes with these weights.

        Raises:
            EvaluationStoppedError: once a stop is asked for.
        """
        if self._stop.asked():
            raise EvaluationStoppedError
        return evaluate_weights(self._settings, weights.version, weights.handle, is_stopping=self._stop.asked)


class InlineFuture:
    """An order that is carried out when somebody waits for it.

    Attributes:
        worker: whose it is.
        was_dropped: whether it was left, since a stop was asked for: there is no answer.
    """

    def __init__(self, worker: Worker, work: Callable[[], Any]) -> None:
        self.worker = worker
        self.was_dropped = False
        self._work = work
        self._answer: Any = None
        self._error: WorkerFailedError | None = None

    def run(self) -> InlineFuture:
        """Carry the order out."""
        try:
            self._answer = self._work()
        except EvaluationStoppedError:
            self.was_dropped = True
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
        stop: looked at between any two steps, since orders cannot be left otherwise.

    Raises:
        UserError: if the replay finds its directory at fault.
    """

    counters_every_s = 0.0
    workers_can_hang = False

    def __init__(self, settings: Settings, spaces: Spaces, run: RunDirectory, stop: StopSign | None = None) -> None:
        self._settings = settings
        self._stop = NeverStop() if stop is None else stop
        self._spaces = spaces
        self._run = run
        self._process = ExitStack()
        experience, read_only = run.experience(settings)
        self.replay = open_shards(
            experience,
            StepFormat(spaces),
            settings.replay,
            settings.learner.sequence_length,
            settings.seed,
            read_only,
            LOCK_WAIT_S,
        )
        self._process.enter_context(process_kept())
        self._actors: dict[Worker, InlineActor] = {}
        self._learner: Learner | None = None
        self._threads = torch_threads()
        self._orders: deque[InlineFuture] = deque()

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Make an actor when its first order is carried out, so that a failing environment fails there."""
        return Worker(f"actor {actor}", (actor, incarnation))

    def start_evaluator(self) -> Worker:
        """Make the evaluator."""
        return Worker("evaluator", InlineEvaluator(self._settings, self._stop))

    def start_inference(self) -> Worker:
        """Refuse: actors act by themselves here, with the same networks in the same process."""
        raise NotImplementedError("inline, actors act by themselves")

    def start_learner(self) -> Worker:
        """Make the learner."""
        with own_torch_state():
            self._learner = Learner(
                self._settings, self._spaces, self.replay, self._run.path, prefetch=False, set_to=self._threads
            )
        return Worker("learner", self._learner)

    def stop(self, worker: Worker) -> None:
        """Forget a worker and its orders."""
        self._orders = deque(order for order in self._orders if order.worker is not worker)
        actor = self._actors.pop(worker, None)
        if actor:
            actor.collector.close()

    def finish_early(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        worker.target.finish_early()

    def interrupt(self) -> None:
        """Have the learner end the order that it is at after the update being made; actors look at the stop sign."""
        if self._learner:
            self._learner.finish_early()

    def give(self, worker: Worker, method: str, *arguments: Any) -> InlineFuture:
        """Take an order, to be carried out when it is waited for."""
        self._orders.append(InlineFuture(worker, lambda: self._carry_out(worker, method, *arguments)))
        return self._orders[-1]

    def wait(self, timeout_s: float) -> list[InlineFuture]:
        """Carry out the oldest order and return it."""
        if not self._orders:
            time.sleep(timeout_s)
        while self._orders:
            future = self._orders.popleft().run()
            if not future.was_dropped:
                return [future]
        return []

    def running(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return none: greetings are answered here when their turn comes."""
        del workers
        return []

    def replay_changes(self) -> list[ReplayChange]:
        """Return none: the replay lives and dies with this process."""
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

    def expect_answers(self, within_s: float) -> None:
        """Do nothing: everything is done in turn, in this process."""

    def fault(self) -> str:
        """Return nothing: there is nobody else to lose."""
        return ""

    def publish(self, version: int, flat: np.ndarray) -> PublishedWeights:
        """Return the weights themselves."""
        return PublishedWeights(version, flat)

    def close(self) -> None:
        """Close environments and replay, and leave the process as it was found."""
        for worker in list(self._actors):
            self.stop(worker)
        self.replay.close()
        self._process.close()
        torch.set_num_threads(self._threads.number)

    def _carry_out(self, worker: Worker, method: str, *arguments: Any) -> Any:
        if isinstance(worker.target, Learner):
            with own_torch_state():  # whatever environments have set for themselves
                return getattr(worker.target, method)(*arguments)
        if isinstance(worker.target, InlineEvaluator):
            return getattr(worker.target, method)(*arguments)
        if self._stop.asked():  # no simulator is started any more, to be closed at once
            return CollectReport(0) if method == "collect" else ""
        return getattr(self._actor(worker), method)(*arguments)

    def _actor(self, worker: Worker) -> InlineActor:
        if worker not in self._actors:
            actor, incarnation = worker.target
            shard = self.replay.shards[shard_of(actor, self.replay.alive)]
            self._actors[worker] = InlineActor(self._settings, actor, incarnation, shard, self._stop)
            self._stop.hold()  # an environment may have put the signals aside as it was made
        return self._actors[worker]
