"""A learner that learns nothing: it checks every sequence it is given, and ends the run at the first fault."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from counted_streams import faults_of_batch, steps_of

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.hardware import TorchThreads
from dreamfleet.learner.reports import Restored, TrainReport, WeightsOutbox
from dreamfleet.learner.saving import SavedCheckpoint
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.ray_replay import RayReplay
from dreamfleet.replay.sharded import ShardedReplay

UPDATE_S = 0.005
HELD_OUT_STEPS = 5


class BadSequenceError(RunFailedError):
    """A sequence was sampled that the promises of the service exclude."""


@ray.remote(concurrency_groups={"health": 1, "weights": 1})
class CheckingLearner:
    """Stands where `LearnerProcess` stands, on streams of `faulty_environment:make`.

    Its weights are one number, or where the settings have a learned policy those of an agent that has learnt nothing.

    Args:
        settings: the run's.
        spaces: of its environment, as `Spaces.to_json` gives them.
        replay: handles of the processes of the replay's shards, in order.
        run_directory: path of the run; the checkpoint lies in it.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: dict[str, Any],
        replay: Sequence[Any],
        run_directory: str,
        busy_cores: int = 0,
        set_to: TorchThreads | None = None,
        seat: object = None,
    ) -> None:
        del busy_cores, set_to, seat
        self._settings = settings
        self._replay = ShardedReplay([RayReplay(server) for server in replay], settings.seed)
        self._format = StepFormat(Spaces.from_json(spaces))
        self._checkpoint = Path(run_directory) / "checkpoint.json"
        self._updates = 0
        self._outbox = WeightsOutbox()
        self._trained_on: set[tuple[float, float]] = set()
        self._held_out: set[tuple[float, float]] = set()

    @ray.method(concurrency_group="weights", num_returns=2)
    def weights(self) -> tuple[None, dict[int, np.ndarray]]:
        """Return the flat weights of the next answer."""
        return None, self._outbox.fetch()

    def restore(self) -> Restored:
        """Go on from the checkpoint, if there is one."""
        if self._checkpoint.exists():
            self._updates = json.loads(self._checkpoint.read_text())["updates"]
        return self._outbox.part(lambda: Restored(self._updates, self._publish(), [], None))

    def train(self, updates: int) -> TrainReport:
        """Sample this many batches and check them."""
        return self._outbox.part(lambda: self._train(updates))

    def _train(self, updates: int) -> TrainReport:
        for _ in range(updates):
            self._updates += 1
            self._check(self._updates)
            time.sleep(UPDATE_S)
        return TrainReport(self._updates, {}, {}, published=self._publish())

    def save(self, facts: dict[str, Any]) -> SavedCheckpoint:
        """Write down the number of updates, and of the steps seen of each kind."""
        return self._outbox.part(lambda: self._save(facts))

    def _save(self, facts: dict[str, Any]) -> SavedCheckpoint:
        seen = {"trained_on": len(self._trained_on), "held_out": len(self._held_out)}
        written = {**facts, **seen, "updates": self._updates}
        unfinished = self._checkpoint.with_suffix(".tmp")
        unfinished.write_text(json.dumps(written))
        unfinished.rename(self._checkpoint)
        return SavedCheckpoint(written, self._publish())

    def start_saving(self, facts: dict[str, Any]) -> SavedCheckpoint:
        """Write it at once."""
        return self.save(facts)

    def finish(self) -> list[LogRecord]:
        """There is nothing to wait for."""
        return []

    def draw_pictures(self) -> None:
        """Draw nothing."""

    @ray.method(concurrency_group="health")
    def finish_early(self) -> None:
        """Updates take milliseconds: there is nothing to cut short."""

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def _publish(self) -> PublishedWeights:
        return PublishedWeights(self._updates, self._weights())

    def _weights(self) -> np.ndarray:
        if not self._settings.acts_by_weights:
            return np.array([self._updates], np.float32)
        import torch

        from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten

        torch.manual_seed(0)
        return flatten(AgentNetworks(self._format.spaces, self._settings).acting_parameters())

    def _check(self, number: int) -> None:
        learner, length = self._settings.learner, self._settings.env.kwargs["length"]
        batch = decompress(self._replay.sample(number, learner.batch_size), self._format)
        faults = [] if batch["reward"].shape == (learner.batch_size, learner.sequence_length) else ["the batch's shape"]
        faults += faults_of_batch(batch, length)
        self._trained_on |= steps_of(batch)
        compressed = self._replay.sample_held_out(number, learner.batch_size, HELD_OUT_STEPS)
        if compressed is not None:
            kept = decompress(compressed, self._format)
            faults += faults_of_batch(kept, length)
            self._held_out |= steps_of(kept)
            if kept["is_first"][:, 1:].any():
                faults.append("a held-out sequence runs over the end of its episode")
        if self._trained_on & self._held_out:
            faults.append(f"steps both held out and trained on: {self._trained_on & self._held_out}")
        if faults:
            raise BadSequenceError(f"batch {number}: {'; '.join(dict.fromkeys(faults))}")
