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
from dreamfleet.learner.learner import Learner, TrainReport
from dreamfleet.learner.pictures.pictures import Pictures
from dreamfleet.learner.publishing_learner import PublishingLearner, Restored
from dreamfleet.replay.ray_replay import RayReplay
from dreamfleet.replay.sharded import ShardedReplay


@ray.remote(concurrency_groups={"health": 1})  # type: ignore[call-overload]  # missing in Ray's overloads
class LearnerProcess:
    """A `PublishingLearner` in a process of its own, whose weights go to Ray's object store.

    Args:
        settings: the run's.
        spaces: of its environment, as `Spaces.to_json` gives them.
        replay: handles of the processes of the replay's shards, in order.
        run_directory: path of the run.
        busy_cores: cores of this machine that actors keep busy.
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
        self._life = (settings, Spaces.from_json(spaces), shards, Path(run_directory), True, busy_cores, set_to)
        self._built: PublishingLearner | None = None

    @property
    def _learner(self) -> PublishingLearner:
        """Built at the first order: an error in an actor's constructor would come with pages of Ray's own."""
        if self._built is None:
            learner = Learner(*self._life)
            self._built = PublishingLearner(learner, self._life[0].learner.publish_every, ray.put)
        return self._built

    def restore(self) -> Restored:
        """Go on from the newest checkpoint, if any."""
        restored = self._learner.restore()
        return restored._replace(decisions=[*restored.decisions, *(text for _, text in self._log.take())])

    def train(self, updates: int) -> TrainReport:
        """Make so many updates; the report holds the weights if a new version was due."""
        return dataclasses.replace(self._learner.train(updates), log_records=self._log.take())

    def save(self, facts: dict[str, Any]) -> tuple[dict[str, Any], PublishedWeights]:
        """Write a checkpoint; return its facts and its weights."""
        return self._learner.save(facts)

    def record_evaluation(self, updates: int, found: dict[str, Any]) -> bool:
        """Add what an evaluation found to a checkpoint's facts; False if it is gone."""
        return self._learner.record_evaluation(updates, found)

    def finish(self) -> list[LogRecord]:
        """Wait for the copy of the last checkpoint, and return what this process logged since its last train order."""
        self._learner.finish()
        return self._log.take()

    def draw_pictures(self) -> Pictures | None:
        """Return pictures of what the model sees and predicts, or None while there is no sequence for them."""
        return self._learner.draw_pictures()

    @ray.method(concurrency_group="health")
    def finish_early(self) -> None:
        """End train orders after the update being made."""
        if self._built:
            self._built.finish_early()

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """Return the process's id, also while it trains."""
        return os.getpid()
