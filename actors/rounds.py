"""The last rounds of K environments: the arrays that their steps are written into and that chunks are cut from."""

from __future__ import annotations

import numpy as np

from dreamfleet.common.steps import CHUNK_STEPS, StepFormat

_FLAGS = ("is_first", "is_last", "is_terminal")
_LASTING = ("episode", "version")


class Rounds:
    """Room for `CHUNK_STEPS` rounds; a round is one step of each of K environments.

    What a step shows is written once, into the row of the current round: the policy looks at that row, and chunks are
    cut out of the rows. A cheap environment steps in microseconds, so a row costs as few writes as can be: flags are
    False until they are set, and the numbers of episode and version hold for all rows to come.

    Args:
        step_format: the arrays of a step.
        count: K.

    Attributes:
        arrays: every field of the format by name, (CHUNK_STEPS, K, *shape).
        row: number of the current round's row, -1 before the first.
        observations: the current round's observations by name (K, *shape), views into `arrays`.
        is_first: whether they begin an episode (K,), likewise.
    """

    def __init__(self, step_format: StepFormat, count: int) -> None:
        self.arrays = {
            field.name: np.zeros((CHUNK_STEPS, count, *field.shape), field.dtype) for field in step_format.fields
        }
        self.row = -1
        self._shown = [(spec.name, self.arrays[spec.name]) for spec in step_format.spaces.observations]
        self._firsts = self.arrays["is_first"]
        self.observations = {name: array[0] for name, array in self._shown}
        self.is_first = self._firsts[0]

    @property
    def is_full(self) -> bool:
        """Whether the next round begins again with the first row."""
        return self.row == CHUNK_STEPS - 1

    def advance(self) -> None:
        """Begin the next round: its row becomes the current one."""
        if self.is_full:
            self.restart()
        row = self.row = self.row + 1
        self.observations = {name: array[row] for name, array in self._shown}
        self.is_first = self._firsts[row]

    def current(self, name: str) -> np.ndarray:
        """Return a field of the current round (K, *shape), a view."""
        return self.arrays[name][self.row]

    def set_from_here(self, name: str, number: int, k: int | slice = slice(None)) -> None:
        """Set an environment's number of its episode or version, or all environments', from this round on."""
        self.arrays[name][self.row :, k] = number

    def restart(self, keep: bool = False) -> None:
        """Go back to the first row: the current round moves there if it is kept, else the next one will begin there."""
        for name in _LASTING:
            self.arrays[name][:] = self.current(name)
        if keep:
            for array in self.arrays.values():
                array[0] = array[self.row]
        for name in _FLAGS:
            self.arrays[name][int(keep) :] = False
        self.row = -1
        if keep:
            self.advance()
