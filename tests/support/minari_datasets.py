"""Replays and Minari datasets for tests of export and import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gymnasium import spaces
from make_chunks import Arrays, cut, fill, make_stream

from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.scan import StoredChunk, scan
from dreamfleet.replay.segment import open_segments

minari: Any = pytest.importorskip("minari", reason="Minari is an extra: pip install 'dreamfleet[minari]'")
from minari.data_collector import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402


def stored(directory: Path) -> list[bytes]:
    """Return all chunks of all shards, in the order of their keys."""
    chunks: dict[ChunkKey, bytes] = {}
    for shard in sorted(directory.glob("replay/shard-*")):
        for segment in open_segments(shard, writable=False):
            header, start = segment.read_header()
            for found in scan(segment, StepFormat.from_json(header.step_format), start, bodies=True):
                assert isinstance(found, StoredChunk)
                assert found.header.key not in chunks
                chunks[found.header.key] = segment.read(found.offset, found.header.chunk_bytes)
            segment.close()
    return [chunks[key] for key in sorted(chunks)]


def fragmented_run(path: Path, step_format: StepFormat, settings: Settings | None = None) -> RunDirectory:
    """Make a run of two shards with everything that happens: restarts, gaps, lost beginnings and ends, lone steps."""
    run = RunDirectory(path)
    run.path.mkdir()
    run.write(settings or Settings(), step_format.spaces)
    first = cut(step_format, make_stream(step_format, [90, 33, 2, 70], seed=1), actor=0, chunk_steps=[64, 30, 64])
    restarted = cut(step_format, make_stream(step_format, [50, 80], seed=2), actor=0, incarnation=3, chunk_steps=17)
    lost_end = cut(step_format, make_stream(step_format, [40, 100], seed=3), actor=1, stream=1, chunk_steps=[41, 20])
    lost_beginning = cut(step_format, make_stream(step_format, [150], seed=4, first_episode=7), actor=1, incarnation=1)
    fill(run.replay / "shard-0", step_format, first + [r for i, r in enumerate(restarted) if i not in (2, 5)])
    fill(run.replay / "shard-1", step_format, lost_end[:1] + lost_beginning[1:])
    return run


def foreign(
    directory: Path, observation: spaces.Space[Any], action: spaces.Space[Any], episodes: list[dict[str, Any]],
    jpeg: bool = False, **metadata: Any,
) -> Path:  # fmt: skip
    """Write a dataset as another tool would."""
    directory.mkdir(parents=True)
    storage = MinariStorage.new(directory / "data", observation, action, jpeg_encoding=jpeg)
    storage.update_metadata({"dataset_id": "other/tool-v2", "minari_version": minari.__version__, **metadata})
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    return directory


def read_all(directory: Path) -> tuple[StepFormat, list[Arrays]]:
    """Return the format and the episodes of an imported dataset."""
    with StoredStreams(sorted(directory.glob("replay/shard-*"))) as streams:
        return streams.step_format, [dict(episode.arrays) for episode in streams.episodes()]
