"""Stored streams read back as episodes, and cut into chunks again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_chunks import counting_format, cut, fill, make_stream

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.episodes import StoredEpisode, StoredStreams, cut_chunks
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.segment import segment_paths


def test_episodes_are_cut_where_something_is_missing(tmp_path: Path) -> None:
    """Episodes end at `is_last`, begin at `is_first`, and break where chunks are missing; a duplicate counts once."""
    step_format = counting_format()
    chunks = cut(step_format, make_stream(step_format, [30, 70, 50]), chunk_steps=20)
    fill(tmp_path / "shard-0", step_format, chunks[:3])
    fill(tmp_path / "shard-1", step_format, [chunks[2], *chunks[4:]])
    with StoredStreams([tmp_path / "shard-0", tmp_path / "shard-1"]) as streams:
        found = [(episode.first_step, len(episode)) for episode in streams.episodes()]
        assert streams.steps == 130
        assert len(streams.faults) == 1
        assert "stored twice" in streams.faults[0]
    assert found == [(0, 30), (30, 30), (80, 20), (100, 50)]


def test_a_damaged_chunk_is_passed_over(tmp_path: Path) -> None:
    """It is named, and its steps become a gap; a torn chunk at the very end is none, for a run may be writing it."""
    step_format = counting_format()
    chunks = cut(step_format, make_stream(step_format, [200]))
    fill(tmp_path, step_format, chunks[:-1])
    (segment,) = segment_paths(tmp_path)
    data = bytearray(segment.read_bytes())
    at = data.find(chunks[1]) + len(chunks[1]) - 3
    data[at] ^= 1
    segment.write_bytes(data + chunks[-1][:-5])
    with StoredStreams([tmp_path]) as streams:
        assert [(episode.first_step, len(episode)) for episode in streams.episodes()] == [(0, 64), (128, 64)]
        assert len(streams.faults) == 1
        assert "number=1" in streams.faults[0]


def test_a_replay_may_be_written_to_meanwhile(tmp_path: Path) -> None:
    """Read is what was stored at the beginning, also if all of it is dropped before it is read."""
    step_format = counting_format()
    early = cut(step_format, make_stream(step_format, [1000]))
    replay = Replay(tmp_path, step_format, ReplaySettings(capacity_steps=1500), sequence_length=2, seed=0)
    for chunk in early:
        replay.append(chunk)
    with StoredStreams([tmp_path]) as streams:
        for chunk in cut(step_format, make_stream(step_format, [2000]), incarnation=1):
            replay.append(chunk)
        assert replay.stats()["dropped_steps"] >= 1000
        assert list(cut_chunks(step_format, streams.episodes())) == early
    replay.close()


def test_steps_that_do_not_follow_are_refused() -> None:
    """Chunks are not cut from episodes with a step missing inside a chunk or between two."""
    step_format = counting_format()
    arrays = make_stream(step_format, [100])

    def episode(first: int, stop: int) -> StoredEpisode:
        return StoredEpisode(
            0, 0, 0, first, np.arange(first, stop) // 64, {name: a[first:stop] for name, a in arrays.items()}
        )

    assert list(cut_chunks(step_format, [episode(0, 30), episode(30, 100)])) == cut(step_format, arrays)
    for episodes in (
        [episode(0, 30), episode(31, 100)],
        [episode(0, 60), episode(64, 100)],
        [episode(64, 100), episode(0, 64)],
    ):
        with pytest.raises(ValueError, match="comes after"):
            list(cut_chunks(step_format, episodes))
