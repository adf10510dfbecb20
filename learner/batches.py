"""Training batches: fetched ahead of the updates that train on them, how old they are, and what a bad one leaves."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import ExperienceReplay, NotEnoughExperienceError

CHANCE = -1
"""Version of an action that no weights chose."""
_NEVER_READ = ("episode", "version")
"""Fields that no loss reads: they do not travel to the device."""
T = TypeVar("T")


class TrainingBatches:
    """The batches of updates by their numbers, in this process's memory, pinned if they are to go to a GPU.

    Args:
        ahead: whether they are fetched ahead, in threads; else when they are asked for.
    """

    def __init__(
        self,
        replay: ExperienceReplay,
        step_format: StepFormat,
        settings: LearnerSettings,
        device: torch.device,
        ahead: bool,
    ) -> None:
        self._replay = replay
        self._format = step_format
        self._settings = settings
        self._is_pinned = device.type == "cuda"
        self._is_ahead = ahead
        self._prefetcher: Prefetcher[dict[str, Tensor]] | None = None

    def take(self, number: int) -> dict[str, Tensor]:
        """Return the batch of an update; the next call must be for the number after it, unless this raises."""
        if not self._is_ahead:
            return self.fetch(number)
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(
                self.fetch, self._settings.prefetch, number, not_yet=(NotEnoughExperienceError,)
            )
        return self._prefetcher.next()

    def fetch(self, number: int) -> dict[str, Tensor]:
        """Return the batch of an update, in the caller's thread."""
        arrays = decompress(self._replay.sample(number, self._settings.batch_size), self._format)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self._is_pinned else tensors

    def close(self) -> None:
        """End the threads; the next batch that is taken may have any number, and starts new ones."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None


class Prefetcher(Generic[T]):
    """Fetches batches ahead in threads of its own, and returns them in the order of their numbers.

    Which batch has which number does not depend on the threads: a run with them equals one without.

    Args:
        fetch: returns the batch of a number; called from several threads at once.
        depth: most batches that are fetched and not yet taken.
        workers: threads; two, so that one batch travels while the other is decompressed.
        not_yet: errors that pass by themselves, such as a replay that is still empty: the fetch is tried again.
        patience_s: for how long it is tried again before such an error is raised.
        retry_s: pause between two tries.
    """

    def __init__(
        self,
        fetch: Callable[[int], T],
        depth: int,
        first_number: int,
        workers: int = 2,
        not_yet: tuple[type[Exception], ...] = (),
        patience_s: float = 60.0,
        retry_s: float = 0.2,
    ) -> None:
        self._fetch = fetch
        self._depth = depth
        self._not_yet = not_yet
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._to_fetch = first_number
        self._to_take = first_number
        self._failed: list[int] = []
        self._done: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True)
            for number in range(min(workers, depth))
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> T:
        """Return the next batch, waiting for it if need be.

        Raises:
            Exception: what the fetch of this batch raised; the same number is fetched again for the next call.
            RuntimeError: if the prefetcher is closed, also while this waits.
        """
        with self._changed:
            number = self._to_take
            self._changed.wait_for(lambda: number in self._done or number in self._errors or self._closed.is_set())
            if self._closed.is_set():
                raise RuntimeError("the prefetcher is closed")
            if number in self._errors:
                self._failed.append(number)
                self._changed.notify_all()
                raise self._errors.pop(number)
            self._to_take += 1
            self._changed.notify_all()
            return self._done.pop(number)

    def close(self) -> None:
        """End the threads; one that is in the middle of a fetch ends after it and is not waited for beyond a second."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            self._done.clear()
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (number := self._claim()) is not None:
            try:
                batch = self._fetch_patiently(number)
            except BaseException as error:  # noqa: BLE001 (it is raised where the batch is wanted)
                with self._changed:
                    self._errors[number] = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._done[number] = batch
                    self._changed.notify_all()
                del batch  # or this thread would hold on to it until its next one

    def _claim(self) -> int | None:
        """Wait until a batch is wanted and return its number, or None once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed.is_set() or self._failed or self._to_fetch < self._to_take + self._depth
            )
            if self._closed.is_set():
                return None
            if self._failed:
                return self._failed.pop()
            self._to_fetch += 1
            return self._to_fetch - 1

    def _fetch_patiently(self, number: int) -> T:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._fetch(number)
            except self._not_yet:
                if time.monotonic() >= deadline or self._closed.wait(self._retry_s):
                    raise


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
    update: int, metrics: Sequence[str], batch: Mapping[str, np.ndarray], directory: Path
) -> NotFiniteLossError:
    """Save the batch of an update that was not made as bad_batch-<update>.npz, and return the error to raise.

    Args:
        metrics: names of those that are not finite.
    """
    file = directory / f"bad_batch-{update}.npz"
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
