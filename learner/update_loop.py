"""The loop of updates: takes batches, makes updates, and knows each update one late."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dreamfleet.learner.batches import Batch, TrainingBatches, not_finite_loss, staleness
from dreamfleet.learner.held_out import seed_torch
from dreamfleet.learner.lane import HiddenWork, Lane, Mark
from dreamfleet.learner.ranks import OtherRankError, Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Update, Updater


class MadeUpdate(NamedTuple):
    """An update that was given to the device, the batch that it is made from, and where it begins and ends there."""

    number: int
    batch: Batch
    update: Update
    marks: tuple[Mark, Mark]


class UpdateLoop:
    """Makes updates in the order of their numbers.

    Attributes:
        updates: made so far, by all incarnations of the run's learner.

    Args:
        lane: that tells how long the device is at an update.
        hidden: where that goes.
        seed: the run's.
        directory: where the batch of an update that is not finite is saved.
    """

    def __init__(
        self,
        updater: Updater,
        batches: TrainingBatches,
        lane: Lane,
        hidden: HiddenWork,
        ranks: Ranks,
        seed: int,
        directory: Path,
    ) -> None:
        self._updater = updater
        self._batches = batches
        self._lane = lane
        self._hidden = hidden
        self._ranks = ranks
        self._seed = seed
        self._directory = directory
        self._is_finishing = threading.Event()
        self.updates = 0

    def run(self, updates: int, stopwatch: Stopwatch) -> dict[str, float]:
        """Make a number of updates, or fewer once `finish_early` was called; return the means of their metrics.

        Raises:
            NotFiniteLossError: before an update from a loss or gradient that is not finite; those before it are made.
            OtherRankError: likewise, if it is not by the part of the batch that other ranks have.
        """
        batches: list[tuple[int, np.ndarray]] = []
        made: MadeUpdate | None = None
        sums: Tensor | None = None
        for _ in range(updates):
            if self._is_finishing.is_set():
                break
            before, made = made, self._make_next(stopwatch)
            batches.append((made.number - 1, made.batch.on_host["version"].numpy().copy()))
            sums = made.update.values if sums is None else sums + made.update.values
            if before is not None:  # while the device computes this update, the one before it is known
                self._confirm(before, stopwatch)
        if made is None or sums is None:
            return {}
        self._confirm(made, stopwatch)
        found = zip(made.update.names, self._ranks.mean(sums).tolist(), strict=True)  # all in one transfer
        return {name: value / len(batches) for name, value in found} | self._staleness(batches)

    def finish_early(self) -> None:
        """Make no further update after the one being made; may be called from another thread.

        Several ranks learn of it with an update, one late as of all that is on the device, and end after the same one.
        """
        if self._ranks.is_alone:
            self._is_finishing.set()
        else:
            self._ranks.ask_to_stop()

    def _make_next(self, stopwatch: Stopwatch) -> MadeUpdate:
        """Make the next update, as far as the host knows: whether it was finite is read later."""
        number = self.updates + 1
        with stopwatch("wait"):
            batch = self._batches.take(number)
        with stopwatch("transfer"):
            on_device = batch.arrive()
        own = () if self._ranks.is_alone else (self._ranks.number,)
        seed_torch(self._seed, "update", number, *own)
        begun = self._lane.mark()
        update = self._updater.update(number, on_device, stopwatch)
        self.updates = number
        return MadeUpdate(number, batch, update, (begun, self._lane.mark()))

    def _confirm(self, made: MadeUpdate, stopwatch: Stopwatch) -> None:
        """Read whether an update was finite and whether a rank was asked to stop; release its batch.

        Raises:
            NotFiniteLossError: if it was not; it and the update after it have changed nothing.
            OtherRankError: if it was not, by the part of the batch that other ranks have.
        """
        with stopwatch("confirm"):
            told = made.update.told.read() if made.update.told else None
            is_sound = made.update.sound
        if told and told.is_stopping:
            self._is_finishing.set()
        if is_sound:
            self._hidden.add("device", self._lane.seconds_between(*made.marks))
            self._batches.release(made.batch)
            return
        self.updates = made.number - 1
        self._updater.forget_failure()
        self._batches.close()  # the batch was taken, its update not made: it has to be the next one again
        if told and told.not_finite_on and self._ranks.number not in told.not_finite_on:
            raise OtherRankError(f"update {made.number} is not finite on rank {told.not_finite_on[0]}")
        raise not_finite_loss(made.number, made.update.not_finite, made.batch.arrays, self._directory, self._ranks)

    def _staleness(self, batches: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        """Return the staleness of an order's batches, each with the updates made before it, over all ranks' parts."""
        made, versions = zip(*batches, strict=True)
        found = self._ranks.gather_arrays(np.concatenate([part.ravel() for part in versions]))
        return staleness(made * self._ranks.count, np.split(found, len(made) * self._ranks.count))
