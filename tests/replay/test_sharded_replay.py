"""A replay in several shards: sampled as if it were one, reopened with any number of them, and alive while one is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from filled_shards import EPISODES, FORMAT, LENGTH, SEED, fill, open_all, same, settings_of, starts_of
from make_chunks import cut, make_stream

from dreamfleet.common.errors import UserError
from dreamfleet.replay.compressed_batch import decompress, join_batches
from dreamfleet.replay.interface import NotEnoughExperienceError, ReplayLostError
from dreamfleet.replay.ray_replay import RayReplay, start_replay_servers
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import describe
from dreamfleet.replay.segment import Segment
from dreamfleet.replay.sharded import ShardedReplay, shard_of
from dreamfleet.replay.shards import plan_shards


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[ShardedReplay]:
    """Return three shards of very different sizes."""
    with closing(open_all(tmp_path)) as opened:
        fill(opened)
        yield opened


class Fails:
    """Stands before a shard; once `error` is set every question raises it."""

    def __init__(self, shard: Any) -> None:
        self.shard = shard
        self.error: Exception | None = None
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "directory":
            return self.shard.directory

        def ask(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.error:
                raise self.error
            return getattr(self.shard, name)(*arguments)

        return ask


def breakable(replay: ShardedReplay) -> tuple[ShardedReplay, list[Fails]]:
    """Return the same shards so that they can be made to fail."""
    fails = [Fails(shard) for shard in replay.shards]
    return ShardedReplay(fails, SEED), fails


# Sampling -----------------------------------------------------------------------------------------------------------


def chi_square(replay: ShardedReplay, draws: int = 35_500) -> float:
    """Return by how many standard deviations the counts of starts drawn differ more than uniform ones would."""
    counts: dict[tuple[int, int], int] = {}
    for number in range(draws // 500):
        for start in starts_of(replay.sample(number, 500)):
            counts[start] = counts.get(start, 0) + 1
    starts = sum(sum(lengths) - LENGTH + 1 for lengths in EPISODES.values())
    expected = draws / starts
    missing = (starts - len(counts)) * expected
    statistic = missing + sum((count - expected) ** 2 / expected for count in counts.values())
    return float((statistic - (starts - 1)) / np.sqrt(2 * (starts - 1)))


def test_every_valid_start_of_all_shards_is_equally_likely(replay: ShardedReplay) -> None:
    """With 300, 50 and 5 valid starts, 100 draws for each are spread as chance spreads uniform ones."""
    assert replay.counters()[:2] == (382, 355)
    assert chi_square(replay) < 4


@pytest.mark.parametrize("wrong", [(1, 1, 1), (309, 59, 14)])
def test_the_test_of_likelihood_finds_a_wrong_split(
    replay: ShardedReplay, monkeypatch: pytest.MonkeyPatch, wrong: Sequence[int]
) -> None:
    """Were batches split evenly, or in proportion to the steps stored, it would show."""
    split = ShardedReplay._split

    def split_wrongly(self: Any, purpose: str, number: int, size: int, starts: dict[int, int]) -> dict[int, int]:
        return split(self, purpose, number, size, {shard: wrong[shard] for shard in starts})

    monkeypatch.setattr(ShardedReplay, "_split", split_wrongly)
    assert chi_square(replay) > 8


def test_joined_batches_hold_the_rows_of_their_parts(replay: ShardedReplay) -> None:
    """Row by row and bit by bit, whatever the number of slices and blocks of each."""
    parts = [replay.shards[0].sample(0, 5), replay.shards[2].sample(1, 1), replay.shards[1].sample(2, 3)]
    joined = join_batches(parts)
    assert (joined.batch_size, joined.length, joined.nbytes) == (9, LENGTH, sum(part.nbytes for part in parts))
    arrays = decompress(joined, FORMAT, threads=3)
    apart = [decompress(part, FORMAT) for part in parts]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in apart]))
    assert same(join_batches([parts[0]]), parts[0])


def test_a_batch_depends_on_its_number_alone(replay: ShardedReplay, tmp_path: Path) -> None:
    """Asked again, in another order, or after a restart it is the same; another number gives another."""
    batches = [replay.sample(number, 16) for number in range(3)]
    assert same(replay.sample(1, 16), batches[1])
    assert not same(batches[0], batches[1])
    replay.close()
    with closing(open_all(tmp_path)) as again:
        assert same(again.sample(2, 16), batches[2])


def test_a_single_shard_draws_as_a_replay_does(tmp_path: Path) -> None:
    """Bit for bit, by the run's own seed, and without being asked for its counters."""
    with closing(open_all(tmp_path, settings_of(1, held_out_every=3))) as single:
        fill(single, {0: [40] * 9})
        asked, (shard,) = breakable(single)
        batches = [asked.sample(number, 8) for number in range(3)]
        kept = asked.sample_held_out(0, 4, 12)
        assert shard.calls == ["sample_several"] * 3 + ["sample_held_out"]
    alone = Replay(tmp_path / "shard-0", FORMAT, settings_of(1, held_out_every=3), LENGTH, SEED)
    assert all(same(alone.sample(number, 8), batch) for number, batch in enumerate(batches))
    expected = alone.sample_held_out(0, 4, 12)
    assert kept is not None
    assert expected is not None
    assert same(kept, expected)
    alone.close()


