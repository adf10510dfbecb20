"""Slices: the parts of chunks that sequences are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamfleet.replay.chunk_table import ChunkTable


class ChunkSlice(NamedTuple):
    """Steps `start` to `stop` of a chunk, which fill a sequence of a batch from its step `at` on.

    `begins` is True for the first slice of a sequence, and where held-out steps were left out before it: there an
    episode seems to begin. `arrival` is the number of the first of these steps among all that ever came, in the order
    in which they came.
    """

    sequence: int
    at: int
    chunk: int
    start: int
    stop: int
    begins: bool
    arrival: int


Slices = np.ndarray
"""Slices as rows of int64, (P, 7), sequence by sequence; the columns are those of `ChunkSlice`."""


def one_by_one(slices: Slices) -> list[ChunkSlice]:
    """Return slices as tuples."""
    return [ChunkSlice(*row) for row in slices.tolist()]


def cut(table: ChunkTable, starts: np.ndarray, length: int, held_out: bool = False) -> Slices:
    """Return the slices of sequences of `length` steps, all held out or all not, from (chunk, start) on.

    It takes the first slice of every sequence, then the next of those that are not full, and so on.
    """
    entries, base = table.entries, table.base
    chunk, start = starts.T
    sequence, at, begins = np.arange(len(chunk)), np.zeros_like(chunk), np.ones(len(chunk), bool)
    row = chunk - base
    found = []
    while len(chunk):
        here = entries[row]
        steps = here["steps"]
        end = steps if held_out else here["trained_to"]
        stop = np.minimum(end, start + length - at)
        found.append(np.array([sequence, at, chunk, start, stop, begins, here["arrival"] + start]))
        taken = stop - start
        begins = begins & (taken == 0) | (end < steps)
        at = at + taken
        going = np.flatnonzero(at < length)
        sequence, at, begins, chunk = sequence[going], at[going], begins[going], here["follower"][going]
        row = chunk - base
        start = np.zeros_like(chunk) if held_out else entries["trained_from"][row].astype(np.int64)
        begins = begins | (start > 0)
    slices = np.concatenate(found, axis=1)
    slices = slices[:, slices[4] > slices[3]]
    return slices[:, np.argsort(slices[0], kind="stable")].T
