"""The last rounds of K environments: the arrays that their steps are written into and that chunks are cut from."""

from __future__ import annotations

import numpy as np

from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat

_FLAGS = ("is_first", "is_last", "is_terminal")
_LASTING = ("episode", "version")


class Round:
    """One step of each of K environments, as views of the arrays that hold it.

    Attributes:
        observations: by name, (K, *shape).
        each: for each environment its observations alone: their names and arrays (*shape).
        reward: (K,); likewise `action` (K, *stored_shape), `is_first`, `is_last` and `is_terminal`.
    """

    def __init__(self, arrays: dict[str, np.ndarray], row: int, shown: list[str]) -> None:
        fields = {name: array[row] for name, array in arrays.items()}
        self.observations = {name: fields[name] for name in shown}
        self.each = [
            [(name, array[k, ...]) for name, array in self.observations.items()] for k in range(len(fields["reward"]))
        ]
        self.action, self.reward = fields["action"], fields["reward"]
        self.is_first, self.is_last, self.is_terminal = (fields[name] for name in _FLAGS)


class Rounds:
    """Room for `CHUNK_STEPS` rounds; a round is one step of each of K environments.

    What a step shows is written once, into the arrays of its round: the policy looks at these, and chunks are cut out
    of them. A cheap environment steps in microseconds, so a round costs as little as can be: its views are made once
    for all, flags are False until they are set, and the numbers of episode and version hold for all rounds to come.

    Args:
        step_format: the arrays of a step.
        count: K.

    Attributes:
        arrays: every field of the format by name, (CHUNK_STEPS, K, *shape).
        row: number of the current round in them, -1 before the first.
        current: the current round.
    """

    def __init__(self, step_format: StepFormat, count: int) -> None:
        self.arrays = {
            field.name: np.zeros((CHUNK_STEPS, count, *field.shape), field.dtype) for field in step_format.fields
        }
        shown = [spec.name for spec in step_format.spaces.observations]
        self._rounds = [Round(self.arrays, row, shown) for row in range(CHUNK_STEPS)]
        self.row = -1
        self.current = self._rounds[-1]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another round."""
        return self.row == CHUNK_STEPS - 1

    def advance(self) -> Round:
        """Begin the next round, in place of the oldest if there is no room, and return it."""
        if self.row == CHUNK_STEPS - 1:
            self.restart()
        self.row += 1
        self.current = self._rounds[self.row]
        return self.current

    def take_back(self) -> None:
        """Forget the current round, which was not finished; the one before it is the current one again."""
        self.row -= 1
        self.current = self._rounds[self.row]

    def set_from_here(self, name: str, number: int, k: int | slice = slice(None)) -> None:
        """Set the number of an environment's episode, or of all environments' version, from this round on."""
        self.arrays[name][self.row :, k] = number

    def restart(self, keep: bool = False) -> None:
        """Make room: forget all rounds, or all but the current one."""
        for name in _LASTING:
            self.arrays[name][:] = self.arrays[name][self.row]
        if keep:
            for array in self.arrays.values():
                array[0] = array[self.row]
        for name in _FLAGS:
            self.arrays[name][int(keep) :] = False
        self.row = int(keep) - 1
        self.current = self._rounds[self.row]
