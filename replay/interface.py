"""What a replay answers, wherever it is: in this process, in another one, or as several shards together."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.replay.compressed_batch import CompressedBatch
from dreamfleet.replay.shortage import Shortage


class NotEnoughExperienceError(Exception):
    """No sequence of the wanted length can be cut from what is stored yet."""


class ReplayLostError(RunFailedError):
    """A replay's process does not answer and was not restarted in time, or no shard of a replay is left."""


class ExperienceReplay(Protocol):
    """Environment steps to sample from: a `Replay`, the client of one on Ray, or several shards as one.

    A replay whose process is lost raises `ReplayLostError` from any method.
    """

    def sample(self, batch_number: int, batch_size: int) -> CompressedBatch:
        """Return `batch_size` sequences of T steps to train on, drawn with replacement.

        Each valid start is as likely as any other, but for the share that the settings draw from the newest steps. The
        draw depends on the run's seed, the number of the batch and what is stored, and on nothing else.

        Raises:
            NotEnoughExperienceError: if no sequence can be cut yet.
        """
        ...

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """Return sequences of `length` steps of one episode that are never trained on; None if there is none."""
        ...

    def counters(self) -> tuple[int, int, int]:
        """Return (total_steps, valid_starts, next_incarnation).

        `total_steps` counts environment steps ever stored, each once, those dropped since included; `valid_starts`
        counts steps at which a training sequence may start; `next_incarnation` is 1 + the greatest ever stored, or 0.

        Raises:
            OSError: if reading or writing failed before, so that a bad disk does not go unnoticed.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Return what is stored, in steps, chunks and bytes, and the bytes of memory that the index takes."""
        ...

    def shortage(self) -> Shortage:
        """Return why no training sequence can be cut from what is stored; this looks at every step."""
        ...

    def retire(self, actor: int, incarnation: int) -> int:
        """Store nothing more of this incarnation; return the steps stored of it since the replay was opened.

        Chunks of it may still be on their way, from a process that was killed or cut off. The fleet has its missing
        steps collected by others; stored later, they would be more than were asked for.
        """
        ...

    def log_records(self) -> list[LogRecord]:
        """Return what the replay's own processes logged since the last call, such as what was damaged."""
        ...

    def sync(self) -> None:
        """Wait until everything stored is on the disk itself, so that it survives the machine's end."""
        ...

    def close(self) -> None:
        """Sync, close all files and release the directory; end the replay's process if it has one."""
        ...


class Shard(ExperienceReplay, Protocol):
    """A replay that stores chunks in one directory: a `Replay` or the client of one on Ray."""

    @property
    def directory(self) -> Path | None:
        """Where it stores, if that is known."""
        ...

    def append(self, chunk: bytes) -> bool:
        """Store an encoded chunk; True if it is new, False if it was stored before or its incarnation is retired.

        Once this returns, the chunk outlives the replay's process, by SIGKILL too.

        Raises:
            DamagedChunkError: if the bytes are damaged or of another format.
            UserError: if the disk is full, or the replay was opened read-only.
        """
        ...


class DirectChunkWriter:
    """Stores chunks in a shard of the same process."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def append(self, chunk: bytes) -> None:
        """Store a chunk."""
        self._shard.append(chunk)

    def flush(self, timeout_s: float) -> None:
        """Return at once: whatever was appended is stored."""
