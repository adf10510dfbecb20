"""The packed batch: sampled sequences as they travel, still compressed, and their unpacking by who reads them.

The reader decompresses, because the bytes on the way and the replay's processor are scarcer than the learner's.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
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


@dataclass(frozen=True)
class CompressedBatch:
    """Sequences cut from chunks: the stored bytes of the blocks they need, and tables that say what they are.

    Attributes:
        batch_size: B.
        length: T.
        pieces: (P, 7) int64: row of the batch, first step of the row it fills, steps of its chunk, first step and end
            within the chunk, number of its blocks, 1 if its row begins anew with it.
        blocks: (Q, 5) int64, piece by piece: number in the chunk, offset in `data`, stored bytes, 1 if compressed,
            CRC-32.
        data: uint8, the blocks end to end.
    """

    batch_size: int
    length: int
    pieces: np.ndarray
    blocks: np.ndarray
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return int(self.pieces.nbytes + self.blocks.nbytes + self.data.nbytes)


class Source(NamedTuple):
    """A piece and where its record lies; the segment is pinned."""

    piece: ChunkSlice
    segment: Segment
    offset: int
    front_bytes: int


class DamagedPieceError(Exception):
    """A piece whose record on the disk is not what its checksums say; `chunk` is its id in the index."""

    def __init__(self, chunk: int, reason: str) -> None:
        super().__init__(reason)
        self.chunk = chunk


def pack(step_format: StepFormat, batch_size: int, length: int, sources: Sequence[Source]) -> CompressedBatch:
    """Read the blocks that the pieces need, check them, and lay them end to end.

    Raises:
        DamagedPieceError: for the first piece whose record is damaged.
    """
    pieces, blocks, reads, size = [], [], [], 0
    for source in sources:
        piece = source.piece
        front = source.segment.read(source.offset, source.front_bytes)
        try:
            header = parse_header(front)
        except DamagedChunkError as error:
            raise DamagedPieceError(piece.chunk, str(error)) from error
        numbers = block_numbers(step_format, header.steps, piece.start, piece.stop)
        pieces.append((piece.row, piece.at, header.steps, piece.start, piece.stop, len(numbers), piece.begins))
        for number in numbers:
            offset, stored_bytes, compressed, checksum = header.blocks[number]
            blocks.append((number, size, stored_bytes, compressed, checksum))
            reads.append((source, source.offset + offset, None if number else front[offset:]))
            size += stored_bytes
    data = np.empty(size, np.uint8)
    _fill(data.data, blocks, reads)
    return CompressedBatch(batch_size, length, np.array(pieces, np.int64), np.array(blocks, np.int64), data)


def join_batches(parts: Sequence[CompressedBatch]) -> CompressedBatch:
    """Return one batch with the rows of all parts, which are sequences of one length, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    rows = np.cumsum([0, *(part.batch_size for part in parts)])
    offsets = np.cumsum([0, *(len(part.data) for part in parts)])
    pieces = np.concatenate([part.pieces for part in parts])
    blocks = np.concatenate([part.blocks for part in parts])
    pieces[:, 0] += np.repeat(rows[:-1], [len(part.pieces) for part in parts])
    blocks[:, 1] += np.repeat(offsets[:-1], [len(part.blocks) for part in parts])
    data = np.concatenate([part.data for part in parts])
    return CompressedBatch(int(rows[-1]), parts[0].length, pieces, blocks, data)


def decompress(packed: CompressedBatch, step_format: StepFormat, threads: int = 2) -> dict[str, np.ndarray]:
    """Decompress a batch into fresh arrays (B, T, *shape), one a field.

    `is_first` is True at each row's first step. Where a row leaves held-out steps out, it is True at the step behind
    them, and `is_last` at the step before: whoever reads them sees an episode cut short, and another that begins.

    Args:
        packed: what `Replay.sample` returned.
        step_format: of its steps.
        threads: how many decompress side by side; decompressing lets other Python threads run.

    Raises:
        DamagedChunkError: if a block is not what its checksum says.
    """
    shape = (packed.batch_size, packed.length)
    out = {field.name: np.empty((*shape, *field.shape), field.dtype) for field in step_format.fields}
    shares = _shares(packed, min(threads, _THREADS_AT_MOST))
    jobs = [_pool().submit(_unpack_pieces, packed, step_format, *share, out) for share in shares[1:]]
    try:
        _unpack_small(packed, step_format, out)
        _unpack_pieces(packed, step_format, *shares[0], out)
    finally:
        for job in jobs:
            job.result()
    row, at = packed.pieces[packed.pieces[:, 6] > 0, :2].T
    out["is_first"][row, at] = True
    out["is_last"][row[at > 0], at[at > 0] - 1] = True
    return out


