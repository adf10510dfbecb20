"""Pinned slices: the parts of chunks that a batch needs, read from the segments they lie in."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.blocks import DamagedChunkError, block_numbers
from dreamfleet.common.experience.chunk import parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.compressed_batch import BLOCK_COLUMNS, SLICE_COLUMNS, CompressedBatch
from dreamfleet.replay.mapped_cache import CacheHandle
from dreamfleet.replay.segment import Segment
from dreamfleet.replay.slices import ChunkSlice

_NOTHING = (np.empty((0, SLICE_COLUMNS), np.int64), np.empty((0, BLOCK_COLUMNS), np.int64), np.empty(0, np.uint8))
"""The tables and the data of a batch for which nothing is read; the same for all, so that they travel once a call."""


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


def read_batch(
    step_format: StepFormat,
    batch_size: int,
    length: int,
    pinned: Sequence[PinnedSlice],
    kept: np.ndarray,
    caches: tuple[CacheHandle, ...],
) -> CompressedBatch:
    """Read the blocks that the slices need, check them, and lay them end to end; `kept` slices need no reading.

    Raises:
        DamagedSliceError: for the first slice whose chunk is damaged.
    """
    if not pinned:
        return CompressedBatch(batch_size, length, *_NOTHING, kept, caches)
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
    return CompressedBatch(batch_size, length, slice_table, block_table, data, kept, caches)


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