def test_shards_without_a_sequence_are_passed_over(tmp_path: Path) -> None:
    """As long as one has any, all rows come from it; with none in any the error says so."""
    with closing(open_all(tmp_path)) as replay:
        with pytest.raises(NotEnoughExperienceError, match="none of the 3 shards"):
            replay.sample(0, 4)
        fill(replay, {0: [4], 1: [LENGTH]})
        assert starts_of(replay.sample(0, 4)) == [(1, 0)] * 4


def test_held_out_windows_come_from_the_shards_that_have_some(tmp_path: Path) -> None:
    """Where only one shard holds an episode that is long enough, all rows are of it; None once no shard does."""
    with closing(open_all(tmp_path, settings_of(held_out_every=4))) as replay:
        fill(replay, {0: [25] * 40, 1: [30] * 20, 2: [60] * 10})
        assert {tag for tag, _ in starts_of(replay.sample_held_out(0, 60, 10))} == {0, 1, 2}
        assert {tag for tag, _ in starts_of(replay.sample_held_out(0, 60, 28))} == {1, 2}
        assert {tag for tag, _ in starts_of(replay.sample_held_out(0, 1, 55))} == {2}
        assert replay.sample_held_out(0, 4, 61) is None


def test_figures_are_those_of_all_shards(replay: ShardedReplay) -> None:
    """Sums, and of the versions the extremes over shards that hold any."""
    stats = replay.stats()
    assert (stats["steps"], stats["total_steps"], stats["valid_starts"]) == (382, 382, 355)
    assert (stats["chunks"], stats["shards"]) == (7, 3)
    assert (stats["oldest_version"], stats["newest_version"]) == (0, 3)
    assert replay.log_records() == []
    replay.sync()


