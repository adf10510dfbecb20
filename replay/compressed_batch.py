"""The compressed batch: sampled sequences as they travel, and their decompression by the reader.

The reader decompresses, because the bytes on the way and the replay's processor are scarcer than the learner's.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.blocks import (
    Block,
    DamagedChunkError,
    block_numbers,
    read_big_fields,
    read_small_fields,
)
from dreamfleet.common.experience.chunk import parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.index import ChunkSlice
from dreamfleet.replay.segment import Segment

_THREADS_AT_MOST = 8
SLICE_COLUMNS = 7
"""Numbers, of eight bytes each, that a batch holds for each slice of a chunk."""
BLOCK_COLUMNS = 5
"""Likewise for each block."""


@dataclass(frozen=True)
class CompressedBatch:
    """Sequences cut from chunks: the stored bytes of the blocks they need, and tables that describe them.

    Attributes:
        batch_size: B.
        length: T.
        slices: (P, 7) int64, one line for each `ChunkSlice`: sequence of the batch, first step of the sequence that it
            fills, steps of its chunk, first step and end within the chunk, number of its blocks, 1 if the sequence
            begins anew with it.
        blocks: (Q, 5) int64, slice by slice: number in the chunk, offset in `data`, stored bytes, 1 if compressed,
            CRC-32.
        data: uint8, the blocks end to end.
    """

    batch_size: int
    length: int
    slices: np.ndarray
    blocks: np.ndarray
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return int(self.slices.nbytes + self.blocks.nbytes + self.data.nbytes)


class PinnedSlice(NamedTuple):
    """A slice and where its chunk is stored; the segment is pinned."""

    part: ChunkSlice
    segment: Segment
    offset: int
    front_bytes: int


class DamagedSliceError(Exception):
    """A slice whose chunk on the disk is not what its checksums say; `chunk` is its id in the index."""

    def __init__(self, chunk: int, reason: str) -> None:
        super().__init__(reason)
        self.chunk = chunk


def read_batch(step_format: StepFormat, batch_size: int, length: int, pinned: Sequence[PinnedSlice]) -> CompressedBatch:
    """Read the blocks that the slices need, check them, and lay them end to end.

    Raises:
        DamagedSliceError: for the first slice whose chunk is damaged.
    """
    slices, blocks, reads, size = [], [], [], 0
    for stored in pinned:
        part = stored.part
        front = stored.segment.read(stored.offset, stored.front_bytes)
        try:
            header = parse_header(front)
        except DamagedChunkError as error:
            raise DamagedSliceError(part.chunk, str(error)) from error
        numbers = block_numbers(step_format, header.steps, part.start, part.stop)
        slices.append((part.sequence, part.at, header.steps, part.start, part.stop, len(numbers), part.begins))
        for number in numbers:
            offset, stored_bytes, compressed, checksum = header.blocks[number]
            blocks.append((number, size, stored_bytes, compressed, checksum))
            reads.append((stored, stored.offset + offset, None if number else front[offset:]))
            size += stored_bytes
    data = np.empty(size, np.uint8)
    _fill(data.data, blocks, reads)
    slice_table = np.array(slices, np.int64).reshape(-1, SLICE_COLUMNS)
    block_table = np.array(blocks, np.int64).reshape(-1, BLOCK_COLUMNS)
    return CompressedBatch(batch_size, length, slice_table, block_table, data)


def _fill(
    data: memoryview,
    blocks: Sequence[tuple[int, int, int, bool, int]],
    reads: Sequence[tuple[PinnedSlice, int, bytes | None]],
) -> None:
    """Read each block into its place and check it; neighbours on the disk are read at once."""
    at = 0
    while at < len(blocks):
        stored, place, known = reads[at]
        offset = blocks[at][1]
        if known is not None:
            data[offset : offset + len(known)] = known
            stop = at + 1
        else:
            stop, end = at, place
            while stop < len(blocks) and reads[stop][0] is stored and reads[stop][1] == end:
                end += blocks[stop][2]
                stop += 1
            stored.segment.read_into(place, data[offset : offset + end - place])
        for _, start, stored_bytes, _, checksum in blocks[at:stop]:
            if zlib.crc32(data[start : start + stored_bytes]) != checksum:
                raise DamagedSliceError(stored.part.chunk, "a block's checksum is wrong")
        at = stop


def join_batches(parts: Sequence[CompressedBatch]) -> CompressedBatch:
    """Return one batch with the sequences of all parts, which have one length, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    sequences = np.cumsum([0, *(part.batch_size for part in parts)])
    offsets = np.cumsum([0, *(len(part.data) for part in parts)])
    slices = np.concatenate([part.slices for part in parts])
    blocks = np.concatenate([part.blocks for part in parts])
    slices[:, 0] += np.repeat(sequences[:-1], [len(part.slices) for part in parts])
    blocks[:, 1] += np.repeat(offsets[:-1], [len(part.blocks) for part in parts])
    data = np.concatenate([part.data for part in parts])
    return CompressedBatch(int(sequences[-1]), parts[0].length, slices, blocks, data)


