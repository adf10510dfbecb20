"""The stream of one environment, on its way into chunks."""

from __future__ import annotations

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch
from dreamfleet.common.chunk import ChunkKey, encode_chunk
from dreamfleet.common.steps import CHUNK_STEPS, StepFormat


class Stream:
    """Gathers the steps of one environment and cuts them into chunks.

    Args:
        step_format: the arrays of a step.
        environments: the batch that the environment belongs to.
        number: which of the batch it is; also the number of the stream.
        actor: number of the actor; `incarnation` is which of its lives this is.
        incarnation: see `actor`.

    Attributes:
        held: steps gathered since the last cut, 0 to `CHUNK_STEPS`.
    """

    def __init__(
        self, step_format: StepFormat, environments: EnvironmentBatch, number: int, actor: int, incarnation: int
    ) -> None:
        self.held = 0
        self._format, self._environments, self._number = step_format, environments, number
        self._actor, self._incarnation = actor, incarnation
        self._sequence = 0
        self._first_step = 0
        self._arrays = {field.name: np.zeros((CHUNK_STEPS, *field.shape), field.dtype) for field in step_format.fields}
        current = {
            "reward": environments.reward,
            "is_first": environments.is_first,
            "is_last": environments.is_last,
            "is_terminal": environments.is_terminal,
            "episode": environments.episode,
            **environments.observations,
        }
        self._sources = [(self._arrays[name], array) for name, array in current.items()]
        self._action, self._version = self._arrays["action"], self._arrays["version"]

    @property
    def is_full(self) -> bool:
        """Whether it must be cut before it takes another step."""
        return self.held == CHUNK_STEPS

    def append(self, action: np.ndarray | int, version: int) -> None:
        """Take the environment's current step, with the action that was chosen there and the weights that chose it."""
        for array, source in self._sources:
            array[self.held] = source[self._number]
        self._action[self.held] = action
        self._version[self.held] = version
        self.held += 1

    def cut(self) -> bytes:
        """Return the record of the steps gathered, and begin the next chunk.

        Raises:
            EnvironmentFailedError: if a vector observation holds a number that is not finite.
        """
        arrays = {name: array[: self.held] for name, array in self._arrays.items()}
        self._check(arrays)
        key = ChunkKey(self._actor, self._incarnation, self._number, self._sequence)
        record = encode_chunk(self._format, key, self._first_step, arrays)
        self._sequence += 1
        self._first_step += self.held
        self.held = 0
        return record

    def _check(self, arrays: dict[str, np.ndarray]) -> None:
        for spec in self._format.spaces.vectors:
            finite = np.isfinite(arrays[spec.name]).all(axis=1)
            if not finite.all():
                t = int(np.argmin(finite))
                raise self._environments.failure(
                    self._number,
                    f"its observation '{spec.name}' at step {self._first_step + t} of its stream "
                    f"(episode {arrays['episode'][t]}) is not finite: {arrays[spec.name][t]}",
                )
