"""The compressed batch: sampled sequences as they travel, and their decompression by the reader.

The reader decompresses, because the bytes on the way and the replay's processor are scarcer than the learner's. What
the replay keeps decoded, for readers on its machine, does not travel: the batch says where it lies.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.blocks import (
    Block,
    read_big_fields,
    read_small_fields,
)
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.mapped_cache import CacheHandle, MappedCache, OverwrittenError

_THREADS_AT_MOST = 8
SLICE_COLUMNS = 7
"""Numbers, of eight bytes each, that a batch holds for each slice of a chunk."""
BLOCK_COLUMNS = 5
"""Likewise for each block."""
KEPT_COLUMNS = 6
"""Likewise for each slice that is kept decoded."""


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
        kept: (K, 6) int64, one line for each slice that lies in a cache, instead of the one in `slices`: sequence of
            the batch, first step of the sequence that it fills, steps, 1 if the sequence begins anew with it, number of
            its first step in the cache, and which one of `caches` that is.
        caches: where the caches are found.
    """

    batch_size: int
    length: int
    slices: np.ndarray
    blocks: np.ndarray
    data: np.ndarray
    kept: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, KEPT_COLUMNS), np.int64))
    caches: tuple[CacheHandle, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return int(self.slices.nbytes + self.blocks.nbytes + self.data.nbytes + self.kept.nbytes)


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
    kept = np.concatenate([part.kept for part in parts])
    caches = np.cumsum([0, *(len(part.caches) for part in parts)])
    for column, firsts in ((0, sequences), (5, caches)):
        kept[:, column] += np.repeat(firsts[:-1], [len(part.kept) for part in parts])
    handles = tuple(handle for part in parts for handle in part.caches)
    return CompressedBatch(int(sequences[-1]), parts[0].length, slices, blocks, data, kept, handles)


def decompress(
    batch: CompressedBatch,
    step_format: StepFormat,
    threads: int = 2,
    out: dict[str, np.ndarray] | None = None,
    caches: Sequence[MappedCache] = (),
) -> dict[str, np.ndarray]:
    """Decompress a batch into arrays (B, T, *shape), one a field, in several threads, and return them.

    They are fresh, or those of `out`, which are overwritten wholly and may be of any memory. `caches` are those that
    the batch names, mapped.

    `is_first` is True at each sequence's first step. Where held-out steps are left out, it is True at the step after
    them, and `is_last` at the step before: a reader sees an episode cut short, and another that begins.

    Raises:
        DamagedChunkError: if a block is not what its checksum says.
        OverwrittenError: if a cache has used some of the rows for newer steps; the arrays hold nothing of use then.
        ValueError: if an array of `out` is missing, or not of the batch's shape and the field's type.
    """
    shape = (batch.batch_size, batch.length)
    if out is None:
        out = {field.name: np.empty((*shape, *field.shape), field.dtype) for field in step_format.fields}
    else:
        _check_buffers(out, step_format, shape)
    shares = _shares(batch, min(threads, _THREADS_AT_MOST))
    jobs = [_pool().submit(_decompress_big, batch, step_format, share, out) for share in shares[1:]]
    try:
        _copy_kept(batch, step_format, out, caches)
        _decompress_small(batch, step_format, out)
        if shares:
            _decompress_big(batch, step_format, shares[0], out)
    finally:
        for job in jobs:
            job.result()
    _check_intact(batch, caches)
    for begins, sequence, at in (batch.slices[:, [6, 0, 1]].T, batch.kept[:, [3, 0, 1]].T):
        chosen, later = begins > 0, (begins > 0) & (at > 0)
        out["is_first"][sequence[chosen], at[chosen]] = True
        out["is_last"][sequence[later], at[later] - 1] = True
    return out


def _check_buffers(out: dict[str, np.ndarray], step_format: StepFormat, shape: tuple[int, int]) -> None:
    for field in step_format.fields:
        wanted = (*shape, *field.shape), np.dtype(field.dtype)
        array = out.get(field.name)
        if array is None or (array.shape, array.dtype) != wanted:
            found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(
                f"the buffer of '{field.name}' is {found}; the batch needs {wanted[1]} of shape {wanted[0]}"
            )


class _Share(NamedTuple):
    """A range of a batch's slices, and of their blocks."""

    slices: slice
    blocks: slice


def _shares(batch: CompressedBatch, count: int) -> list[_Share]:
    """Return how to divide what must be decompressed in `count` parts of about as many steps; none if nothing must."""
    if not len(batch.slices):
        return []
    steps = np.cumsum(batch.slices[:, 4] - batch.slices[:, 3])
    block_ends = np.concatenate([[0], np.cumsum(batch.slices[:, 5])]).tolist()
    cuts = np.searchsorted(steps, np.arange(1, count) * steps[-1] / max(count, 1)) + 1
    edges = [0, *np.minimum(cuts, len(steps)).tolist(), len(steps)]
    return [_Share(slice(a, b), slice(block_ends[a], block_ends[b])) for a, b in pairwise(edges) if a < b]


def _copy_kept(
    batch: CompressedBatch, step_format: StepFormat, out: dict[str, np.ndarray], caches: Sequence[MappedCache]
) -> None:
    """Copy the slices that are kept decoded: in one thread, since a second would take as long to begin."""
    _copy_small(batch, step_format, out, caches)
    for sequence, at, steps, _, number, cache in batch.kept.tolist():
        for field in step_format.big:
            caches[cache].copy(field.name, number, out[field.name][sequence, at : at + steps])


def _copy_small(
    batch: CompressedBatch, step_format: StepFormat, out: dict[str, np.ndarray], caches: Sequence[MappedCache]
) -> None:
    """Copy the small fields of the slices that are kept decoded, those of one cache at once."""
    for cache, mapped in enumerate(caches):
        sequence, at, steps, _, number = batch.kept[batch.kept[:, 5] == cache, :5].T
        part = np.repeat(np.arange(len(steps)), steps)
        step = np.arange(len(part)) - np.repeat(np.cumsum(steps) - steps, steps)
        rows, places = (number[part] + step) % mapped.rows, (sequence[part], at[part] + step)
        is_whole = len(rows) == batch.batch_size * batch.length  # then they are in order, step by step
        for field in step_format.small:
            steps_of, target = mapped.arrays[field.name][rows], out[field.name]
            if is_whole:
                target[...] = steps_of.reshape(target.shape)
            else:
                target[places] = steps_of


def _check_intact(batch: CompressedBatch, caches: Sequence[MappedCache]) -> None:
    """Check, after all was copied, that no row was used for a newer step until then."""
    for cache, mapped in enumerate(caches):
        numbers = batch.kept[batch.kept[:, 5] == cache, 4]
        if len(numbers) and mapped.arrived > int(numbers.min()) + mapped.rows:
            raise OverwrittenError(f"steps from number {numbers.min()} on were overwritten by newer ones")


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


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS_AT_MOST, os.cpu_count() or 1), thread_name_prefix="decompress")
