"""The shards of a replay: directories, their part of the settings, reports on them, and actors dealt out to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from counted_streams import faults_of, faults_of_batch, read_streams, steps_of
from filled_shards import FORMAT, LENGTH, SEED, fill, open_all, same, settings_of, starts_of
from make_chunks import cut, make_stream

from dreamfleet.actors.collector import build_collector
from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import DirectChunkWriter
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import describe, print_faults, print_info, verify
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.sharded import ShardedReplay, shard_of
from dreamfleet.replay.shards import open_shards, plan_shards, shard_directories, shard_paths


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[ShardedReplay]:
    """Return three shards of very different sizes."""
    with closing(open_all(tmp_path)) as opened:
        fill(opened)
        yield opened


def names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


def test_all_shards_that_are_there_are_opened_and_new_ones_fill_up(tmp_path: Path) -> None:
    """In the order of their numbers, gaps filled first; other files and names are none."""
    assert names(shard_paths(tmp_path, 2)) == ["shard-0", "shard-1"]
    for name in ("shard-1", "shard-10", "shard-x", "shard-2.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "shard-3").touch()
    assert names(shard_directories(tmp_path)) == ["shard-1", "shard-10"]
    assert names(shard_paths(tmp_path, 1)) == ["shard-1", "shard-10"]
    assert names(shard_paths(tmp_path, 4)) == ["shard-0", "shard-1", "shard-2", "shard-10"]


def test_a_shard_that_may_not_be_read_is_not_left_out(
    replay: ShardedReplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that opened the others alone would count too few steps: it is refused, and so is a report."""
    assert len(replay.shards) == 3
    plain = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "shard-1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for ask in (describe, lambda path: plan_shards(path, settings_of(3), LENGTH, SEED)):
        with pytest.raises(UserError, match=r"shard-1 cannot be read: Permission denied\."):
            ask(tmp_path)


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_reopened_with_any_number_of_shards_everything_is_kept(tmp_path: Path, shards: int) -> None:
    """Fewer than there are means all that there are, more means new ones beside them."""
    with closing(open_all(tmp_path)) as before:
        fill(before)
        counters = before.counters()
    with closing(open_all(tmp_path, settings_of(shards))) as after:
        assert len(after.shards) == max(3, shards)
        assert after.counters() == counters
        assert {tag for tag, _ in starts_of(after.sample(0, 400))} == {0, 1, 2}
    assert len(shard_directories(tmp_path)) == max(3, shards)
    assert verify(tmp_path) == []


def test_a_replay_that_stores_chunks_itself_is_its_first_shard(tmp_path: Path) -> None:
    """As those of runs from before there were shards: it is opened with the others, and nothing is left out."""
    old = Replay(tmp_path, FORMAT, settings_of(1), LENGTH, SEED)
    old.append(cut(FORMAT, make_stream(FORMAT, [64], tag=7), actor=3)[0])
    old.close()
    with closing(open_all(tmp_path, settings_of(1))) as replay:
        assert (len(replay.shards), replay.counters()[0]) == (1, 64)
    with closing(open_all(tmp_path, settings_of(2))) as replay:
        fill(replay, {1: [64]})
        assert (len(replay.shards), replay.counters()[0]) == (2, 128)
    assert describe(tmp_path)["steps"] == 128
    assert names(shard_directories(tmp_path)) == [tmp_path.name, "shard-0"]


def test_the_capacity_is_shared(tmp_path: Path) -> None:
    """However it is filled, the whole stays within what the run may store; each shard drops its own oldest."""
    settings = settings_of(2, capacity_steps=4000)
    with closing(open_all(tmp_path, settings)) as replay:
        fill(replay, {0: [64] * 60, 1: [64] * 10})
        first, second = (shard.stats() for shard in replay.shards)
        assert 1500 < first["steps"] <= 2000
        assert second["steps"] == 640
        assert replay.counters()[0] == 64 * 70


def test_too_little_capacity_for_so_many_shards_is_refused(tmp_path: Path) -> None:
    """The sentence names both settings as they were given, and what would be enough."""
    with pytest.raises(UserError, match=r"capacity_gb 0\.0005 is too small for replay\.shards 3: .* at least 0\.0008"):
        open_all(tmp_path, settings_of(capacity_gb=0.0005))
    sentence = r"replay\.capacity_steps 1000 is too small for replay\.shards 5: .* 10 steps they need at least 1280\."
    with pytest.raises(UserError, match=sentence):
        open_all(tmp_path, settings_of(5, capacity_steps=1000))
    with closing(open_all(tmp_path / "one", settings_of(1, capacity_steps=1000))) as replay:
        assert replay.alive == [0]


def test_a_capacity_that_became_smaller_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second shard takes half of a full one's capacity; how much was dropped for it is in the log."""
    with closing(open_all(tmp_path, settings_of(1, capacity_steps=4000))) as replay:
        fill(replay, {0: [64] * 60})
        before = replay.stats()["steps"]
    with closing(open_all(tmp_path, settings_of(2, capacity_steps=4000))) as replay:
        after = replay.stats()["steps"]
        assert replay.counters()[0] == 64 * 60
    assert after < before
    assert f"the oldest {before - after} of {before} steps were dropped: they are more than its capacity" in caplog.text


