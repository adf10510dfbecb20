"""What a replay answers, wherever it is: in this process, in another one, or as several shards together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.replay.compressed_batch import CompressedBatch

_ENOUGH_SEQUENCES = 20
"""A replay with steps for this many sequences shows how long the episodes of a random policy are."""
_ENOUGH_STREAMS = 10
"""This many streams for each environment show how many steps one has before it breaks off."""


class NotEnoughExperienceError(Exception):
    """No sequence of the wanted length can be cut from what is stored yet."""


class ReplayLostError(RunFailedError):
    """A replay's process does not answer and was not restarted in time, or no shard of a replay is left."""


class Counters(NamedTuple):
    """What a replay counts.

    Attributes:
        total_steps: environment steps ever stored, each once, those dropped since included.
        valid_starts: steps at which a training sequence may start.
        next_incarnation: 1 + the greatest incarnation of any chunk ever stored; 0 if there was none.
    """

    total_steps: int
    valid_starts: int
    next_incarnation: int


class Shortage(NamedTuple):
    """What a replay without a valid start holds.

    Attributes:
        length: T, steps of a training sequence.
        across_episodes: whether a sequence may continue into the next episode.
        steps: steps stored now; `dropped` were stored before.
        streams: streams of which something is stored: one for each environment in each incarnation of its actor.
        longest_stream: most consecutive steps of one stream.
        longest_episode: most consecutive steps of one episode that are not held out.
    """

    length: int
    across_episodes: bool
    steps: int
    dropped: int
    streams: int
    longest_stream: int
    longest_episode: int

    @staticmethod
    def of_all(shards: Sequence[Shortage]) -> Shortage:
        """Return the shortage of several shards together."""
        _, _, steps, dropped, streams, stream, episode = zip(*shards, strict=True)
        return Shortage(*shards[0][:2], sum(steps), sum(dropped), sum(streams), max(stream), max(episode))

    def cause(self, share: float, environments: int, collected: int) -> str:
        """Return in words why more steps of the same kind would not help; nothing while they may.

        `share` of all steps to be collected are; `environments` of all actors step at a time; `collected` steps are
        from this start of the run.
        """
        if self.longest_stream >= self.length:
            may_help = share < 1 and self.steps < _ENOUGH_SEQUENCES * self.length
            return "" if may_help else self._cause_in_episodes(share)
        most = f"at most {self.longest_stream} consecutive steps in each"
        if self.dropped and collected >= self.steps:
            return (
                f"the replay keeps {self.steps}, {most} of {self.streams} streams, and drops older ones: "
                "raise replay.capacity_steps or replay.capacity_gb, or lower learner.sequence_length"
            )
        if self.streams >= _ENOUGH_STREAMS * environments:
            return (
                f"they are of {self.streams} short streams of environments, {most}: see in the log what ends them, or "
                f"set learner.sequence_length to {self.longest_stream} or less"
            )
        if share >= 1 or 2 * self.longest_stream < share * self.length:  # streams grow one after another
            return (
                f"they are of {self.streams} environments, {most}: raise train.env_steps, or lower "
                "actors.count, actors.environments or learner.sequence_length"
            )
        return ""

    def _cause_in_episodes(self, share: float) -> str:
        """Return the cause where there are streams that are long enough."""
        if self.across_episodes:  # a held-out run ends after some steps, or with the training run
            return "" if share < 1 else "they are held out; raise train.env_steps, or set replay.held_out_every to 0"
        return (
            f"the longest episode has {self.longest_episode} steps, and with replay.across_episodes false a sequence "
            f"stays within one: set that to true, or learner.sequence_length to {self.longest_episode} or less"
        )


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

    def sample_several(
        self, batch_numbers: Sequence[int], batch_sizes: Sequence[int], machine: str = ""
    ) -> list[CompressedBatch]:
        """Return what `sample` would return for each of these numbers and sizes at this moment, by one call.

        For a reader on `machine`, as `mapped_cache.this_machine` names it, what is kept decoded there does not travel:
        the batch says where it lies. The sequences are the same.

        Raises:
            NotEnoughExperienceError: if no sequence can be cut yet.
        """

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """Return sequences of `length` steps of one episode that are never trained on; None if there is none."""

    def counters(self) -> Counters:
        """Return what is stored, in numbers.

        Raises:
            OSError: if reading or writing failed before, so that a bad disk does not go unnoticed.
        """

    def stats(self) -> dict[str, float]:
        """Return what is stored, in steps, chunks and bytes, and the bytes of memory that the index takes."""

    def shortage(self) -> Shortage:
        """Return why no training sequence can be cut from what is stored; this looks at every step."""

    def retire(self, actor: int, incarnation: int) -> int:
        """Store nothing more of this incarnation; return the steps stored of it since the replay was opened.

        Chunks of it may still be on their way, from a process that was killed or cut off. The fleet has its missing
        steps collected by others; stored later, they would be more than were asked for.
        """

    def log_records(self) -> list[LogRecord]:
        """Return what the replay's own processes logged since the last call, such as what was damaged."""

    def sync(self) -> None:
        """Wait until everything stored is on the disk itself, so that it survives the machine's end."""

    def close(self) -> int:
        """Sync, close all files and release the directory; end the replay's process if it has one.

        Nothing is stored any more. Return how many steps were, in all: actors that still run may have sent some since
        the last count.
        """


class Shard(ExperienceReplay, Protocol):
    """A replay that stores chunks in one directory: a `Replay` or the client of one on Ray."""

    @property
    def directory(self) -> Path | None:
        """Where it stores, if that is known."""

    def append(self, chunk: bytes) -> bool:
        """Store an encoded chunk; True if it is new, False if it was stored before or its incarnation is retired.

        Once this returns, the chunk outlives the replay's process, by SIGKILL too.

        Raises:
            DamagedChunkError: if the bytes are damaged or of another format.
            UserError: if the disk is full, or the replay was opened read-only.
        """


class DirectChunkWriter:
    """Stores chunks in a shard of the same process."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def append(self, chunk: bytes) -> None:
        """Store a chunk."""
        self._shard.append(chunk)

    def flush(self, timeout_s: float) -> None:
        """Return at once: whatever was appended is stored."""
