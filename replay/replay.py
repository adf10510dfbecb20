"""The replay: stores chunks and samples sequences of them. A plain class; `ray_replay.py` makes a process of it."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import check_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.compressed_batch import CompressedBatch
from dreamfleet.replay.index import Index
from dreamfleet.replay.interface import Counters, Shortage
from dreamfleet.replay.sampler import Sampler
from dreamfleet.replay.segment_header import SegmentHeader
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
        self.directory = directory
        self._capacity = (int(settings.capacity_gb * 1e9), settings.capacity_steps)
        full_segment = (0, 0) if read_only else segment_size(settings, step_format)
        if not read_only:
            directory.mkdir(parents=True, exist_ok=True)
        self._directory_lock = None if read_only else DirectoryLock(directory, lock_wait_s)
        self._writing = threading.Lock()  # taken before `_lock`; held through writes and syncs, which may be slow
        self._lock = threading.Lock()  # guards the index and the segments' pins; never held while waiting for a disk
        self._duplicates = 0
        self._retired: set[tuple[int, int]] = set()
        self._steps_of: Counter[tuple[int, int]] = Counter()  # stored since the opening, by actor and incarnation
        self._is_closed = False
        self._fault: OSError | None = None
        try:
            self._index = Index(sequence_length, settings.across_episodes, settings.held_out_every)
            self._log = SegmentLog(directory, step_format, *full_segment, read_only, settings.shards)
            arguments = (directory, step_format, settings, sequence_length, seed)
            self._sampler = Sampler(self._index, self._log, self._lock, *arguments)
            self._recover()
        except BaseException:
            if hasattr(self, "_log"):
                self._log.abandon()
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
                self._sampler.note_arrival()
        return True

    def sample(self, batch_number: int, batch_size: int) -> CompressedBatch:
        """See `ExperienceReplay.sample`."""
        return self._sampler.sample([batch_number], [batch_size])[0]

    def sample_several(
        self, batch_numbers: Sequence[int], batch_sizes: Sequence[int], machine: str = ""
    ) -> list[CompressedBatch]:
        """See `ExperienceReplay.sample_several`."""
        return self._sampler.sample(batch_numbers, batch_sizes, machine)

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """See `ExperienceReplay.sample_held_out`."""
        return self._sampler.sample_held_out(batch_number, batch_size, length)

    def counters(self) -> Counters:
        """See `ExperienceReplay.counters`."""
        fault = self._fault or self._sampler.fault
        if fault:
            raise OSError(*fault.args)
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
        kept_decoded = self._sampler.stats()
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
                "damaged_chunks": self._sampler.damaged_chunks,
                "damaged_bytes": self._log.damaged_bytes,
                "oldest_version": oldest,
                "newest_version": newest,
                "index_bytes": self._index.memory_bytes(),
            } | kept_decoded

    def sync(self) -> None:
        """See `ExperienceReplay.sync`."""
        if self._directory_lock:
            with self._writing:
                self._log.sync()

    def close(self) -> int:
        """See `ExperienceReplay.close`; a second call does nothing."""
        with self._writing:
            if self._is_closed:
                return self._log.total_steps
            self._is_closed = True
            self._sampler.close()
            if self._directory_lock:
                self._log.sync()  # before `_lock` is taken, since it may be slow
            with self._lock:
                self._log.close()
            if self._directory_lock:
                self._directory_lock.release()
            return self._log.total_steps

    def _recover(self) -> None:
        """Fill the index from the log, and drop what is too much for a capacity that became smaller."""
        for header, location in self._log.recover():
            if not self._index.knows(header.key):
                self._index.add(header, location)
        self._index.remember_dropped(self._log.newest_header.dropped)
        self._index.next_incarnation = max(self._index.next_incarnation, self._log.newest_header.next_incarnation)
        if self._directory_lock and (self._log.lacks_newest or self._log.excess(*self._capacity)):
            stored = self._index.steps
            self._roll()
            sentence = "%s: the oldest %d of %d steps were dropped: they are more than its capacity by the settings"
            if self._index.steps < stored:
                _LOG.warning(sentence, self.directory, stored - self._index.steps, stored)

    def _roll(self) -> None:
        """Begin a new segment and drop the oldest ones, so that what is kept and the new one when full fit."""
        excess = self._log.excess(*self._capacity, self._log.full_segment)
        with self._lock:
            self._index.evict(excess)
            header = SegmentHeader(
                self._step_format.to_json(), self._log.total_steps, self._index.next_incarnation, self._index.dropped()
            )
        self._log.roll(header, excess)
        with self._lock:
            self._log.drop(excess)