def _fill(
    data: memoryview,
    blocks: Sequence[tuple[int, int, int, bool, int]],
    reads: Sequence[tuple[Source, int, bytes | None]],
) -> None:
    """Read each block into its place and check it; neighbours on the disk are read at once."""
    at = 0
    while at < len(blocks):
        source, place, known = reads[at]
        offset = blocks[at][1]
        if known is not None:
            data[offset : offset + len(known)] = known
            stop = at + 1
        else:
            stop, end = at, place
            while stop < len(blocks) and reads[stop][0] is source and reads[stop][1] == end:
                end += blocks[stop][2]
                stop += 1
            source.segment.read_into(place, data[offset : offset + end - place])
        for _, start, stored_bytes, _, checksum in blocks[at:stop]:
            if zlib.crc32(data[start : start + stored_bytes]) != checksum:
                raise DamagedPieceError(source.piece.chunk, "a block's checksum is wrong")
        at = stop


def _shares(packed: CompressedBatch, count: int) -> list[tuple[int, int, int, int]]:
    """Return how to cut the work in `count` equal parts: for each the range of its pieces and of its blocks."""
    pieces = packed.pieces
    steps = np.cumsum(pieces[:, 4] - pieces[:, 3])
    block_ends = np.concatenate([[0], np.cumsum(pieces[:, 5])])
    cuts = np.searchsorted(steps, np.arange(1, count) * steps[-1] / max(count, 1)) if count > 1 else []
    edges = [0, *(int(cut) + 1 for cut in cuts), len(pieces)]
    edges = [min(edge, len(pieces)) for edge in edges]
    ranges = [(a, b) for a, b in pairwise(edges) if a < b]
    return [(a, b, int(block_ends[a]), int(block_ends[b])) for a, b in ranges]


def _unpack_small(packed: CompressedBatch, step_format: StepFormat, out: dict[str, np.ndarray]) -> None:
    """Unpack the small fields of all pieces, those of chunks of equal length at once: many small copies take longer."""
    pieces, data = packed.pieces, packed.data.data
    first_blocks = packed.blocks[np.cumsum(pieces[:, 5]) - pieces[:, 5]]
    for steps in np.unique(pieces[:, 2]).tolist():
        chosen = pieces[:, 2] == steps
        row, at, _, start, stop = pieces[chosen, :5].T
        blocks = [
            (Block(0, stored_bytes, bool(compressed), checksum), data[offset : offset + stored_bytes])
            for _, offset, stored_bytes, compressed, checksum in first_blocks[chosen].tolist()
        ]
        lengths = stop - start
        piece = np.repeat(np.arange(len(row)), lengths)
        step = np.arange(len(piece)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        for name, array in read_small_fields(step_format, steps, blocks).items():
            out[name][row[piece], at[piece] + step] = array[piece, start[piece] + step]


def _unpack_pieces(
    packed: CompressedBatch,
    step_format: StepFormat,
    first: int,
    stop: int,
    first_block: int,
    stop_block: int,
    out: dict[str, np.ndarray],
) -> None:
    """Unpack the big fields of a range of pieces into their rows."""
    data = packed.data.data
    blocks = packed.blocks[first_block:stop_block].tolist()
    used = 0
    for row, at, steps, start, end, count in packed.pieces[first:stop, :6].tolist():
        held = {
            number: (Block(0, stored_bytes, bool(compressed), checksum), data[offset : offset + stored_bytes])
            for number, offset, stored_bytes, compressed, checksum in blocks[used : used + count]
        }
        used += count
        target = {field.name: out[field.name][row, at : at + end - start] for field in step_format.big}
        read_big_fields(step_format, steps, start, end, held, target)


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads that all batches are unpacked by."""
    return ThreadPoolExecutor(min(_THREADS_AT_MOST, os.cpu_count() or 1), thread_name_prefix="unpack")
