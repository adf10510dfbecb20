"""The chunk table: what the index keeps of each chunk, and the drawing of starts of sequences from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.segment_log import Location

_MOST_TRIES = 1 << 16
_ONE = np.uint64(1)


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
        front_bytes: bytes of its prefix, header and first block.
        oldest_version: of the weights that chose its actions; likewise `newest_version`.
        listed: whether it is in the order that chunks are drawn from.
        follower: id of the chunk that continues its stream without a gap; -1: none is stored.
        arrival: steps that came before it, of all streams, since the index was made.
        trained_from: the first of its steps that are not held out; `trained_to` is their end. Both are 0 if all are.
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
    follower: int
    arrival: int
    trained_from: int
    trained_to: int

    @classmethod
    def of(cls, header: ChunkHeader, stream: int, held_out: int, location: Location, arrival: int) -> ChunkEntry:
        """Return the entry of a chunk that was just stored."""
        trained_on = ones(header.steps) ^ held_out
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
            follower=-1,
            arrival=arrival,
            trained_from=lowest_bit(trained_on),
            trained_to=trained_on.bit_length(),
        )

    @property
    def trained_on(self) -> tuple[int, int]:
        """The first of its steps that are not held out, and the end of these; (0, 0) if all are."""
        return self.trained_from, self.trained_to


_ENTRY = np.dtype(
    list(
        zip(
            ChunkEntry._fields,
            ["i4", "i8", "i8", "i2", "u8", "u8", "u8", "i4", "i8", "i4", "i4", "i4", "?", "i8", "i8", "i1", "i1"],
            strict=True,
        )
    )
)


class ChunkTable:
    """Entries under ids that count up and are never used again, and the order in which chunks first had a valid start.

    Attributes:
        base: the lowest id that is still held.
        stop: the id that the next entry will get.
    """

    def __init__(self) -> None:
        self._entries = np.zeros(1024, _ENTRY)
        self._order = np.zeros(1024, np.int64)  # ids of chunks with valid starts
        self._listed = 0
        self.base = 0
        self.stop = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return self._entries.nbytes + self._order.nbytes

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

    @property
    def entries(self) -> np.ndarray:
        """All entries, from `base` to `stop`; a view."""
        return self._entries[: self.stop - self.base]

    def column(self, name: str) -> np.ndarray:
        """Return one value of all entries, from `base` to `stop`; a view."""
        return self._entries[name][: self.stop - self.base]

    def list_for_drawing(self, chunk: int) -> None:
        """Append a chunk with a valid start, which is not in the order, to it."""
        if self._listed == len(self._order):
            self._order = np.concatenate([self._order, np.zeros_like(self._order)])
        self._order[self._listed] = chunk
        self._listed += 1
        self.set(chunk, "listed", 1)

    def drop_before(self, chunk: int) -> None:
        """Forget all entries with lower ids, and in the order all chunks without a valid start; free their memory."""
        kept = self._entries[chunk - self.base : self.stop - self.base]
        self._entries = np.zeros(max(1024, len(kept) + len(kept) // 2), _ENTRY)
        self._entries[: len(kept)] = kept
        self.base = chunk
        ids = self._order[: self._listed]
        ids = ids[ids >= self.base]
        ready = self.column("valid")[ids - self.base] > 0
        self.column("listed")[ids[~ready] - self.base] = False
        self._listed = int(ready.sum())
        self._order = np.zeros(max(1024, self._listed + self._listed // 2), np.int64)
        self._order[: self._listed] = ids[ready]

    def draw(self, rng: np.random.Generator, count: int, valid: int, recent: float, recent_chunks: int) -> np.ndarray:
        """Return (count, 2) pairs of chunk and start, drawn with replacement, each uniform over the valid starts.

        With probability `recent`, a pair is drawn from those of the newest `recent_chunks` chunks alone, if they have a
        valid start. `valid` is the number of valid starts in the table; there must be one.
        """
        low, valid_recent = max(0, self._listed - recent_chunks), 0
        if recent > 0:
            masks = self.column("valid")[self._order[low : self._listed] - self.base]
            valid_recent = int(np.bitwise_count(masks).sum())
        if not valid_recent:
            return self._draw_from(0, rng, count, valid)
        newest = rng.random(count) < recent
        pairs = np.empty((count, 2), np.int64)
        pairs[newest] = self._draw_from(low, rng, int(newest.sum()), valid_recent)
        pairs[~newest] = self._draw_from(0, rng, int((~newest).sum()), valid)
        return pairs

    def _draw_from(self, low: int, rng: np.random.Generator, count: int, valid: int) -> np.ndarray:
        """Return (count, 2) pairs over the order from `low` on: any bit of any chunk, until enough are valid."""
        masks = self.column("valid")
        found, missing = [np.empty((2, 0), np.int64)], count
        while missing > 0:
            tries = min(_MOST_TRIES, missing * CHUNK_STEPS * (self._listed - low) * 5 // (4 * valid) + 16)
            chunks = self._order[rng.integers(low, self._listed, tries)]
            bits = rng.integers(0, CHUNK_STEPS, tries)
            hits = np.flatnonzero(masks[chunks - self.base] >> bits.astype(np.uint64) & _ONE)[:missing]
            found.append(np.array([chunks[hits], bits[hits]]))
            missing -= len(hits)
        return np.concatenate(found, axis=1).T


def lowest_bit(mask: int) -> int:
    """Return the number of the lowest set bit; 0 if none is set."""
    return max(0, (mask & -mask).bit_length() - 1)


def ones(count: int) -> int:
    """Return a mask whose lowest `count` bits are set; none if `count` is negative."""
    return (1 << max(count, 0)) - 1
