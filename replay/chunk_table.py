"""What the index keeps of each chunk: an entry of fixed size in a table, and the order to draw chunks from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.segment_log import Location

_MOST_TRIES = 1 << 16


class ChunkEntry(NamedTuple):
    """What the index keeps of a chunk. In masks, bit t stands for step t.

    Attributes:
        stream: number of its stream in the index.
        number: its number in the stream.
        first_step: number of its first step in the stream.
        steps: how many it holds; 0 once the chunk is gone.
        first_mask: the steps that are `is_first`.
        held_out: the steps that are held out; they lie at the chunk's beginning or at its end.
        valid: the steps at which a training sequence may start.
        segment: number of the segment it lies in.
        offset: where it begins there.
        front_bytes: bytes of its prefix, header and first block.
        oldest_version: of the weights that chose its actions.
        newest_version: of the weights that chose its actions.
        listed: whether it is in the `DrawOrder`.
    """

    stream: int
    number: int
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

    @classmethod
    def of(cls, header: ChunkHeader, stream: int, held_out: int, location: Location) -> ChunkEntry:
        """Return the entry of a chunk that was just stored."""
        return cls(
            stream=stream,
            number=header.key.number,
            first_step=header.first_step,
            steps=header.steps,
            first_mask=header.first_mask,
            held_out=held_out,
            valid=0,
            segment=location.segment,
            offset=location.offset,
            front_bytes=header.blocks[0].offset + header.blocks[0].stored_bytes,
            oldest_version=header.oldest_version,
            newest_version=header.newest_version,
            listed=False,
        )

    @property
    def trained_on(self) -> tuple[int, int]:
        """The first of its steps that are not held out, and the end of these; (0, 0) if all are."""
        if not self.held_out:
            return 0, self.steps
        mask = (1 << self.steps) - 1 ^ self.held_out
        return lowest_bit(mask), mask.bit_length()


_ENTRY = np.dtype(
    list(
        zip(
            ChunkEntry._fields,
            ["i4", "i8", "i8", "i2", "u8", "u8", "u8", "i4", "i8", "i4", "i4", "i4", "?"],
            strict=True,
        )
    )
)


class ChunkTable:
    """Entries under ids that count up and are never used again; the lowest ids can be dropped.

    Attributes:
        base: the lowest id that is still held.
        stop: the id that the next entry will get.
    """

    def __init__(self) -> None:
        self._entries = np.zeros(1024, _ENTRY)
        self.base = 0
        self.stop = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return self._entries.nbytes

    def add(self, entry: ChunkEntry) -> int:
        """Append an entry and return its id."""
        if self.stop - self.base == len(self._entries):
            self._entries = np.concatenate([self._entries, np.zeros_like(self._entries)])
        self._entries[self.stop - self.base] = entry
        self.stop += 1
        return self.stop - 1

    def __getitem__(self, chunk: int) -> ChunkEntry:
        return ChunkEntry._make(self._entries[chunk - self.base].item())

    def set(self, chunk: int, column: str, value: int) -> None:
        """Change one value of an entry."""
        self._entries[column][chunk - self.base] = value

    def column(self, name: str) -> np.ndarray:
        """Return one value of all entries, from `base` to `stop`; a view."""
        return self._entries[name][: self.stop - self.base]

    def drop_before(self, chunk: int) -> None:
        """Forget all entries with lower ids, and free memory when much of it is no longer used."""
        kept = self._entries[chunk - self.base : self.stop - self.base]
        size = len(self._entries)
        if 4 * len(kept) < size:
            size = max(1024, 1 << (2 * len(kept)).bit_length() - 1)
        self._entries = np.zeros(size, _ENTRY)
        self._entries[: len(kept)] = kept
        self.base = chunk


class DrawOrder:
    """The ids of chunks with valid starts, in the order in which they first had one."""

    def __init__(self) -> None:
        self._ids = np.zeros(1024, np.int64)
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return self._ids.nbytes

    def append(self, chunk: int) -> None:
        """List a chunk that is not listed."""
        if self._count == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._count] = chunk
        self._count += 1

    def compact(self, table: ChunkTable) -> None:
        """Take out the chunks that are gone or have no valid start any more; the order of the others stays."""
        ids = self._ids[: self._count]
        ids = ids[ids >= table.base]
        ready = table.column("valid")[ids - table.base] > 0
        table.column("listed")[ids[~ready] - table.base] = False
        kept = ids[ready]
        self._ids = np.zeros(max(1024, 1 << (len(kept) + len(kept) // 2).bit_length()), np.int64)
        self._ids[: len(kept)] = kept
        self._count = len(kept)

    def draw(
        self, rng: np.random.Generator, count: int, table: ChunkTable, valid: int, recent: float, recent_chunks: int
    ) -> list[tuple[int, int]]:
        """Return `count` pairs (chunk, start), drawn with replacement, each uniform over the valid starts.

        With probability `recent`, a pair is drawn from those of the newest `recent_chunks` chunks alone. `valid` is the
        number of valid starts in the table; there must be one.
        """
        pairs = None
        if recent > 0:
            low = max(0, self._count - recent_chunks)
            masks = table.column("valid")[self._ids[low : self._count] - table.base]
            valid_recent = int(np.bitwise_count(masks).sum())
            if valid_recent:
                newest = rng.random(count) < recent
                pairs = np.empty((count, 2), np.int64)
                pairs[newest] = self._draw_from(low, rng, int(newest.sum()), table, valid_recent)
                pairs[~newest] = self._draw_from(0, rng, int((~newest).sum()), table, valid)
        if pairs is None:
            pairs = self._draw_from(0, rng, count, table, valid)
        return [(chunk, start) for chunk, start in pairs.tolist()]

    def _draw_from(self, low: int, rng: np.random.Generator, count: int, table: ChunkTable, valid: int) -> np.ndarray:
        """Return (count, 2) pairs over the ids from position `low` on: any bit of any chunk, until enough are valid."""
        masks = table.column("valid")
        found, missing = [np.empty((0, 2), np.int64)], count
        while missing > 0:
            tries = min(_MOST_TRIES, missing * CHUNK_STEPS * (self._count - low) * 5 // (4 * valid) + 16)
            chunks = self._ids[rng.integers(low, self._count, tries)]
            bits = rng.integers(0, CHUNK_STEPS, tries)
            hits = masks[chunks - table.base] >> bits.astype(np.uint64) & np.uint64(1) > 0
            found.append(np.stack([chunks[hits], bits[hits]], axis=1)[:missing])
            missing -= len(found[-1])
        return np.concatenate(found)


def lowest_bit(mask: int) -> int:
    """Return the number of the lowest set bit; 0 if none is set."""
    return max(0, (mask & -mask).bit_length() - 1)
