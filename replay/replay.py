"""The replay: stores chunks and samples sequences of them. A plain class; `ray_replay.py` makes a process of it."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import check_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.compressed_batch import CompressedBatch, DamagedSliceError, PinnedSlice, read_batch
from dreamfleet.replay.index import ChunkSlice, Index
from dreamfleet.replay.interface import Counters, NotEnoughExperienceError, Shortage
from dreamfleet.replay.segment import SegmentHeader
from dreamfleet.replay.segment_log import SegmentLog, segment_size, whole_capacity_gb

_LOG = logging.getLogger(__name__)


class Replay:
    """A `Shard` on this machine's disk: drops the oldest chunks when there are too many.

    All methods may be called from several threads; sampling waits for appending only while the index changes.

    Args:
        directory: where to store; created if it is not there, reopened with all it holds if it is.
        settings: capacity and how to sample; of a shard among several, what `shards.plan_shards` gives.
        sequence_length: T, in steps.
        lock_wait_s: how long to wait for another process that has the directory open.
        read_only: change nothing and take no lock, so that another process may be writing. Only what was stored when it
            was opened is visible, and nothing may be appended.

    Raises:
        UserError: if the directory is in use, holds steps of another format, or the capacity is too small to work with.
    """

    def __init__(
        self,
        directory: Path,
        step_format: StepFormat,
        settings: ReplaySettings,
        sequence_length: int,
        seed: int,
        lock_wait_s: float = 0,
        read_only: bool = False,
    ) -> None:
        self._step_format = step_format
        self._settings = settings
        self._length = sequence_length
        self._seed = seed
        self.directory = directory
        self._capacity = (int(settings.capacity_gb * 1e9), settings.capacity_steps)
        full_segment = segment_size(settings, step_format)
        if not read_only:
            directory.mkdir(parents=True, exist_ok=True)
        self._directory_lock = None if read_only else DirectoryLock(directory, lock_wait_s)
        self._writing = threading.Lock()  # taken before `_lock`; held through writes and syncs, which may be slow
        self._lock = threading.Lock()  # guards the index and the segments' pins; never held while waiting for a disk
        self._duplicates = self._damaged_chunks = 0
        self._retired: set[tuple[int, int]] = set()
        self._steps_of: Counter[tuple[int, int]] = Counter()  # stored since the opening, by actor and incarnation
        self._is_closed = False
        self._fault: OSError | None = None
        try:
            self._index = Index(sequence_length, settings.across_episodes, settings.held_out_every)
            self._log = SegmentLog(directory, step_format, *full_segment, read_only)
            self._recover()
        except BaseException:
            if self._directory_lock:
                self._directory_lock.release()
            raise

    def append(self, chunk: bytes | memoryview | np.ndarray) -> bool:
        """See `Shard.append`."""
        if not self._directory_lock:
            raise UserError(f"{self.directory} was opened to be read only: nothing can be stored in it.")
        view = chunk.data if isinstance(chunk, np.ndarray) else memoryview(chunk)
        header = check_chunk(self._step_format, view)
        with self._writing:
            incarnation = header.key.actor, header.key.incarnation
            if incarnation in self._retired:
                return False
            with self._lock:
                if self._index.knows(header.key):
                    self._duplicates += 1
                    return False
            try:
                size = (len(view), header.steps)
                if self._log.is_full(*size) or self._log.excess(*self._capacity, room=size):
                    self._roll()
                location = self._log.append(view, header.steps)
                self._steps_of[incarnation] += header.steps
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise UserError(
                        f"{self.directory}: the disk is full at {self._log.bytes_stored / 1e9:.2f} GB of replay: free "
                        f"some space, or lower replay.capacity_gb, which is {whole_capacity_gb(self._settings)}."
                    ) from error
                self._fault = error
                raise
            with self._lock:
                self._index.add(header, location)
        return True

    def sample(self, batch_number: int, batch_size: int) -> CompressedBatch:
        """See `ExperienceReplay.sample`."""
        rng = np.random.default_rng(derive_seed(self._seed, "sample", batch_number))
        while True:
            with self._lock:
                if not self._index.valid_starts:
                    raise NotEnoughExperienceError(
                        f"{self._index.steps} steps in {self._index.chunks} chunks hold no sequence of "
                        f"{self._length} steps to train on"
                    )
                recent = (self._settings.recent_fraction, self._settings.recent_steps)
                pinned = self._pin(self._index.draw(rng, batch_size, *recent))
            batch = self._read(pinned, batch_size, self._length)
            if batch is not None:
                return batch

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """See `ExperienceReplay.sample_held_out`."""
        rng = np.random.default_rng(derive_seed(self._seed, "sample held out", batch_number))
        while True:
            with self._lock:
                slices = self._index.draw_held_out(rng, batch_size, length)
                if slices is None:
                    return None
                pinned = self._pin(slices)
            batch = self._read(pinned, batch_size, length)
            if batch is not None:
                return batch

    def counters(self) -> Counters:
        """See `ExperienceReplay.counters`."""
        if self._fault:
            raise OSError(*self._fault.args)
        return Counters(self._log.total_steps, self._index.valid_starts, self._index.next_incarnation)

    def shortage(self) -> Shortage:
        """See `ExperienceReplay.shortage`."""
        with self._lock:
            index = self._index
            dropped = self._log.total_steps - index.steps
            return Shortage(
                self._length, self._settings.across_episodes, index.steps, dropped, index.streams, *index.longest()
            )

    def log_records(self) -> list[LogRecord]:
        """Return none: this process writes its own log."""
        return []

    def retire(self, actor: int, incarnation: int) -> int:
        """See `ExperienceReplay.retire`."""
        with self._writing:
            self._retired.add((actor, incarnation))
            return self._steps_of[actor, incarnation]

    def stats(self) -> dict[str, float]:
        """See `ExperienceReplay.stats`."""
        with self._lock:
            oldest, newest = self._index.versions()
            return {
                "steps": self._index.steps,
                "total_steps": self._log.total_steps,
                "dropped_steps": self._log.total_steps - self._index.steps,
                "episodes": self._index.episodes,
                "chunks": self._index.chunks,
                "valid_starts": self._index.valid_starts,
                "bytes_stored": self._log.bytes_stored,
                "bytes_raw": self._index.steps * self._step_format.step_bytes,
                "segments": self._log.count,
                "duplicates": self._duplicates,
                "damaged_chunks": self._damaged_chunks,
                "damaged_bytes": self._log.damaged_bytes,
                "oldest_version": oldest,
                "newest_version": newest,
                "index_bytes": self._index.memory_bytes(),
            }

    def sync(self) -> None:
        """See `ExperienceReplay.sync`."""
        if self._directory_lock:
            with self._writing:
                self._log.sync()

    def close(self) -> None:
        """See `ExperienceReplay.close`; a second call does nothing."""
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
            if self._directory_lock:
                self._log.sync()  # before `_lock` is taken, since it may be slow
            with self._lock:
                self._log.close()
            if self._directory_lock:
                self._directory_lock.release()

    def _recover(self) -> None:
        """Fill the index from the log, and drop what is too much for a capacity that became smaller."""
        for header, location in self._log.recover():
            if not self._index.knows(header.key):
                self._index.add(header, location)
        self._index.remember_dropped(self._log.newest_header.dropped)
        self._index.next_incarnation = max(self._index.next_incarnation, self._log.newest_header.next_incarnation)
        if self._directory_lock and self._log.excess(*self._capacity):
            stored = self._index.steps
            self._roll()
            sentence = "%s: the oldest %d of %d steps were dropped: they are more than its capacity by the settings"
            _LOG.warning(sentence, self.directory, stored - self._index.steps, stored)

    def _roll(self) -> None:
        """Begin a new segment and drop the oldest ones, so that what is kept and the new one when full fit."""
        excess = self._log.excess(*self._capacity, self._log.full_segment)
        with self._lock:
            self._index.evict(excess)
            header = SegmentHeader(
                self._step_format.to_json(), self._log.total_steps, self._index.next_incarnation, self._index.dropped()
            )
        # The new header names what is dropped before it is dropped, so that a crash in between forgets nothing.
        self._log.roll(header)
        with self._lock:
            self._log.drop(excess)

    def _pin(self, slices: list[ChunkSlice]) -> list[PinnedSlice]:
        """Look up where the slices lie and keep their files readable; the lock is held."""
        pinned = []
        for part in slices:
            entry = self._index.entry(part.chunk)
            segment = self._log.segment(entry.segment)
            segment.pin()
            pinned.append(PinnedSlice(part, segment, entry.offset, entry.front_bytes))
        return pinned

    def _read(self, pinned: list[PinnedSlice], batch_size: int, length: int) -> CompressedBatch | None:
        """Read the slices; if one is damaged take its chunk out, so that the next draw avoids it, and return None."""
        try:
            return read_batch(self._step_format, batch_size, length, pinned)
        except DamagedSliceError as error:
            with self._lock:
                entry = self._index.entry(error.chunk) if self._index.holds(error.chunk) else None
                self._index.remove(error.chunk)
                self._damaged_chunks += entry is not None
            if entry is not None:
                sentence = (
                    "%s: the chunk at byte %d of segment %d is damaged and passed over, its %d steps are lost: %s"
                )
                _LOG.warning(sentence, self.directory, entry.offset, entry.segment, entry.steps, error)
            return None
        except OSError as error:
            self._fault = error
            raise
        finally:
            with self._lock:
                for part in pinned:
                    part.segment.unpin()
