"""The learner as the fleet loop orders it about, with Ray or without."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.learner.learner import Learner, TrainReport
from dreamfleet.learner.pictures.pictures import Pictures


class Restored(NamedTuple):
    """A learner that is ready: its updates so far, its published weights, and a sentence for each automatic choice."""

    updates: int
    published: PublishedWeights
    decisions: list[str]


class PublishingLearner:
    """A learner as the fleet loop orders it about: it publishes its weights as it goes.

    Args:
        learner: what does the work.
        every: updates between two published versions; the first is published at the start.
        put: where the flat weights go; it returns what stands for them, such as an object reference.
    """

    def __init__(self, learner: Learner, every: int, put: Callable[[np.ndarray], Any]) -> None:
        self._learner = learner
        self._every = every
        self._put = put
        self._published: PublishedWeights | None = None  # kept here: an object lives as long as its owner holds it

    def restore(self) -> Restored:
        """Go on from the newest checkpoint, if any."""
        self._learner.restore()
        return Restored(self._learner.updates, self.publish(), list(self._learner.decisions))

    def train(self, updates: int) -> TrainReport:
        """Make so many updates; the report holds the weights if a new version was due within the order."""
        before = self._learner.updates
        report = self._learner.train(updates)
        due = report.updates // self._every > before // self._every or not self._published
        begun = time.perf_counter()
        published = self.publish() if due else None
        timings = {**report.timings, "publish": time.perf_counter() - begun}
        return dataclasses.replace(report, timings=timings, published=published)

    def finish_early(self) -> None:
        """End train orders after the update being made: those under way and all that follow."""
        self._learner.finish_early()

    def publish(self) -> PublishedWeights:
        """Publish the weights as they are now."""
        version, flat = self._learner.weights()
        self._published = PublishedWeights(version, self._put(flat))
        return self._published

    def save(self, facts: dict[str, Any]) -> tuple[dict[str, Any], PublishedWeights]:
        """Write a checkpoint; return its facts, and its weights, for whoever is to evaluate it."""
        return self._learner.save(facts), self.publish()

    def record_evaluation(self, updates: int, found: dict[str, Any]) -> bool:
        """Add what an evaluation found to a checkpoint's facts; False if it is gone."""
        return self._learner.record_evaluation(updates, found)

    def finish(self) -> None:
        """See `Learner.finish`."""
        self._learner.finish()

    def draw_pictures(self) -> Pictures | None:
        """Return pictures of what the model sees and predicts, or None while there is no sequence for them."""
        return self._learner.draw_pictures()
