"""The stream of one environment, cut into chunks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch
from dreamfleet.common.experience.chunk import ChunkKey, encode_chunk
from dreamfleet.common.experience.steps import StepFormat


class Stream:
    """Makes chunks of the steps of one environment, and numbers them.

    Args:
        step_format: the arrays of a step.
        environments: the batch that the environment belongs to.
        number: which of the batch it is; also the number of the stream.
        actor: number of the actor; `incarnation` is which of its lives this is.
        incarnation: see `actor`.
    """

    def __init__(
        self, step_format: StepFormat, environments: EnvironmentBatch, number: int, actor: int, incarnation: int
    ) -> None:
        self._format, self._environments, self._number = step_format, environments, number
        self._actor, self._incarnation = actor, incarnation
        self._sequence = 0
        self._first_step = 0

    def cut(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Return the record of its next steps, each array (steps, *shape).

        Raises:
            EnvironmentFailedError: if a vector observation holds a number that is not finite.
        """
        self._check(arrays)
        key = ChunkKey(self._actor, self._incarnation, self._number, self._sequence)
        record = encode_chunk(self._format, key, self._first_step, arrays)
        self._sequence += 1
        self._first_step += len(arrays["reward"])
        return record

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for spec in self._format.spaces.vectors:
            fault = self._environments.bounds.fault(spec.name, arrays[spec.name])
            if fault:
                t, clause = fault
                raise self._environments.failure(
                    self._number,
                    f"its observation '{spec.name}' at step {self._first_step + t} of its stream "
                    f"(episode {arrays['episode'][t]}) {clause}",
                )
