"""The pool of simulated workers with a real replay: shards that die or are opened anew, and steps counted from disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_chunks import counting_format, make_stream
from simulated_pool import SimulatedPool

from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.experience.chunk import ChunkKey, encode_chunk
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.workers.pool import Worker, WorkerFailedError
from dreamfleet.replay.interface import ReplayLostError
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.sharded import ShardedReplay, shard_of
from dreamfleet.replay.shards import plan_shards

FORMAT = counting_format()
_CHUNK_STEPS = 16


class UnansweredError(ReplayLostError):
    """A chunk lies on disk, and its shard died before it said so."""


class MortalShard:
    """A shard in this process that may be lost until the run is started again, or die and be opened anew unseen."""

    def __init__(self, plan: Any, length: int, dies: Mapping[int, str]) -> None:
        self._open = lambda: Replay(plan.directory, FORMAT, plan.settings, length, plan.seed)
        self.directory = plan.directory
        self._replay = self._open()
        self._dies = dies
        self._appends = 0
        self._is_lost = False

    def append(self, chunk: bytes) -> bool:
        """Store a chunk, unless the shard's life ends with this one: before it is stored, or before that is answered.

        Raises:
            UnansweredError: if it is stored, and nobody knows.
            ReplayLostError: if it is not.
        """
        self._appends += 1
        fate = self._dies.get(self._appends, "")
        stored = fate != "lost before" and self._alive().append(chunk)
        self._is_lost |= fate.startswith("lost")
        if fate == "lost after" and stored:
            raise UnansweredError("the simulated shard is gone")
        self._alive()
        if fate == "restarted":  # the answer is lost with the process, and who sent the chunk sends it again
            self._replay.close()
            self._replay = self._open()
            assert not self._replay.append(chunk), "a chunk that was stored is stored again"
        return stored

    def _alive(self) -> Replay:
        if self._is_lost:
            raise ReplayLostError("the simulated shard is gone")
        return self._replay

    @property
    def stored(self) -> int:
        """Steps on its disk, also of one that is lost."""
        return self._replay.counters().total_steps

    def end(self) -> None:
        """Let go of the directory, as a process does that is gone."""
        self._replay.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._alive(), name)


@dataclass
class StoringPool(SimulatedPool):
    """Simulated workers whose steps are stored in real shards, in a folder that is deleted with `close`.

    Attributes:
        shards: their number.
        shard_dies: for each shard, which of its appends in the first start end it, and how.
        unanswered: steps that lie on disk, and no actor knew until their shard was opened again.
        unknown: steps that lie on disk, and the fleet did not know then: their shard died before it was asked again.
    """

    shards: int = 1
    shard_dies: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unanswered = self.unknown = 0
        self._folder = tempfile.TemporaryDirectory()
        self._opened: list[MortalShard] = []
        self._writes_to: dict[Worker, tuple[int, int, int]] = {}  # actor, incarnation, shard
        self._chunks: dict[Worker, tuple[int, int]] = {}  # chunks and steps that it has sent

    def open(self) -> None:
        """Open the shards from what lies on disk, as a new start of the run does; from the second on they live."""
        for shard in self._opened:
            shard.end()
        settings = ReplaySettings(shards=self.shards, capacity_gb=0.1, held_out_every=0, cache_gb=0.0)
        plans = plan_shards(Path(self._folder.name), settings, self.sequence_length, 1)
        deaths = self.shard_dies if not self._opened else {}
        self._opened = [
            MortalShard(plan, self.sequence_length, deaths.get(number, {})) for number, plan in enumerate(plans)
        ]
        self._sharded = ShardedReplay(self._opened, 1)  # type: ignore[arg-type]

    def on_disk(self) -> int:
        """Return the steps that lie on disk, by a replay opened for that."""
        self.open()
        return self._sharded.counters().total_steps

    def count_unknown(self) -> None:
        """Take note of what lies in shards that were lost in this start and the fleet was not told of."""
        counted = self._sharded._counters
        for number in set(range(self.shards)) - set(self._sharded.alive):
            self.unknown += self._opened[number].stored - counted[number].total_steps

    def close(self) -> None:
        """Close and delete everything."""
        for shard in self._opened:
            shard.end()
        self._folder.cleanup()

    @property
    def replay(self) -> Any:
        return self._sharded

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        worker = super().start_actor(actor, incarnation)
        self._writes_to[worker] = actor, incarnation, shard_of(actor, self._sharded.alive)
        self._chunks[worker] = 0, 0
        return worker

    def _store(self, worker: Worker, steps: int) -> None:
        actor, incarnation, shard = self._writes_to[worker]
        while steps > 0:
            chunks, first = self._chunks[worker]
            size = min(steps, _CHUNK_STEPS)
            arrays = make_stream(FORMAT, [size], first_episode=chunks)  # each chunk an episode of its own
            chunk = encode_chunk(FORMAT, ChunkKey(actor, incarnation, 0, chunks), first, arrays)
            try:
                stored = self._opened[shard].append(chunk)
            except ReplayLostError as error:
                self.unanswered += size if isinstance(error, UnansweredError) else 0
                raise WorkerFailedError(RunFailedError(str(error)), "Traceback: simulated") from None
            self._chunks[worker] = chunks + 1, first + size
            steps -= size
            if stored:
                self.total_steps += size
                self._stored[worker.target] += size
