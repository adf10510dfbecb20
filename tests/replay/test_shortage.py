"""What a replay says where no training sequence can be cut from it, and whether more steps may help."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from filled_shards import FORMAT, LENGTH, fill, open_all, settings_of
from make_chunks import cut, make_stream

from dreamfleet.replay.interface import Shortage
from dreamfleet.replay.replay import Replay


def test_the_longest_stretches_are_those_of_all_shards(tmp_path: Path) -> None:
    """Of streams without their gaps, and of episodes without what is held out; sums of the rest."""
    with closing(open_all(tmp_path, settings_of(across_episodes=False))) as replay:
        chunks = cut(FORMAT, make_stream(FORMAT, [7, 9, 3, 5] * 10), actor=5, chunk_steps=20)
        for chunk in chunks[:3] + chunks[4:]:  # 60 steps, a gap, and 160
            replay.shards[2].append(chunk)
        fill(replay, {0: [8] * 4, 1: [4, 6]})
        assert replay.shortage() == Shortage(LENGTH, False, 32 + 10 + 220, 0, 3, 160, 9)
        assert replay.counters()[1] == 0


def test_held_out_steps_are_in_no_episode_to_train_on(tmp_path: Path) -> None:
    """Of a stream's episode of 128 + 30 steps the first run is held out, by its incarnation's number: 30 are left."""
    replay = Replay(tmp_path, FORMAT, settings_of(1, held_out_every=2), 40, seed=0)
    for chunk in cut(FORMAT, make_stream(FORMAT, [158]), incarnation=1):
        replay.append(chunk)
    shortage = replay.shortage()
    assert (replay.counters().valid_starts, shortage.longest_stream, shortage.longest_episode) == (0, 158, 30)
    replay.close()


def test_more_steps_may_help_streams_that_still_grow() -> None:
    """Short streams, held-out beginnings and few short episodes are no cause before the end, but then they are."""
    growing = Shortage(64, True, 900, 0, 32, 30, 30)
    held_out = Shortage(64, True, 100, 0, 1, 100, 0)
    few = Shortage(64, False, 900, 0, 2, 500, 40)
    for shortage in (growing, held_out, few):
        assert not shortage.cause(0.5, environments=32, collected=900)
        assert shortage.cause(1.0, environments=32, collected=900)
    old = Shortage(64, True, 5000, 100, 100, 60, 60)
    assert not old.cause(0.5, environments=32, collected=4000), "what is stored is of before this start"
    assert "the replay keeps 5000" in old.cause(0.5, environments=32, collected=6000)
