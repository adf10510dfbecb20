"""The replay: stores chunks, and gives back sequences to train on. A plain class; `server.py` makes a process of it."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import check_record
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.capacity import segment_size, whole_capacity_gb
from dreamfleet.replay.compressed_batch import CompressedBatch, DamagedPieceError, Source, pack
from dreamfleet.replay.index import ChunkSlice, Index
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.segment import SegmentHeader
from dreamfleet.replay.segment_log import SegmentLog
from dreamfleet.replay.shortage import Shortage

_LOG = logging.getLogger(__name__)


class Replay:
    """Stores chunks on disk, the oldest of which go when there are too many, and samples sequences of T steps.

    All methods may be called from several threads; sampling waits for appending only while the index changes.

    Args:
        directory: where to store; created if it is not there, reopened with all it holds if it is.
        step_format: the steps' format.
        settings: capacity and how to sample; of a shard among several, what `shards.share_of` gives.
        sequence_length: T, in steps.
        seed: of what is drawn.
        lock_wait_s: how long to wait for another process that has the directory open.
        read_only: change nothing in the directory and take no lock, so that another process may be writing to it: seen
            is what was stored when it was opened. Nothing may be appended.

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
        self._directory = directory
        self._capacity = (int(settings.capacity_gb * 1e9), settings.capacity_steps)
        segment_bytes, segment_steps = segment_size(settings, step_format)
        self._directory_lock = None if read_only else _lock_directory(directory, lock_wait_s)
        self._writing = threading.Lock()  # taken before `_lock`; held through writes and syncs, which may be slow
        self._lock = (
            threading.Lock()
        )  # guards the index and the pins of segments; never held while a disk is waited for
        self._duplicates = self._damaged_chunks = 0
        self._retired: set[tuple[int, int]] = set()
        self._lives: Counter[tuple[int, int]] = Counter()  # steps stored since this was opened, by actor and life
        self._is_closed = False
        self._fault: OSError | None = None
        try:
            self._index = Index(sequence_length, settings.across_episodes, settings.held_out_every)
            self._log = SegmentLog(directory, step_format, segment_bytes, segment_steps, read_only)
            self._recover()
        except BaseException:
            self._let_go()
            raise

    @property
    def directory(self) -> Path:
        """Where it stores."""
        return self._directory

    @property
    def total_steps(self) -> int:
        """Environment steps ever stored, each once, also those dropped since."""
        return self._log.total_steps

    @property
    def valid_starts(self) -> int:
        """Steps at which a sequence to train on may start."""
        return self._index.valid_starts

    @property
    def next_incarnation(self) -> int:
        """1 + the greatest incarnation of any chunk ever stored; 0 if there was none."""
        return self._index.next_incarnation

    def append(self, chunk: bytes | memoryview | np.ndarray) -> bool:
        """Store a record; True if it is new, False if its chunk was stored before.

        A record of a life that was retired is not stored either: nobody counts on it any more.
        Once this returns, the record outlives this process, by SIGKILL too.

        Raises:
            DamagedChunkError: if the bytes are damaged or of another format.
            UserError: if the disk is full, or the replay was opened read-only.
        """
        if not self._directory_lock:
            raise UserError(f"{self._directory} was opened to be read only: nothing can be stored in it.")
        view = chunk.data if isinstance(chunk, np.ndarray) else memoryview(chunk)
        header = check_record(self._step_format, view)
        with self._writing:
            life = header.key.actor, header.key.incarnation
            if life in self._retired:
                return False
            with self._lock:
                if self._index.knows(header.key):
                    self._duplicates += 1
                    return False
            try:
                if self._needs_roll(len(view), header.steps):
                    self._roll()
                location = self._log.append(view, header.steps)
                self._lives[life] += header.steps
            except OSError as error:
                self._refuse_full_disk(error)
                self._fault = error
                raise
            with self._lock:
                self._index.add(header, location)
        return True

    def sample(self, batch_number: int, batch_size: int) -> CompressedBatch:
        """Return `batch_size` sequences to train on, drawn with replacement.

        The draw depends on the run's seed, the number of the batch and what is stored, and on nothing else.

        Raises:
            NotEnoughExperienceError: if no sequence can be cut yet.
        """
        rng = np.random.default_rng(derive_seed(self._seed, "sample", batch_number))
        while True:
            with self._lock:
                if not self._index.valid_starts:
                    raise NotEnoughExperienceError(
                        f"{self._index.steps} steps in {self._index.chunks} chunks hold no sequence of "
                        f"{self._length} steps to train on"
                    )
                recent = (self._settings.recent_fraction, self._settings.recent_steps)
                sources = self._pin(self._index.draw(rng, batch_size, *recent))
            packed = self._pack(sources, batch_size, self._length)
            if packed is not None:
                return packed

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """Return windows of `length` steps of an episode that are never trained on; None if there is none."""
        rng = np.random.default_rng(derive_seed(self._seed, "sample held out", batch_number))
        while True:
            with self._lock:
                pieces = self._index.draw_held_out(rng, batch_size, length)
                if pieces is None:
                    return None
                sources = self._pin(pieces)
            packed = self._pack(sources, batch_size, length)
            if packed is not None:
                return packed

    def counters(self) -> tuple[int, int, int]:
        """Return (total_steps, valid_starts, next_incarnation).

        Raises:
            OSError: if reading or writing failed before: whoever asks for the counters is to hear of a bad disk.
        """
        if self._fault:
            raise OSError(*self._fault.args)
        return self.total_steps, self.valid_starts, self.next_incarnation

    def shortage(self) -> Shortage:
        """Return what is stored, for when no sequence to train on can be cut from it; this looks at every step."""
        with self._lock:
            index = self._index
            dropped = self._log.total_steps - index.steps
            return Shortage(
                self._length, self._settings.across_episodes, index.steps, dropped, index.streams, *index.longest()
            )

    def log_records(self) -> list[LogRecord]:
        """Return nothing: what it has to say is in the log of its process."""
        return []

    def retire(self, actor: int, incarnation: int) -> int:
        """Store nothing more of a life of an actor that is over; return how many of its steps were, since the opening.

        Chunks of it may be on their way still, from a process that was killed or one that was cut off and lives on. The
        fleet has its steps collected by others; stored later, they would be more than were asked for.
        """
        with self._writing:
            self._retired.add((actor, incarnation))
            return self._lives[actor, incarnation]

    def stats(self) -> dict[str, float]:
        """Return what is stored, in steps, chunks and bytes, and how much memory the index takes."""
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
        """Wait until everything stored outlives the machine's end too."""
        if self._directory_lock:
            with self._writing:
                self._log.sync()

    def close(self) -> None:
        """Sync, close all files and let go of the directory; a second call does nothing."""
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
            if self._directory_lock:
                self._log.sync()  # before `_lock` is taken, since it may be slow
            with self._lock:
                self._log.close()
            self._let_go()

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
            _LOG.warning("%s: the oldest %d of %d steps were dropped: they are more than its capacity by the settings",
                         self._directory, stored - self._index.steps, stored)  # fmt: skip

    def _needs_roll(self, record_bytes: int, steps: int) -> bool:
        """Whether the newest segment is full, or what is stored with this record would be more than the capacity."""
        return self._log.is_full(record_bytes, steps) or bool(self._log.excess(*self._capacity, (record_bytes, steps)))

    def _roll(self) -> None:
        """Begin a new segment and drop the oldest ones, so that what is kept and the new one when full fit."""
        excess = self._log.excess(*self._capacity, self._log.full_segment)
        with self._lock:
            self._index.evict(excess)
            header = SegmentHeader(
                self._step_format.to_json(), self._log.total_steps, self._index.next_incarnation, self._index.dropped()
            )
        # The new header tells what is dropped before it is dropped, so that a crash in between forgets nothing.
        self._log.roll(header)
        with self._lock:
            self._log.drop(excess)

    def _pin(self, pieces: list[ChunkSlice]) -> list[Source]:
        """Look up where the pieces lie and keep their files readable; the lock is held."""
        sources = []
        for piece in pieces:
            row = self._index.row(piece.chunk)
            segment = self._log.segment(row.segment)
            segment.pin()
            sources.append(Source(piece, segment, row.offset, row.front_bytes))
        return sources

    def _pack(self, sources: list[Source], batch_size: int, length: int) -> CompressedBatch | None:
        """Read the pieces; if one is damaged take its chunk out, so that the next draw avoids it, and return None."""
        try:
            return pack(self._step_format, batch_size, length, sources)
        except DamagedPieceError as error:
            with self._lock:
                row = self._index.row(error.chunk) if self._index.holds(error.chunk) else None
                self._index.remove(error.chunk)
                self._damaged_chunks += row is not None
            if row is not None:
                _LOG.warning(
                    "%s: the chunk at byte %d of segment %d is damaged and passed over, its %d steps are lost: %s",
                    self._directory, row.offset, row.segment, row.steps, error,
                )  # fmt: skip
            return None
        except OSError as error:
            self._fault = error
            raise
        finally:
            with self._lock:
                for source in sources:
                    source.segment.unpin()

    def _let_go(self) -> None:
        if self._directory_lock:
            self._directory_lock.release()

    def _refuse_full_disk(self, error: OSError) -> None:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UserError(
                f"{self._directory}: the disk is full at {self._log.bytes_stored / 1e9:.2f} GB of replay: free some "
                f"space, or lower replay.capacity_gb, which is {whole_capacity_gb(self._settings)}."
            ) from error


def _lock_directory(directory: Path, wait_s: float) -> DirectoryLock:
    directory.mkdir(parents=True, exist_ok=True)
    return DirectoryLock(directory, wait_s)