def decompress(batch: CompressedBatch, step_format: StepFormat, threads: int = 2) -> dict[str, np.ndarray]:
    """Decompress a batch into fresh arrays (B, T, *shape), one a field, in several threads.

    `is_first` is True at each sequence's first step. Where held-out steps are left out, it is True at the step after
    them, and `is_last` at the step before: a reader sees an episode cut short, and another that begins.

    Raises:
        DamagedChunkError: if a block is not what its checksum says.
    """
    shape = (batch.batch_size, batch.length)
    out = {field.name: np.empty((*shape, *field.shape), field.dtype) for field in step_format.fields}
    shares = _shares(batch, min(threads, _THREADS_AT_MOST))
    jobs = [_pool().submit(_decompress_big, batch, step_format, share, out) for share in shares[1:]]
    try:
        _decompress_small(batch, step_format, out)
        _decompress_big(batch, step_format, shares[0], out)
    finally:
        for job in jobs:
            job.result()
    sequence, at = batch.slices[batch.slices[:, 6] > 0, :2].T
    out["is_first"][sequence, at] = True
    out["is_last"][sequence[at > 0], at[at > 0] - 1] = True
    return out


class _Share(NamedTuple):
    """A range of a batch's slices, and of their blocks."""

    slices: slice
    blocks: slice


def _shares(batch: CompressedBatch, count: int) -> list[_Share]:
    """Return how to divide the work in `count` parts of about as many steps."""
    steps = np.cumsum(batch.slices[:, 4] - batch.slices[:, 3])
    block_ends = np.concatenate([[0], np.cumsum(batch.slices[:, 5])]).tolist()
    cuts = np.searchsorted(steps, np.arange(1, count) * steps[-1] / max(count, 1)) + 1
    edges = [0, *np.minimum(cuts, len(steps)).tolist(), len(steps)]
    return [_Share(slice(a, b), slice(block_ends[a], block_ends[b])) for a, b in pairwise(edges) if a < b]


def _decompress_small(batch: CompressedBatch, step_format: StepFormat, out: dict[str, np.ndarray]) -> None:
    """Decode the small fields of all slices, those of chunks of equal length at once: many small copies are slower."""
    slices, data = batch.slices, batch.data.data
    first_blocks = batch.blocks[np.cumsum(slices[:, 5]) - slices[:, 5]]
    for steps in np.unique(slices[:, 2]).tolist():
        chosen = slices[:, 2] == steps
        sequence, at, _, start, stop = slices[chosen, :5].T
        blocks = [
            (Block(0, stored_bytes, bool(compressed), checksum), data[offset : offset + stored_bytes])
            for _, offset, stored_bytes, compressed, checksum in first_blocks[chosen].tolist()
        ]
        lengths = stop - start
        part = np.repeat(np.arange(len(sequence)), lengths)
        step = np.arange(len(part)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        for name, array in read_small_fields(step_format, steps, blocks).items():
            out[name][sequence[part], at[part] + step] = array[part, start[part] + step]


def _decompress_big(batch: CompressedBatch, step_format: StepFormat, share: _Share, out: dict[str, np.ndarray]) -> None:
    """Decode the big fields of some slices into their sequences."""
    data = batch.data.data
    blocks = iter(batch.blocks[share.blocks].tolist())
    for sequence, at, steps, start, stop, count in batch.slices[share.slices, :6].tolist():
        held = {
            number: (Block(0, stored_bytes, bool(compressed), checksum), data[offset : offset + stored_bytes])
            for number, offset, stored_bytes, compressed, checksum in islice(blocks, count)
        }
        target = {field.name: out[field.name][sequence, at : at + stop - start] for field in step_format.big}
        read_big_fields(step_format, steps, start, stop, held, target)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS_AT_MOST, os.cpu_count() or 1), thread_name_prefix="decompress")
