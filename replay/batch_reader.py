"""The batch reader: training batches as arrays, by their numbers, for a process that trains.

A call costs the replay more than a batch does. So a reader that may draw ahead has several batches drawn by one call:
twice as many each time, and fewer once some were not read soon after; those are drawn anew, for what is stored then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.compressed_batch import CompressedBatch, decompress
from dreamfleet.replay.interface import ExperienceReplay
from dreamfleet.replay.mapped_cache import (
    CacheHandle,
    CacheUnreachableError,
    MappedCache,
    OverwrittenError,
    this_machine,
)

_LOG = logging.getLogger(__name__)
_MOST_AT_ONCE = 32
_MOST_BYTES_AT_ONCE = 4e6
_TRIES = 3
"""Times in a row that a cache cannot be mapped before no more is asked for what is in it."""
FRESH_S = 1.0
"""For how long a batch that was drawn ahead is taken for what would be drawn now."""


class _Drawn(NamedTuple):
    batch: CompressedBatch
    at: float


class BatchReader:
    """Reads batches; several threads may do so at once.

    Steps that the replay keeps decoded on this machine are copied from its memory, the others are decompressed. The
    arrays are the same either way.

    Args:
        ahead: whether batches may be drawn ahead, for numbers that follow the one that is read.
        every: how far apart the numbers are that this reader reads.
    """

    def __init__(
        self, replay: ExperienceReplay, step_format: StepFormat, batch_size: int, ahead: bool, every: int = 1
    ) -> None:
        self._replay = replay
        self._format = step_format
        self._size = batch_size
        self._every = every
        self._at_once = self._fitting = 1
        self._most = _MOST_AT_ONCE if ahead else 1
        self._machine = this_machine()
        self._changed = threading.Condition()
        self._drawn: dict[int, _Drawn] = {}
        self._coming: set[int] = set()
        self._caches: dict[CacheHandle, MappedCache] = {}
        self._unreachable = 0

    def read(self, number: int, threads: int = 2, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Return the arrays of a batch, (B, T, *shape) each; for the arguments and the errors see `decompress`.

        Raises:
            NotEnoughExperienceError: if no sequence can be cut yet.
        """
        batch = self._take(number)
        try:
            return decompress(batch, self._format, threads, out, self._map(batch.caches))
        except OverwrittenError:
            pass
        except CacheUnreachableError as error:  # the replay's process was replaced since, or it is so for good
            self._unreachable += 1
            if self._unreachable == _TRIES:
                _LOG.warning("batches are decompressed, since what the replay keeps decoded is out of reach: %s", error)
                self._machine = ""
        return decompress(self._replay.sample(number, self._size), self._format, threads, out)

    def _take(self, number: int) -> CompressedBatch:
        """Return a batch that was drawn ahead; else draw it, and perhaps some more."""
        with self._changed:
            self._changed.wait_for(lambda: number not in self._coming)
            now = time.monotonic()
            fresh = {n: drawn for n, drawn in self._drawn.items() if now < drawn.at + FRESH_S}
            was_slow, self._drawn = len(fresh) < len(self._drawn), fresh
            if number in fresh:
                return fresh.pop(number).batch
            self._at_once = max(1, min(2 * self._at_once, self._most, self._fitting))
            if was_slow:
                self._at_once = max(1, self._at_once // 4)
            numbers = self._claim(number)
        try:
            batches = self._replay.sample_several(numbers, [self._size] * len(numbers), self._machine)
            with self._changed:
                self._drawn |= {n: _Drawn(batch, now) for n, batch in zip(numbers, batches, strict=True)}
                self._fitting = int(_MOST_BYTES_AT_ONCE / batches[0].nbytes)
                return self._drawn.pop(number).batch
        finally:
            with self._changed:
                self._coming -= set(numbers)
                self._changed.notify_all()

    def _claim(self, number: int) -> list[int]:
        """Return the numbers of the batches to draw now: this one, and those after it that nobody has drawn."""
        numbers = []
        for following in range(number, number + self._every * self._at_once, self._every):
            if following in self._coming or following in self._drawn:
                break
            numbers.append(following)
        self._coming |= set(numbers)
        return numbers

    def _map(self, handles: Sequence[CacheHandle]) -> list[MappedCache]:
        """Return these caches, mapped; those that no batch names any more are let go, and their memory with them."""
        with self._changed:
            if self._caches.keys() != set(handles):
                named = {handle for drawn in self._drawn.values() for handle in drawn.batch.caches} | {*handles}
                kept = {handle: cache for handle, cache in self._caches.items() if handle in named}
                mapped = {handle: MappedCache(handle, self._format) for handle in handles if handle not in kept}
                self._caches = kept | mapped
                if mapped:
                    self._unreachable = 0
            return [self._caches[handle] for handle in handles]
