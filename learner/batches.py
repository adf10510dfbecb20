"""Training batches: their memory and their way to the device, how old they are, and what a bad one leaves."""

from __future__ import annotations

import time
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.policy import CHANCE
from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.lane import HiddenWork, Lane, Mark
from dreamfleet.learner.prefetcher import FIRST_THREADS, MOST_THREADS, Prefetcher
from dreamfleet.learner.ranks import ALONE, Ranks
from dreamfleet.replay.batch_reader import BatchReader
from dreamfleet.replay.interface import ExperienceReplay, NotEnoughExperienceError

_NEVER_READ = ("episode", "version")
"""Fields that no loss reads: they do not travel to the device."""


class Batch:
    """A batch, in memory that is used again for another one once it is released.

    Attributes:
        on_host: all fields, (B, T, …); on a GPU in pinned memory.
        on_device: what the losses read; on a CPU the same memory.
    """

    def __init__(self, step_format: StepFormat, size: int, length: int, lane: Lane) -> None:
        fields = {field.name: ((size, length, *field.shape), field.dtype) for field in step_format.fields}
        self.on_host = {name: lane.on_host(*described) for name, described in fields.items()}
        read = {name: tensor for name, tensor in self.on_host.items() if name not in _NEVER_READ}
        self.on_device = {name: lane.on_device(tensor) for name, tensor in read.items()}
        self._lane = lane
        self._marks: tuple[Mark, Mark] = (None, None)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, which share the batch's memory."""
        return {name: tensor.numpy() for name, tensor in self.on_host.items()}

    def upload(self) -> None:
        """Have what the losses read copied to the device."""
        with self._lane.side():
            begun = self._lane.mark()
            for name, tensor in self.on_device.items():
                self._lane.copy(tensor, self.on_host[name])
            self._marks = begun, self._lane.mark()

    def arrive(self) -> dict[str, Tensor]:
        """Return what the losses read, for computations that the device does once it is there."""
        self._lane.follow(self._marks[1])
        return self.on_device

    def upload_s(self) -> float:
        """Return the seconds that the copying took, which is done; 0 in line."""
        return self._lane.seconds_between(*self._marks)


class TrainingBatches:
    """The batches of updates by their numbers, on their way to the device.

    Their memory is a ring: a batch that is released lends its own to a later one. Each is released when the host knows
    that its update is made, so that nothing reads it any more; until then a batch that is not finite can be saved.
    There are as many as are fetched ahead and two more: the one trained on, and the one before it.

    Args:
        ahead: whether they are fetched ahead, in threads; else when they are asked for.
        lane: on which they travel to the device.
        hidden: where the seconds go that they are fetched and travel beside the updates.
        free_cores: of this machine, for threads that fetch where the settings leave their number open.
        ranks: that share an update's batch: each has its part of the sequences, drawn by a number of its own.
    """

    def __init__(
        self,
        replay: ExperienceReplay,
        step_format: StepFormat,
        settings: LearnerSettings,
        ahead: bool,
        lane: Lane,
        hidden: HiddenWork,
        free_cores: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        own_size = settings.batch_size // ranks.count
        self._reader = BatchReader(replay, step_format, own_size, ahead, every=ranks.count)
        self._ranks = ranks
        self._format = step_format
        self._settings = settings
        self._is_ahead = ahead
        self._lane = lane
        self._hidden = hidden
        self._most_threads = settings.prefetch_threads or max(FIRST_THREADS, min(free_cores, MOST_THREADS))
        self._free: deque[Batch] = deque()
        self._prefetcher: Prefetcher[Batch] | None = None

    def take(self, number: int) -> Batch:
        """Return the batch of an update; the next call must be for the number after it, unless this raises."""
        if not self._is_ahead:
            return self.fetch(number)
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(
                self._fetch_beside,
                self._settings.prefetch,
                number,
                self._settings.prefetch_threads or min(FIRST_THREADS, self._settings.prefetch),
                self._most_threads,
                not_yet=(NotEnoughExperienceError,),
            )
        return self._prefetcher.next()

    def fetch(self, number: int) -> Batch:
        """Return the batch of an update, in the caller's thread."""
        try:
            batch = self._free.pop()
        except IndexError:
            size = self._settings.batch_size // self._ranks.count
            batch = Batch(self._format, size, self._settings.sequence_length, self._lane)
        try:
            self._reader.read(number * self._ranks.count + self._ranks.number, out=batch.arrays)
        except BaseException:
            self._free.append(batch)
            raise
        batch.upload()
        return batch

    def release(self, batch: Batch) -> None:
        """Take back a batch that nothing reads any more: its update is known to be made."""
        self._hidden.add("transfer", batch.upload_s())
        self._free.append(batch)

    def close(self) -> None:
        """End the threads; the next batch that is taken may have any number, and starts new ones."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _fetch_beside(self, number: int) -> Batch:
        begun = time.perf_counter()
        batch = self.fetch(number)
        self._hidden.add("fetch", time.perf_counter() - begun)
        return batch


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return what the losses read on the device; pictures travel as bytes."""
    read = {name: tensor for name, tensor in batch.items() if name not in _NEVER_READ}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in read.items()}


def staleness(updates: Sequence[int], versions: Sequence[np.ndarray]) -> dict[str, float]:
    """Return how many updates lay between the weights that chose the replayed actions and the updates that replay them.

    Args:
        updates: made before each batch was trained on.
        versions: of each batch's actions, of any shape: the updates of the weights that chose them, or `CHANCE`.

    Returns:
        `staleness/mean`, `staleness/p50`, `staleness/p90` and `staleness/max` in updates, over all batches' actions
        that weights chose, and left out where there is none; `staleness/by_chance`, the share of the others.
    """
    found = np.concatenate([version.ravel() for version in versions])
    now = np.repeat(np.asarray(updates), [version.size for version in versions])
    chosen = found != CHANCE
    metrics = {"staleness/by_chance": 1.0 - float(np.mean(chosen))}
    if chosen.any():
        ages = (now - found)[chosen]
        middle, late = np.percentile(ages, [50, 90])
        metrics |= {
            "staleness/mean": float(np.mean(ages)),
            "staleness/p50": float(middle),
            "staleness/p90": float(late),
            "staleness/max": float(np.max(ages)),
        }
    return metrics


class NotFiniteLossError(RunFailedError):
    """The loss or its gradient is infinite or not a number; the update was not made."""


def not_finite_loss(
    update: int, metrics: Sequence[str], batch: Mapping[str, np.ndarray], directory: Path, ranks: Ranks = ALONE
) -> NotFiniteLossError:
    """Save the batch of an update that was not made as bad_batch-<update>.npz, and return the error to raise.

    Args:
        metrics: names of those that are not finite.
        ranks: if there are several, the batch is this one's part: -rank<number> is added to the file's name.
    """
    part = "" if ranks.is_alone else f"-rank{ranks.number}"
    file = directory / f"bad_batch-{update}{part}.npz"
    try:
        write_arrays(file, batch)
        saved = f"its batch is in {file}"
    except OSError as error:
        saved = f"its batch could not be saved ({error.strerror or error})"
    poisoned = [name for name, array in batch.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if poisoned:
        hint = f"The environment gave values that are not finite: {', '.join(poisoned)}"
    else:
        hint = "All values of the batch are finite: a smaller learner.learning_rate or learner.clip may help"
    return NotFiniteLossError(f"update {update} was not made: not finite are {', '.join(metrics)}; {saved}. {hint}.")


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of any names as .npz, without pickle; `numpy.savez` takes some names for its own arguments.

    Raises:
        OSError: if it cannot be written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