# Losing shards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ReplayLostError("its server is gone"), OSError(5, "Input/output error")])
def test_a_lost_shard_is_named_once_and_the_rest_goes_on(
    replay: ShardedReplay, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """No more of it is sampled, its steps and incarnations count on, and one line of the log says what was lost."""
    broken, shards = breakable(replay)
    assert broken.counters() == (382, 355, 1)
    shards[0].error = error
    with caplog.at_level(logging.ERROR, "dreamfleet"):
        for number in range(20):
            assert {tag for tag, _ in starts_of(broken.sample(number, 50))} <= {1, 2}
    (line,) = caplog.messages
    assert line == (
        f"replay shard 0 ({replay.shards[0].directory}) is lost: {error}; 309 steps were stored in it; "
        "2 of 3 shards are left"
    )
    assert broken.alive == [1, 2]
    assert broken.counters() == (382, 55, 1)
    assert broken.stats()["shards"] == 2
    broken.sync()
    shards[0].error = None
    assert broken.alive == [1, 2], "what is lost stays lost"
    asked = len(shards[0].calls)
    broken.sample(0, 50)
    assert len(shards[0].calls) == asked


def test_steps_never_become_fewer(replay: ShardedReplay) -> None:
    """Not when shards are lost one after the other, and not when one forgets."""
    broken, shards = breakable(replay)
    assert broken.counters()[0] == 382
    shards[1].counters = lambda: (3, 2, 0)  # type: ignore[attr-defined]
    assert broken.counters() == (382, 307, 1)
    for number in (1, 2):
        vars(shards[number]).pop("counters", None)
        shards[number].error = ReplayLostError("gone")
        assert broken.counters()[0] == 382


def test_what_is_stored_until_the_end_counts(replay: ShardedReplay) -> None:
    """Closing tells what came since the last count, a lost shard counts as it did, and the counters have it then."""
    broken, shards = breakable(replay)
    assert broken.counters()[0] == 382
    shards[1].error = ReplayLostError("gone")
    shards[2].shard.append(cut(FORMAT, make_stream(FORMAT, [64]), actor=9)[0])
    stored = shards[2].shard.counters().total_steps - 14
    assert stored > 0
    assert broken.close() == 382 + stored
    asked = [len(shard.calls) for shard in shards]
    assert broken.counters() == (382 + stored, 0, 1)
    assert broken.close() == 382 + stored
    assert [len(shard.calls) for shard in shards][1:] == [asked[1], asked[2] + 1], "what is lost is not asked again"


def test_when_no_shard_is_left_the_replay_is_lost(replay: ShardedReplay) -> None:
    """Whatever is asked for then; closing needs nothing."""
    broken, shards = breakable(replay)
    for shard in shards:
        shard.error = ReplayLostError("its server is gone")
    for question in (
        broken.counters,
        lambda: broken.sample(0, 4),
        lambda: broken.sample_held_out(0, 4, 5),
        broken.sync,
    ):
        with pytest.raises(ReplayLostError, match=r"no shard of the replay is left: shard \d .*its server is gone"):
            question()
    broken.close()


def test_an_error_of_the_user_s_is_no_loss(replay: ShardedReplay) -> None:
    """It is handed on, and the shard stays."""
    broken, shards = breakable(replay)
    shards[1].error = UserError("the disk is full")
    with pytest.raises(UserError, match="the disk is full"):
        broken.sync()
    assert broken.alive == [0, 1, 2]


def test_a_shard_that_dropped_its_last_sequences_is_asked_for_none(replay: ShardedReplay) -> None:
    """Between being counted and being sampled: the batch is split once more."""
    broken, shards = breakable(replay)
    counted = shards[0].shard.counters()
    answers = [counted, (counted[0], 0, counted[2])]
    shards[0].counters = lambda: answers.pop(0) if len(answers) > 1 else answers[0]  # type: ignore[attr-defined]
    shards[0].error = NotEnoughExperienceError("dropped")
    assert {tag for tag, _ in starts_of(broken.sample(0, 50))} == {1, 2}
    assert broken.alive == [0, 1, 2]


@pytest.mark.parametrize("method", ["append", "read"])
def test_a_disk_that_fails_is_told_to_whoever_counts(
    replay: ShardedReplay, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """An actor that stores, or the process that samples, meets the fault; the fleet hears of it by the counters."""
    shard = replay.shards[0]
    more = cut(FORMAT, make_stream(FORMAT, [64]), actor=9)[0]

    def fail(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    replay.counters()
    with monkeypatch.context() as patch:
        patch.setattr(Segment, method, fail)
        with pytest.raises(OSError, match="Input/output"):
            shard.append(more) if method == "append" else shard.sample(0, 4)
    assert replay.counters() == (382, 55, 1)
    assert replay.alive == [1, 2]


def test_actors_are_dealt_out_to_the_shards_that_are_left() -> None:
    """Evenly, and each always to the same while none is lost."""
    assert [shard_of(actor, [0, 1, 2]) for actor in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [shard_of(actor, [0, 2]) for actor in range(4)] == [0, 2, 0, 2]


# As processes -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_server_that_is_gone_for_good_leaves_the_others_to_train_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two shard servers one is killed while batches are sampled; they go on, from the other."""
    plans = plan_shards(tmp_path, settings_of(2), LENGTH, SEED)
    servers = start_replay_servers(plans, FORMAT, LENGTH)
    try:
        clients = [RayReplay(server, 60, plan.directory) for server, plan in zip(servers, plans, strict=True)]
        replay = ShardedReplay(clients, SEED)
        fill(replay, {0: [109], 1: [109]})
        assert replay.counters() == (218, 200, 1)
        assert {tag for tag, _ in starts_of(replay.sample(0, 50))} == {0, 1}
        ray.kill(servers[0])
        assert {tag for tag, _ in starts_of(replay.sample(1, 50))} == {1}
        assert replay.counters() == (218, 100, 1)
        (line,) = caplog.messages
        assert f"replay shard 0 ({tmp_path}/shard-0) is lost: the replay server is gone" in line
        replay.close()
    finally:
        for server in servers:
            ray.kill(server)
    assert describe(tmp_path)["steps"] == 218


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_servers_of_a_data_set_only_read_it(tmp_path: Path) -> None:
    """They sample and refuse to store; one that finds its directory at fault leaves none running."""
    with closing(open_all(tmp_path, settings_of(2))) as writer:
        fill(writer, {0: [109], 1: [109]})
        files = {path: path.read_bytes() for path in tmp_path.glob("*/segment-*")}
    plans = plan_shards(tmp_path, settings_of(1), LENGTH, SEED, read_only=True)
    servers = start_replay_servers(plans, FORMAT, LENGTH, read_only=True)
    replay = ShardedReplay([RayReplay(server, 60) for server in servers], SEED)
    assert replay.counters() == (218, 200, 1)
    assert {tag for tag, _ in starts_of(replay.sample(0, 50))} == {0, 1}
    with pytest.raises(UserError, match="shard-1 was opened to be read only"):
        replay.shards[1].append(cut(FORMAT, make_stream(FORMAT, [5]))[0])
    replay.sync()
    replay.close()
    assert {path: path.read_bytes() for path in tmp_path.glob("*/segment-*")} == files
