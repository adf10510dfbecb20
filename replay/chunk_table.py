"""The chunk table: one small row of numbers for each stored chunk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_ROW = np.dtype(
    [
        ("stream", np.int32), ("sequence", np.int64), ("first_step", np.int64), ("steps", np.int16),
        ("first_mask", np.uint64), ("held_out", np.uint64), ("valid", np.uint64), ("segment", np.int32),
        ("offset", np.int64), ("front_bytes", np.int32), ("oldest_version", np.int32), ("newest_version", np.int32),
        ("listed", np.bool_),
    ]
)  # fmt: skip


class Row(NamedTuple):
    """What the index keeps of a chunk.

    Attributes:
        stream: number of its stream in the index.
        sequence: its place in the stream.
        first_step: number of its first step in the stream.
        steps: how many it holds; 0 once the chunk is gone.
        first_mask: bit t is `is_first` of step t.
        held_out: bit t tells whether step t is held out; those that are lie at the chunk's beginning or at its end.
        valid: bit t tells whether a training sequence may start at step t.
        segment: number of the segment it lies in.
        offset: where its record begins there.
        front_bytes: bytes of its prefix, header and first block.
        oldest_version: of the weights that chose its actions; likewise `newest_version`.
        newest_version: see `oldest_version`.
        listed: whether it has an entry in the order that is drawn from.
    """

    stream: int
    sequence: int
    first_step: int
    steps: int
    first_mask: int
    held_out: int
    valid: int
    segment: int
    offset: int
    front_bytes: int
    oldest_version: int
    newest_version: int
    listed: bool

    @property
    def trained_on(self) -> tuple[int, int]:
        """The first of its steps that are not held out, and the end of these; (0, 0) if all are."""
        if not self.held_out:
            return 0, self.steps
        mask = (1 << self.steps) - 1 ^ self.held_out
        return max(0, (mask & -mask).bit_length() - 1), mask.bit_length()


class ChunkTable:
    """Rows under ids that count up and are never used again; the lowest ids can be dropped.

    Attributes:
        base: the lowest id that is still held.
        stop: the id that the next row will get.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(1024, _ROW)
        self.base = 0
        self.stop = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return self._rows.nbytes

    def add(self, row: Row) -> int:
        """Append a row and return its id."""
        if self.stop - self.base == len(self._rows):
            grown = np.zeros(2 * len(self._rows), _ROW)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[self.stop - self.base] = row
        self.stop += 1
        return self.stop - 1

    def __getitem__(self, number: int) -> Row:
        return Row._make(self._rows[number - self.base].item())

    def set(self, number: int, column: str, value: int) -> None:
        """Change one value of a row."""
        self._rows[column][number - self.base] = value

    def column(self, name: str) -> np.ndarray:
        """Return one value of all rows, from `base` to `stop`; a view."""
        return self._rows[name][: self.stop - self.base]

    def drop_before(self, number: int) -> None:
        """Forget all rows with lower ids, and give memory back when much of it has become free."""
        kept = self._rows[number - self.base : self.stop - self.base]
        size = max(1024, 1 << (2 * len(kept)).bit_length() - 1) if 4 * len(kept) < len(self._rows) else len(self._rows)
        rows = np.zeros(size, _ROW)
        rows[: len(kept)] = kept
        self._rows, self.base = rows, number
