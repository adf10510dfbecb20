"""The list of recorded episodes: what reading everything gives, from headers alone, also as a replay changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import parse_header
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.view import chunk_list
from dreamfleet.deploy.view import episode_table as module
from dreamfleet.deploy.view.episode_table import EpisodeTable
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.start_rules import StartRules

FORMAT = counting_format()
FIRST = ".".join("0000")
LENGTHS = [30, 100, 5, 64, 1, 200, 80, 33]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call sees what is stored."""
    monkeypatch.setattr(module, "_LEAST_PAUSE_S", 0.0)


def stored(directory: Path, chunks: list[bytes], **settings: Any) -> Replay:
    """Return a replay of these chunks, still open."""
    replay = Replay(directory, FORMAT, ReplaySettings(held_out_every=0, **settings), 8, seed=0)
    for chunk in chunks:
        replay.append(chunk)
    return replay


def streams() -> list[bytes]:
    """Return the chunks of three streams, of which the second lacks one, and the third is cut short."""
    first = cut(FORMAT, make_stream(FORMAT, LENGTHS, seed=1), actor=0)
    second = cut(FORMAT, make_stream(FORMAT, LENGTHS, seed=2), actor=2, stream=1, chunk_steps=[64, 20, 1, 64])
    third = cut(FORMAT, make_stream(FORMAT, LENGTHS, seed=3), actor=2, incarnation=1)
    return [*first, *second[:4], *second[5:], *third[:3]]


def complete(table: EpisodeTable) -> list[dict[str, Any]]:
    """Return all episodes once their returns are known."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = table.listed()
        if found["returns_known"] == found["count"]:
            return list(found["episodes"])
        time.sleep(0.01)
    raise AssertionError("the returns were not read")


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Path]:
    """Return a replay of two shards."""
    chunks = streams()
    replays = [stored(tmp_path / f"shard-{number}", chunks[number::2]) for number in range(2)]
    yield tmp_path
    for replay in replays:
        replay.close()


def test_it_is_what_reading_everything_gives(shards: Path) -> None:
    """Place, length, return, version, whether whole: of every episode, the parts beside a gap included."""
    table = EpisodeTable(shards, held_out_every=3)
    with StoredStreams([shards / "shard-0", shards / "shard-1"]) as read:
        expected = list(read.episodes())
    assert len(expected) > 15
    found = complete(table)
    assert [row["id"] for row in found] == [".".join(map(str, episode.place)) for episode in expected]
    for row, episode in zip(found, expected, strict=True):
        arrays = episode.arrays
        assert row["length"] == len(episode)
        assert row["return"] == pytest.approx(float(arrays["reward"].astype(np.float64).sum()), abs=1e-9)
        assert row["version"] == arrays["version"][0]
        assert row["whole"] == bool(arrays["is_first"][0] and arrays["is_last"][-1])
        for start, stop in ((0, 7), (3, 130), (len(episode) - 1, 10_000)):
            if start < len(episode):
                steps = table.steps(row["id"], start, stop)
                assert all(np.array_equal(steps[name], arrays[name][start:stop]) for name in arrays)
        small = table.small_fields(row["id"])
        assert np.array_equal(small["action"], arrays["action"])
    table.close()


def test_held_out_steps_are_those_of_the_training_rules(shards: Path) -> None:
    """Counted step by step from the chunks' headers."""
    rules = StartRules(across_episodes=False, held_out_every=3)
    held: dict[tuple[int, ...], set[int]] = {}
    for header in map(parse_header, streams()):
        mask = rules.held_out_steps(header)
        steps = {header.first_step + bit for bit in range(header.steps) if mask >> bit & 1}
        held.setdefault(header.key[:3], set()).update(steps)
    table = EpisodeTable(shards, held_out_every=3)
    rows = complete(table)
    for row in rows:
        place = (row["actor"], row["incarnation"], row["stream"])
        steps = range(row["first_step"], row["first_step"] + row["length"])
        assert row["held_out_steps"] == len(held[place].intersection(steps))
    assert {row["held_out"] for row in rows} == {True, False}
    table.close()


def test_sorted_and_filtered(shards: Path) -> None:
    """By what the page asks for; what there is not is one sentence."""
    table = EpisodeTable(shards, held_out_every=3)
    rows = complete(table)
    by_return = table.listed("return", descending=True)["episodes"]
    assert [row["return"] for row in by_return] == sorted((row["return"] for row in rows), reverse=True)
    long = table.listed("length", only={"min_length": "60", "whole": "1"})
    assert [row["length"] for row in long["episodes"]] == sorted(
        row["length"] for row in rows if row["length"] >= 60 and row["whole"]
    )
    assert table.listed(only={"actor": "2", "held_out": "0"})["count"] == sum(
        row["actor"] == 2 and not row["held_out"] for row in rows
    )
    assert table.listed(start=3)["episodes"] == rows[3:]
    for arguments, words in (
        ({"sort": "beauty"}, "cannot be sorted by 'beauty'"),
        ({"only": {"min_length": "long"}}, "needs a number"),
        ({"only": {"min_beauty": "1"}}, "no filter 'min_beauty'"),
    ):
        with pytest.raises(UserError, match=words):
            table.listed(**arguments)
    for name in ("9.0.0.0", "0.0.0", "../../etc/passwd", "0.0.0.1", ""):
        with pytest.raises(UserError, match="episode"):
            table.steps(name, 0, 1)
    with pytest.raises(UserError, match="steps 0 to 29"):
        table.steps(FIRST, 30, 31)
    table.close()