def test_reading_only_opens_what_is_there(tmp_path: Path) -> None:
    """Without locks, whatever the capacity and the number of shards; nothing can be stored, and nothing is made."""
    with pytest.raises(UserError, match="holds no replay: there is no directory 'shard-0' in it"):
        open_all(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()
    with closing(open_all(tmp_path)) as writer:
        fill(writer)
        with closing(open_all(tmp_path, settings_of(9, capacity_steps=1000), read_only=True)) as reader:
            assert len(reader.shards) == 3
            assert reader.counters() == writer.counters()
            assert same(reader.sample(0, 20), writer.sample(0, 20))
            reader.sync()
            with pytest.raises(UserError, match="shard-0 was opened to be read only"):
                reader.shards[0].append(b"")
        with pytest.raises(UserError, match="shard-0"):
            open_all(tmp_path)  # which the writer has locked


def test_shards_draw_by_seeds_of_their_own(tmp_path: Path) -> None:
    """Else two shards that hold as much would draw the same places; a single one draws by the run's seed."""
    plans = plan_shards(tmp_path, settings_of(3, recent_steps=100), LENGTH, SEED)
    assert len({plan.seed for plan in plans} | {SEED}) == 4
    assert {plan.settings.recent_steps for plan in plans} == {33}
    assert plan_shards(tmp_path, settings_of(1), LENGTH, SEED)[0].seed == SEED


# Reports ------------------------------------------------------------------------------------------------------------


def test_info_tells_the_whole_and_each_shard(replay: ShardedReplay, tmp_path: Path, capsys: Any) -> None:
    """Of a run's directory, of its replay, and of a single shard, which has no lines for others."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "replay").symlink_to(tmp_path)
    for directory in (run, tmp_path):
        assert print_info(directory) == 0
        lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        facts = dict(line for line in lines if len(line) == 2)
        assert (facts["steps"], facts["total_steps"], facts["actors"]) == ("382", "382", "3")
        assert facts["complete_episodes"] == "3"
        assert facts["shard-1"].startswith("59 steps of 1 actor in 8")
    assert print_info(tmp_path / "shard-1") == 0
    said = capsys.readouterr().out
    assert "shard" not in said
    assert "\nstreams                1\n" in said


def test_verify_names_the_shard(replay: ShardedReplay, tmp_path: Path, capsys: Any) -> None:
    """A chunk in two shards is a fault, and so is what lies in one of them and is no chunk."""
    assert print_faults(tmp_path) == 0
    for chunk in cut(FORMAT, make_stream(FORMAT, [59], tag=1), actor=1):
        replay.shards[2].append(chunk)
    replay.close()
    with segment_paths(tmp_path / "shard-0")[0].open("ab") as file:
        file.write(b"rubbish")
    capsys.readouterr()
    assert print_faults(tmp_path) == 1
    torn, twice, count = capsys.readouterr().out.splitlines()
    assert "shard-0/segment-" in torn
    assert "7 bytes" in torn
    assert twice.startswith("shard-2/segment-")
    assert "is stored twice, also in shard-1/segment-" in twice
    remedy = f"`dreamfleet replay repair {tmp_path}` makes a consistent replay of what is left"
    assert count == f"2 faults found; {remedy}"
    assert print_faults(tmp_path / "shard-1") == 0


# The service's own actors -------------------------------------------------------------------------------------------


def test_counting_through_three_shards(tmp_path: Path) -> None:
    """What five actors play is stored once, in order, each incarnation in one shard; what is sampled was played so."""
    settings = Settings.model_validate({
        "seed": SEED,
        "env": {"id": "faulty_environment:make", "kwargs": {"length": 23}},
        "actors": {"count": 5, "environments": 2},
        "replay": {"capacity_gb": 0.1, "held_out_every": 4, "shards": 3},
    })  # fmt: skip
    step_format = StepFormat(probe_environment(settings.env))
    trained_on: set[tuple[float, float]] = set()
    kept: set[tuple[float, float]] = set()
    with closing(open_shards(tmp_path, step_format, settings.replay, 12, SEED)) as replay:
        shards = [replay.shards[shard_of(actor, replay.alive)] for actor in range(5)]
        collectors = [
            build_collector(settings, actor, 0, DirectChunkWriter(shard)) for actor, shard in enumerate(shards)
        ]
        for turn in range(12):
            for collector in collectors:
                collector.collect(31)
            for sample, steps in (
                (replay.sample(turn, 16), trained_on),
                (replay.sample_held_out(turn, 16, 5), kept),
            ):
                if sample is not None:
                    batch = decompress(sample, step_format)
                    assert faults_of_batch(batch, 23) == []
                    steps.update(steps_of(batch))
        for collector in collectors:
            collector.close()
        assert replay.counters()[0] == 12 * 5 * 31
    assert len(trained_on) > len(kept) > 100
    assert not trained_on & kept
    streams = read_streams(tmp_path, step_format)
    assert sum(len(steps["reward"]) for steps in streams.values()) == 12 * 5 * 31
    assert [fault for steps in streams.values() for fault in faults_of(steps, 23)] == []
    for shard in range(3):
        stored = read_streams(tmp_path / f"shard-{shard}", step_format)
        assert {actor for actor, _, _ in stored} == {actor for actor in range(5) if actor % 3 == shard}
