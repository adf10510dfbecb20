"""The learner's process on Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray

from dreamfleet.common.notes import NoteTaker
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.learner.learner import Learner, TrainReport
from dreamfleet.learner.pictures import Pictures
from dreamfleet.learner.publishing_learner import PublishingLearner, Restored
from dreamfleet.replay.client import RayReplay


@ray.remote(concurrency_groups={"health": 1})  # type: ignore[call-overload]  # missing in Ray's overloads
class LearnerProcess:
    """A `PublishingLearner` in a process of its own, whose weights go to Ray's object store.

    Args:
        settings: the run's.
        spaces: of its environment, as `Spaces.to_json` gives them.
        replay: handle of the replay's process.
        run_directory: path of the run.
    """

    def __init__(self, settings: Settings, spaces: dict[str, Any], replay: Any, run_directory: str) -> None:
        self._notes = NoteTaker.install()
        self._life = (settings, Spaces.from_json(spaces), RayReplay(replay), Path(run_directory))
        self._built: PublishingLearner | None = None

    @property
    def _learner(self) -> PublishingLearner:
        """Built at the first order: an error in an actor's constructor would come with pages of Ray's own."""
        if self._built is None:
            learner = Learner(*self._life, prefetch=True)
            self._built = PublishingLearner(learner, self._life[0].learner.publish_every, ray.put)
        return self._built

    def restore(self) -> Restored:
        """Go on from the newest checkpoint, if any."""
        restored = self._learner.restore()
        return restored._replace(decisions=[*restored.decisions, *(text for _, text in self._notes.take())])

    def train(self, updates: int) -> tuple[TrainReport, list[tuple[int, Any]]]:
        """Make so many updates; return the report, and the weights if a new version was due."""
        return self._learner.train(updates)

    def save(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Write a checkpoint and return its facts."""
        return self._learner.save(facts)

    def illustrate(self) -> Pictures | None:
        """Return pictures of what the model sees and predicts, or None while there is no sequence for them."""
        return self._learner.illustrate()

    @ray.method(concurrency_group="health")
    def hurry(self) -> None:
        """End train orders after the update being made."""
        if self._built:
            self._built.hurry()

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """Return the process's id, also while it trains."""
        return os.getpid()
