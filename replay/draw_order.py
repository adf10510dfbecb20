"""The order in which chunks became ready to train on, and the drawing of starts from it."""

from __future__ import annotations

import numpy as np

from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.chunk_table import ChunkTable

_MOST_TRIES = 1 << 16


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
        """Return `count` pairs (chunk, start), each uniform over all valid starts or over those of the newest chunks.

        Args:
            rng: the source of chance.
            count: pairs to draw, with replacement.
            table: tells which starts are valid.
            valid: how many starts are valid in all; at least one.
            recent: probability that a pair is drawn from the newest chunks alone.
            recent_chunks: how many those are.
        """
        if recent > 0:
            low = max(0, self._count - recent_chunks)
            masks = table.column("valid")[self._ids[low : self._count] - table.base]
            valid_recent = int(np.bitwise_count(masks).sum())
            if valid_recent:
                newest = rng.random(count) < recent
                pairs = np.empty((count, 2), np.int64)
                pairs[newest] = self._draw_from(low, rng, int(newest.sum()), table, valid_recent)
                pairs[~newest] = self._draw_from(0, rng, int((~newest).sum()), table, valid)
                return [(int(chunk), int(start)) for chunk, start in pairs]
        return [(int(chunk), int(start)) for chunk, start in self._draw_from(0, rng, count, table, valid)]

    def _draw_from(self, low: int, rng: np.random.Generator, count: int, table: ChunkTable, valid: int) -> np.ndarray:
        """Return (count, 2) pairs over the entries from `low` on: try any bit of any chunk until enough were valid."""
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