def test_it_grows_and_drops_with_the_replay(tmp_path: Path) -> None:
    """New chunks appear, an episode under way keeps its id, and one that was dropped is named."""
    chunks = cut(FORMAT, make_stream(FORMAT, [200] * 30))
    replay = stored(tmp_path / "shard-0", chunks[:2], capacity_steps=2000)
    table = EpisodeTable(tmp_path, 0)
    assert [(row["id"], row["length"]) for row in complete(table)] == [(FIRST, 128)]
    for chunk in chunks[2:7]:
        replay.append(chunk)
    rows = complete(table)
    assert [(row["id"], row["length"]) for row in rows] == [(FIRST, 200), ("0.0.0.200", 200), ("0.0.0.400", 48)]
    for chunk in chunks[7:]:
        replay.append(chunk)
    rows = complete(table)
    assert rows[0]["first_step"] > 200
    assert rows[-1]["id"] == "0.0.0.5800"
    assert sum(row["length"] for row in rows) == replay.stats()["steps"]
    with pytest.raises(UserError, match=r"no episode 0\.0\.0\.0: it was dropped"):
        table.found(FIRST)
    table.close()
    replay.close()


def test_what_vanishes_between_list_and_look_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is gone that the list still names."""
    stored(tmp_path / "shard-0", cut(FORMAT, make_stream(FORMAT, LENGTHS))).close()
    table = EpisodeTable(tmp_path, 0)
    complete(table)
    monkeypatch.setattr(module, "_LEAST_PAUSE_S", 1000.0)
    for path in segment_paths(tmp_path / "shard-0"):
        path.unlink()
    with pytest.raises(UserError, match="dropped meanwhile"):
        table.steps(FIRST, 0, 5)
    monkeypatch.setattr(module, "_LEAST_PAUSE_S", 0.0)
    assert table.listed()["count"] == 0
    table.close()


def test_a_torn_end_is_read_once_it_is_whole(tmp_path: Path) -> None:
    """A chunk that is just being written is none yet; damage before others is passed over."""
    chunks = cut(FORMAT, make_stream(FORMAT, [200] * 3))
    stored(tmp_path / "shard-0", chunks[:3]).close()
    (path,) = segment_paths(tmp_path / "shard-0")
    whole = path.read_bytes()
    path.write_bytes(whole + chunks[3][:50])
    table = EpisodeTable(tmp_path, 0)
    assert sum(row["length"] for row in complete(table)) == 192
    path.write_bytes(whole + chunks[3] + b"no chunk" * 3 + chunks[4])
    assert sum(row["length"] for row in complete(table)) == 320
    table.close()


def test_nothing_is_stored_yet(tmp_path: Path) -> None:
    """A run that has just begun has no episodes, and then some."""
    table = EpisodeTable(tmp_path / "replay", 10)
    assert table.listed() == {"episodes": [], "count": 0, "returns_known": 0}
    stored(tmp_path / "replay" / "shard-0", cut(FORMAT, make_stream(FORMAT, [9]))).close()
    assert len(complete(table)) == 1
    table.close()


def test_only_headers_are_read_to_list(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No body is touched before an episode is looked at, and of that only the blocks of the steps looked at."""
    bytes_read: list[int] = []
    read = chunk_list.Segment.read

    def counted(segment: Any, offset: int, size: int) -> bytes:
        data = read(segment, offset, size)
        bytes_read.append(len(data))
        return data

    monkeypatch.setattr(chunk_list.Segment, "read", counted)
    monkeypatch.setattr(EpisodeTable, "_read_returns", lambda _: None)
    table = EpisodeTable(shards, 10)
    count = table.listed()["count"]
    assert count > 15
    assert table.nbytes < 200 * (len(streams()) + 3 * count)
    headers_read = len(bytes_read)
    assert headers_read <= 2 * len(streams()) + 8
    assert max(bytes_read) <= 2048
    table.steps(FIRST, 0, 1)
    assert len(bytes_read) - headers_read == 3  # prefix, header, the one block that there is without pictures
    table.close()


def test_times_are_those_of_the_log(shards: Path) -> None:
    """By the steps that had been stored when it was begun, over all shards; unknown without a log."""
    assert {row["when"] for row in complete(EpisodeTable(shards, 0))} == {None}
    table = EpisodeTable(shards, 0, np.array([[0.0, 1e6], [1000.0, 1000.0 + 1e6]]))
    rows = complete(table)
    assert rows[0]["when"] == pytest.approx(1000.0)
    for _, group in groupby(rows, key=lambda row: (row["actor"], row["incarnation"])):
        whens = [row["when"] for row in group]
        assert min(whens) >= 1000.0
        assert max(whens) <= 1000.0 + 2 * 1400
    table.close()
