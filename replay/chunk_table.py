"""The chunk table: what the index keeps of each chunk, the drawing of chunks, and where sequences may start in them.

In masks, bit t stands for step t of a chunk, or of some consecutive chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.chunk import ChunkHeader, ChunkKey
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.segment_log import Location

HELD_OUT_RUN = 128
"""Steps of a stream that are held out together, or trained on together: held-out sequences lie within them."""
_INCARNATION_SHARE, _STREAM_SHARE = 2447445414, 3242174889
"""Shares of a cycle, in units of 2⁻³²: 1/p² and 1/p with p³ = p + 1, whose multiples lie evenly (Roberts's R2)."""
_MOST_TRIES = 1 << 16
assert CHUNK_STEPS <= HELD_OUT_RUN  # a chunk has at most one border of runs


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

    def draw(
        self, rng: np.random.Generator, count: int, valid: int, recent: float, recent_chunks: int
    ) -> list[tuple[int, int]]:
        """Return `count` pairs (chunk, start), drawn with replacement, each uniform over the valid starts.

        With probability `recent`, a pair is drawn from those of the newest `recent_chunks` chunks alone. `valid` is the
        number of valid starts in the table; there must be one.
        """
        pairs = None
        if recent > 0:
            low = max(0, self._listed - recent_chunks)
            masks = self.column("valid")[self._order[low : self._listed] - self.base]
            valid_recent = int(np.bitwise_count(masks).sum())
            if valid_recent:
                newest = rng.random(count) < recent
                pairs = np.empty((count, 2), np.int64)
                pairs[newest] = self._draw_from(low, rng, int(newest.sum()), valid_recent)
                pairs[~newest] = self._draw_from(0, rng, int((~newest).sum()), valid)
        if pairs is None:
            pairs = self._draw_from(0, rng, count, valid)
        return [(chunk, start) for chunk, start in pairs.tolist()]

    def _draw_from(self, low: int, rng: np.random.Generator, count: int, valid: int) -> np.ndarray:
        """Return (count, 2) pairs over the order from `low` on: any bit of any chunk, until enough are valid."""
        masks = self.column("valid")
        found, missing = [np.empty((0, 2), np.int64)], count
        while missing > 0:
            tries = min(_MOST_TRIES, missing * CHUNK_STEPS * (self._listed - low) * 5 // (4 * valid) + 16)
            chunks = self._order[rng.integers(low, self._listed, tries)]
            bits = rng.integers(0, CHUNK_STEPS, tries)
            hits = masks[chunks - self.base] >> bits.astype(np.uint64) & np.uint64(1) > 0
            found.append(np.stack([chunks[hits], bits[hits]], axis=1)[:missing])
            missing -= len(found[-1])
        return np.concatenate(found)


def lowest_bit(mask: int) -> int:
    """Return the number of the lowest set bit; 0 if none is set."""
    return max(0, (mask & -mask).bit_length() - 1)


class StartRules:
    """Tells training and held-out steps apart, and finds the starts of sequences that use one kind alone.

    A stream is divided into runs of `HELD_OUT_RUN` steps. Of every `held_out_every` consecutive runs one is held out:
    in the first stream of incarnation 0 the last of them, in other streams an earlier one, so that about that share of
    all streams together is held out at any time, also early on. A border between runs moves to the next episode's first
    step if that lies in the same chunk. A chunk's header alone decides this: it does not depend on what else is stored,
    nor on restarts.

    A training sequence continues after held-out steps with the steps that follow them; there its state begins anew.

    Args:
        across_episodes: whether a training sequence may continue into the next episode, and over held-out steps.
        held_out_every: one step in this many is never trained on; 0 holds out none, 1 all.
    """

    def __init__(self, across_episodes: bool, held_out_every: int) -> None:
        self._across_episodes = across_episodes
        self._held_out_every = held_out_every

    def training(self, chunks: Sequence[ChunkEntry], length: int) -> list[int]:
        """Return for each of some consecutive chunks where a training sequence of `length` steps may start in it."""
        ranges = [chunk.trained_on for chunk in chunks]
        starts = ones(sum(stop - start for start, stop in ranges) - length + 1)
        if not self._across_episodes:
            starts &= ~_any_within(_beginnings(chunks) >> 1, length - 1)
        masks = []
        for start, stop in ranges:
            masks.append((starts & ones(stop - start)) << start)
            starts >>= stop - start
        return masks

    def held_out(self, chunks: Sequence[ChunkEntry], length: int) -> int:
        """Return where a sequence of `length` held-out steps of one episode may start in consecutive chunks."""
        steps = first = held = 0
        for chunk in chunks:
            first |= chunk.first_mask << steps
            held |= chunk.held_out << steps
            steps += chunk.steps
        blocked = _any_within(held ^ ones(steps), length) | _any_within(first >> 1, length - 1)
        return ones(steps - length + 1) & ~blocked

    def held_out_steps(self, header: ChunkHeader) -> int:
        """Return which of a chunk's steps are held out: none, all, or those on one side of a border."""
        if not self._held_out_every:
            return 0
        run = (header.first_step + header.steps - 1) // HELD_OUT_RUN
        border = run * HELD_OUT_RUN - header.first_step
        if border >= 0:  # else the whole chunk is of one run
            border += lowest_bit(header.first_mask >> border)
        before, after = ones(border), ones(header.steps) ^ ones(border)
        return before * self._holds_out(header.key, run - 1) | after * self._holds_out(header.key, run)

    def _holds_out(self, key: ChunkKey, run: int) -> bool:
        """Whether the stream that a chunk belongs to holds out its run of this number."""
        every = self._held_out_every
        share = (key.incarnation * _INCARNATION_SHARE + key.stream * _STREAM_SHARE) % (1 << 32)
        return (run + (share * every >> 32)) % every == every - 1


def _beginnings(chunks: Sequence[ChunkEntry]) -> int:
    """Return which of the training steps of consecutive chunks begin an episode, or follow held-out ones."""
    steps = beginnings = 0
    follows_held_out = False
    for chunk in chunks:
        start, stop = chunk.trained_on
        if start < stop:
            beginnings |= (chunk.first_mask >> start & ones(stop - start) | (follows_held_out or start > 0)) << steps
        follows_held_out = stop < chunk.steps
        steps += stop - start
    return beginnings


def ones(count: int) -> int:
    """Return a mask whose lowest `count` bits are set; none if `count` is negative."""
    return (1 << max(count, 0)) - 1


def _any_within(bits: int, width: int) -> int:
    """Return a mask whose bit t is set if any of the bits t to t + width - 1 is."""
    covered = 1
    while covered < width and bits:
        shift = min(covered, width - covered)
        bits |= bits >> shift
        covered += shift
    return bits if width > 0 else 0
