"""The learner's process on Ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.process_log import LogRecord, WorkerLog
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.hardware import TorchThreads
from dreamfleet.learner.learner import Learner, Restored, TrainReport
from dreamfleet.learner.pictures.comparison import Pictures
from dreamfleet.replay.ray_replay import RayReplay
from dreamfleet.replay.sharded import ShardedReplay


@ray.remote(concurrency_groups={"health": 1})  # type: ignore[call-overload]  # missing in Ray's overloads
class LearnerProcess:
    """A `Learner` in a process of its own, whose weights go to Ray's object store; its orders are the learner's.

    Args:
        spaces: as `Spaces.to_json` gives them.
        replay: handles of the processes of the replay's shards, in order.
        set_to: the threads that torch was set to, where the run was started.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: dict[str, Any],
        replay: Sequence[Any],
        run_directory: str,
        busy_cores: int = 0,
        set_to: TorchThreads | None = None,
    ) -> None:
        self._log = WorkerLog.install()
        shards = ShardedReplay([RayReplay(server) for server in replay], settings.seed, "learner: replay")
        directory = Path(run_directory)
        self._arguments = (settings, Spaces.from_json(spaces), shards, directory, True, busy_cores, set_to, ray.put)
        self._built: Learner | None = None

    @property
    def _learner(self) -> Learner:
        """Built at the first order: an error in an actor's constructor would come with pages of Ray's own."""
        if self._built is None:
            self._built = Learner(*self._arguments)
        return self._built

    def restore(self) -> Restored:
        """See `Learner.restore`; what was logged meanwhile is among the decisions."""
        restored = self._learner.restore()
        return restored._replace(decisions=[*restored.decisions, *(text for _, text in self._log.take())])

    def train(self, updates: int) -> TrainReport:
        """See `Learner.train`."""
        return dataclasses.replace(self._learner.train(updates), log_records=self._log.take())

    def save(self, facts: dict[str, Any]) -> tuple[dict[str, Any], PublishedWeights]:
        """See `Learner.save`."""
        return self._learner.save(facts)

    def record_evaluation(self, updates: int, found: dict[str, Any]) -> bool:
        """See `Learner.record_evaluation`."""
        return self._learner.record_evaluation(updates, found)

    def draw_pictures(self) -> Pictures | None:
        """See `Learner.draw_pictures`."""
        return self._learner.draw_pictures()

    def finish(self) -> list[LogRecord]:
        """See `Learner.finish`; return what this process logged since its last train order."""
        self._learner.finish()
        return self._log.take()

    @ray.method(concurrency_group="health")
    def finish_early(self) -> None:
        """See `Learner.finish_early`; answered while it trains."""
        if self._built:
            self._built.finish_early()

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """Return the process's id, also while it trains."""
        return os.getpid()
