"""The sampler: draws batches from a replay's index, and reads them from its log or finds them decoded already."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import chunk_size
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.cache_filler import CacheFiller, open_cache
from dreamfleet.replay.compressed_batch import CompressedBatch
from dreamfleet.replay.index import Index
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.mapped_cache import this_machine
from dreamfleet.replay.pinned_slices import DamagedSliceError, PinnedSlice, read_batch
from dreamfleet.replay.segment import Segment
from dreamfleet.replay.segment_log import SegmentLog
from dreamfleet.replay.slices import Slices, one_by_one

_LOG = logging.getLogger(__name__)


class _Drawn(NamedTuple):
    """A batch as it was drawn: the slices to read, and those that are kept decoded, as `CompressedBatch.kept`."""

    pinned: list[PinnedSlice]
    kept: np.ndarray


def _kept_of(slices: Slices) -> np.ndarray:
    sequence, at, _, start, stop, begins, number = slices.T
    return np.array([sequence, at, stop - start, begins, number, np.zeros_like(number)]).T


class Sampler:
    """Draws and reads batches; all methods may be called from several threads.

    Args:
        lock: guards the index and the segments' pins; it is never held while waiting for a disk.
        directory: what the log calls the replay.

    Attributes:
        damaged_chunks: chunks that were found damaged, and taken out of the index.
        fault: the error with which reading failed, if it did.
    """

    def __init__(
        self,
        index: Index,
        log: SegmentLog,
        lock: threading.Lock,
        directory: Path,
        step_format: StepFormat,
        settings: ReplaySettings,
        sequence_length: int,
        seed: int,
    ) -> None:
        self._index = index
        self._log = log
        self._lock = lock
        self._directory = directory
        self._step_format = step_format
        self._settings = settings
        self._length = sequence_length
        self._seed = seed
        self.damaged_chunks = 0
        self.fault: OSError | None = None
        self._filler: CacheFiller | None = None
        self._cache_was_opened = False

    def sample(
        self, batch_numbers: Sequence[int], batch_sizes: Sequence[int], machine: str = ""
    ) -> list[CompressedBatch]:
        """See `ExperienceReplay.sample_several`."""
        filler = self._open_cache(machine)
        rngs = [np.random.default_rng(derive_seed(self._seed, "sample", number)) for number in batch_numbers]
        with self._lock:
            drawn = self._draw(rngs, batch_sizes, filler)
        batches: list[CompressedBatch] = []
        try:
            for rng, size in zip(rngs, batch_sizes, strict=True):
                while (batch := self._read(drawn.pop(0), size, self._length, filler)) is None:
                    with self._lock:
                        drawn[:0] = self._draw([rng], [size], filler)
                batches.append(batch)
        finally:
            self._unpin(part.segment for one in drawn for part in one.pinned)
        return batches

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """See `ExperienceReplay.sample_held_out`."""
        rng = np.random.default_rng(derive_seed(self._seed, "sample held out", batch_number))
        while True:
            with self._lock:
                slices = self._index.draw_held_out(rng, batch_size, length)
                if slices is None:
                    return None
                drawn = _Drawn(self._pin(slices), _kept_of(slices[:0]))
            batch = self._read(drawn, batch_size, length, None)
            if batch is not None:
                return batch

    def note_arrival(self) -> None:
        """Take note of the steps that the index took in; the lock is held."""
        if self._filler:
            self._filler.cache.arrive(self._index.arrived)

    def stats(self) -> dict[str, float]:
        """Return how many steps are kept decoded, and the bytes of memory that they take."""
        cache = self._filler.cache if self._filler else None
        return {"decoded_steps": cache.steps if cache else 0, "decoded_bytes": cache.nbytes if cache else 0}

    def close(self) -> None:
        """Give up what is kept decoded."""
        with self._lock:
            filler, self._filler, self._cache_was_opened = self._filler, None, True
        if filler:
            filler.close()

    def _open_cache(self, machine: str) -> CacheFiller | None:
        """Return the cache for readers on this machine, opened by the first of them; None for all others."""
        if not machine or machine != this_machine():
            return None
        with self._lock:
            if not self._cache_was_opened:
                self._cache_was_opened = True
                self._filler = open_cache(self._settings, self._step_format, self._index.arrived, self._read_chunk)
                self.note_arrival()
            return self._filler

    def _draw(
        self, rngs: Sequence[np.random.Generator], batch_sizes: Sequence[int], filler: CacheFiller | None
    ) -> list[_Drawn]:
        """Draw batches and pin what must be read for them; the lock is held."""
        if not self._index.valid_starts:
            raise NotEnoughExperienceError(
                f"{self._index.steps} steps in {self._index.chunks} chunks hold no sequence of "
                f"{self._length} steps to train on"
            )
        recent = (self._settings.recent_fraction, self._settings.recent_steps)
        starts = [self._index.draw(rng, size, *recent) for rng, size in zip(rngs, batch_sizes, strict=True)]
        slices = self._index.cut(np.concatenate(starts))
        firsts = np.cumsum([0, *batch_sizes])
        edges = np.searchsorted(slices[:, 0], firsts)
        slices[:, 0] -= np.repeat(firsts[:-1], np.diff(edges))
        held = filler.held(slices) if filler else np.zeros(len(slices), bool)
        kept = _kept_of(slices)
        if held.all():
            return [_Drawn([], kept[a:b]) for a, b in pairwise(edges.tolist())]
        batches = [(slices[a:b], kept[a:b], held[a:b]) for a, b in pairwise(edges.tolist())]
        return [_Drawn(self._pin(own[~here]), own_kept[here]) for own, own_kept, here in batches]

    def _pin(self, slices: Slices) -> list[PinnedSlice]:
        """Look up where the slices lie and keep their files readable; the lock is held."""
        pinned = []
        for part in one_by_one(slices):
            entry = self._index.entry(part.chunk)
            segment = self._log.segment(entry.segment)
            segment.pin()
            pinned.append(PinnedSlice(part, segment, entry.offset, entry.front_bytes))
        return pinned

    def _read_chunk(self, chunk: int) -> bytes | None:
        """Return a whole chunk as it is stored, or None if it was dropped."""
        with self._lock:
            if not self._index.holds(chunk):
                return None
            entry = self._index.entry(chunk)
            segment = self._log.segment(entry.segment)
            segment.pin()
        try:
            _, size = chunk_size(segment.read(entry.offset, entry.front_bytes))
            return segment.read(entry.offset, size)
        except DamagedChunkError:
            return b""
        finally:
            self._unpin([segment])

    def _read(self, drawn: _Drawn, batch_size: int, length: int, filler: CacheFiller | None) -> CompressedBatch | None:
        """Read what was drawn; if a chunk is damaged take it out, so that the next draw avoids it, and return None."""
        caches = (filler.cache.handle,) if filler and len(drawn.kept) else ()
        try:
            return read_batch(self._step_format, batch_size, length, drawn.pinned, drawn.kept, caches)
        except DamagedSliceError as error:
            with self._lock:
                entry = self._index.entry(error.chunk) if self._index.holds(error.chunk) else None
                self._index.remove(error.chunk)
                self.damaged_chunks += entry is not None
            if entry is not None:
                sentence = (
                    "%s: the chunk at byte %d of segment %d is damaged and passed over, its %d steps are lost: %s"
                )
                _LOG.warning(sentence, self._directory, entry.offset, entry.segment, entry.steps, error)
            return None
        except OSError as error:
            self.fault = error
            raise
        finally:
            self._unpin(part.segment for part in drawn.pinned)

    def _unpin(self, segments: Iterable[Segment]) -> None:
        with self._lock:
            for segment in segments:
                segment.unpin()
