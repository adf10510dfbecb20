"""Shards of very different sizes for tests; every observation says which shard and step it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.compressed_batch import CompressedBatch, decompress
from dreamfleet.replay.sharded import ShardedReplay
from dreamfleet.replay.shards import open_shards

FORMAT = counting_format()
LENGTH = 10
SEED = 5
EPISODES = {0: [309], 1: [59], 2: [14]}
"""Steps of the episodes in each shard: 300, 50 and 5 valid starts."""


def settings_of(shards: int = 3, **changes: Any) -> ReplaySettings:
    return ReplaySettings.model_validate({"shards": shards, "held_out_every": 0, "capacity_gb": 0.1} | changes)


def open_all(directory: Path, settings: ReplaySettings | None = None, **options: Any) -> ShardedReplay:
    return open_shards(directory, FORMAT, settings or settings_of(), LENGTH, SEED, **options)


def fill(replay: ShardedReplay, episodes: dict[int, list[int]] | None = None, actor: int = 0) -> None:
    """Store in each shard a stream of its own, whose tag and actor tell which."""
    for shard, lengths in (episodes or EPISODES).items():
        for chunk in cut(FORMAT, make_stream(FORMAT, lengths, tag=shard), actor=actor + shard):
            replay.shards[shard].append(chunk)


def same(one: CompressedBatch, other: CompressedBatch) -> bool:
    """Whether two batches decompress to the same, bit for bit."""
    first, second = decompress(one, FORMAT), decompress(other, FORMAT)
    return all(np.array_equal(first[name], second[name]) for name in first)


def starts_of(batch: CompressedBatch | None) -> list[tuple[int, int]]:
    """Return (shard, step) of the first step of each row."""
    assert batch is not None
    return [(int(tag), int(step)) for tag, step in decompress(batch, FORMAT)["count"][:, 0]]
