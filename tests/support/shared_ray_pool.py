"""The Ray pool on the tests' own Ray, and an attendant that checks a run, keeps accounts and injects faults."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from checking_learner import CheckingLearner
from patience import PATIENCE_S

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers import ray_pool
from dreamfleet.deploy.workers.learner_ranks import LearnerRanks
from dreamfleet.deploy.workers.pool import Worker

STEPS_AFTER_PLOT = 301


class Unscheduled:
    """A remote class whose actors take no logical CPU, of which the session's Ray has two."""

    def __init__(self, remote_class: Any) -> None:
        self._remote_class = remote_class

    def options(self, **options: Any) -> Any:
        return self._remote_class.options(**(options | {"num_cpus": 0}))


class SharedRayPool(ray_pool.RayPool):
    """The pool but for what `share_ray` changes; it keeps which worker is which incarnation of which actor."""

    def __init__(self, settings: Settings, path: Path) -> None:
        run = RunDirectory(path)
        run.create()
        super().__init__(settings, probe_environment(settings.env), run)
        self.incarnations: dict[Worker, tuple[int, int]] = {}
        self._workers: list[Worker] = []

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        worker = super().start_actor(actor, incarnation)
        self.incarnations[worker] = (actor, incarnation)
        self._workers.append(worker)
        return worker

    def start_inference(self) -> Worker:
        worker = super().start_inference()
        self._workers.append(worker)
        return worker

    def start_learner(self) -> Worker:
        worker = super().start_learner()
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        super().close()
        for worker in self._workers:
            self.stop(worker)

    def kill_process(self, worker: Worker) -> None:
        """SIGKILL a worker's process."""
        handles = worker.target.handles if isinstance(worker.target, LearnerRanks) else [worker.target]
        for handle in handles:
            os.kill(ray.get(handle.ping.remote(), timeout=PATIENCE_S), signal.SIGKILL)

    def kill_replay(self) -> None:
        """SIGKILL the replay server's process."""
        os.kill(ray.get(self._servers[0].health.remote(), timeout=PATIENCE_S), signal.SIGKILL)


def share_ray(monkeypatch: Any) -> None:
    """Let pools use the Ray that is running, leave it running, take none of its CPUs, and train nothing but check."""
    monkeypatch.setattr(ray_pool, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray_pool.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_pool, "ActorProcess", Unscheduled(ray_pool.ActorProcess))
    monkeypatch.setattr(ray_pool, "LearnerProcess", Unscheduled(CheckingLearner))


Plot = Callable[[FleetState, "Attendant"], Iterator[None]]


class Attendant(Callbacks):
    """Asserts at every order what the service promises of its counters, and lets a plot unfold, a bit at every turn.

    The run goes on until the plot has come to its end, however slow the machine, and then collects some steps more.

    Attributes:
        ahead: for every turn with a learner, the environment steps and the updates allowed and not made yet.
        acknowledged: steps that collect orders reported, by (actor, incarnation).
        restored_from: updates at which each learner began; `saved_at`, at which checkpoints were written.
        last_facts: of the newest checkpoint.

    Args:
        pool: the fleet's.
        plot: given the fleet and the attendant, yields until its next moment has come, and injects its faults.
    """

    def __init__(
        self, pool: SharedRayPool, plot: Callable[[FleetState, Attendant], Iterator[None]] | None = None
    ) -> None:
        self.acknowledged: Counter[tuple[int, int]] = Counter()
        self.restored_from: list[int] = []
        self.saved_at: list[int] = []
        self.last_facts: dict[str, Any] = {}
        self.ahead: list[tuple[int, int]] = []
        self._pool, self._plot = pool, plot
        self._unfolding: Iterator[None] | None = None
        self._most_steps = 0

    def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
        self.restored_from.append(fleet.ledger.updates)

    def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
        assert slot.worker
        self.acknowledged[self._pool.incarnations[slot.worker]] += report.steps

    def on_updates(self, fleet: FleetState, report: Any) -> None:
        assert fleet.ledger.updates <= fleet.ledger.ratio.updates_allowed(self._pool.replay.counters().total_steps), (
            "the ratio is exceeded"
        )

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        self.saved_at.append(facts["updates"])
        self.last_facts = facts

    def on_turn(self, fleet: FleetState) -> None:
        assert fleet.ledger.env_steps >= self._most_steps, "acknowledged steps are gone"
        self._most_steps = fleet.ledger.env_steps
        if self.restored_from:
            self.ahead.append((fleet.ledger.env_steps, fleet.ledger.updates_allowed - fleet.ledger.updates))
        if self._plot:
            self._unfolding = self._unfolding or self._plot(fleet, self)
            try:
                next(self._unfolding)
            except StopIteration:
                self._plot = None
                fleet.ledger.ratio = dataclasses.replace(
                    fleet.ledger.ratio, env_steps=fleet.ledger.env_steps + STEPS_AFTER_PLOT
                )

    def incarnations_of(self, actor: int) -> list[int]:
        """Return the incarnations of an actor that have had steps acknowledged, oldest first."""
        return sorted(incarnation for number, incarnation in self.acknowledged if number == actor)
