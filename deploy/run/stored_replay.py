"""The experience of a run or dataset as numpy arrays: whole episodes, or sequences as they are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.shards import open_shards, shard_directories


class StoredReplay:
    """The experience of a run, a dataset or a replay directory; a run may be writing it meanwhile.

    Every step has the observation's entries, "action" (taken after it), "reward" (received on arriving at it),
    "is_first", "is_last", "is_terminal" and "version" (of the weights that acted): see `common/experience/steps.py`.

    Attributes:
        step_format: names, shapes and types of the fields of a step.

    Raises:
        UserError: if the directory holds no replay.
    """

    def __init__(self, directory: str | Path) -> None:
        run, self._settings = RunDirectory(Path(directory)), ReplaySettings()
        if run.config_file.is_file():
            settings = run.settings()
            self._directory, self._settings = run.experience(settings)[0], settings.replay
        else:
            self._directory = run.replay if run.replay.is_dir() else run.path
        if not shard_directories(self._directory):
            raise UserError(f"{directory} holds no replay: there is no file 'segment-*.dfl' in it or its shards.")
        with self._streams() as streams:
            self.step_format: StepFormat = streams.step_format

    def episodes(self, whole: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Yield episodes, each field as (T, …), one in memory at a time.

        Args:
            whole: leave out those without their first or last step: under way, interrupted, or dropped in part.
        """
        with self._streams() as streams:
            for episode in streams.episodes():
                arrays = dict(episode.arrays)
                if not whole or (arrays["is_first"][0] and arrays["is_last"][-1]):
                    yield arrays

    def sequences(self, count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return sequences drawn as for training, each field as (count, length, …); `is_first` marks new episodes.

        By the run's settings, where there is a run: what it holds out is not among them. Each call opens the replay.

        Raises:
            UserError: if no sequence is that long, or count or length is less than 1.
        """
        if count < 1 or length < 1:
            raise UserError(f"sequences({count}, {length}): count and length are whole numbers from 1 on.")
        replay = open_shards(self._directory, self.step_format, self._settings, length, seed, read_only=True)
        try:
            return decompress(replay.sample(0, count), self.step_format)
        except NotEnoughExperienceError as error:
            raise UserError(f"{self._directory}: {error}") from None
        finally:
            replay.close()

    def _streams(self) -> StoredStreams:
        return StoredStreams(shard_directories(self._directory))
