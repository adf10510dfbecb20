"""The chain of segments: what is missing or misplaced is found at opening and by `verify`, and can be repaired."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from filled_shards import fill as fill_shards
from filled_shards import open_all
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.manifest import Manifest
from dreamfleet.replay.repair import print_repair, repair
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import count_steps, describe, print_faults, verify
from dreamfleet.replay.segment import segment_paths

FORMAT = counting_format()
CHUNKS = 40
STEPS = 64 * CHUNKS
SEGMENT = 7 * 64
"""Steps of a full segment: there are six, the newest with five chunks."""


def settings_of(capacity_steps: int = 8000) -> ReplaySettings:
    return ReplaySettings(held_out_every=0, capacity_steps=capacity_steps)


def open_replay(directory: Path, capacity_steps: int = 8000, read_only: bool = False) -> Replay:
    return Replay(directory, FORMAT, settings_of(capacity_steps), 20, seed=5, read_only=read_only)


def fill(directory: Path, tag: int = 0, capacity_steps: int = 8000) -> None:
    """Store one stream of 40 chunks; at every seventh a new segment begins."""
    replay = open_replay(directory, capacity_steps)
    for chunk in cut(FORMAT, make_stream(FORMAT, [STEPS], tag=tag)):
        replay.append(chunk)
    replay.close()


def path_of(directory: Path, number: int) -> Path:
    return directory / f"segment-{number:08d}.dfl"


def swap(directory: Path) -> None:
    """Exchange the names of two segments."""
    two, three, between = path_of(directory, 2), path_of(directory, 3), directory / "between"
    two.rename(between)
    three.rename(two)
    between.rename(three)


def take_foreign(directory: Path, number: int) -> None:
    """Put a segment of another replay in the place of one."""
    fill(directory.parent / "foreign", tag=3)
    shutil.copy(path_of(directory.parent / "foreign", number), path_of(directory, number))


def cut_at_a_chunk(directory: Path, number: int) -> None:
    """Cut off a segment's last chunk, exactly."""
    path, last = path_of(directory, number), 64 * (min(7 * number, CHUNKS) - 1)
    chunk = next(c for c in cut(FORMAT, make_stream(FORMAT, [STEPS])) if c in path.read_bytes()[-len(c) :])
    assert last
    path.write_bytes(path.read_bytes()[: -len(chunk)])


def spoil(directory: Path, number: int, at: float) -> None:
    """Flip a bit somewhere in a segment."""
    data = bytearray(path_of(directory, number).read_bytes())
    data[int(at * len(data))] ^= 8
    path_of(directory, number).write_bytes(data)


class Harm(NamedTuple):
    """What happens to a replay; what is said of it if it can be used, or of why it cannot; how many steps are left."""

    do: Callable[[Path], object]
    sentence: str
    left: int
    is_refused: bool = False


def rename(old: int, new: str) -> Callable[[Path], object]:
    return lambda directory: path_of(directory, old).rename(directory / new)


HARMS = {
    "the newest deleted": Harm(
        lambda d: path_of(d, 6).unlink(), r"segment 6 is missing, with 320 steps.*still count", STEPS - 320
    ),
    "a middle one deleted": Harm(
        lambda d: path_of(d, 3).unlink(), r"segment 3 is missing, with 448 steps", STEPS - 448
    ),
    "two in a row deleted": Harm(
        lambda d: [path_of(d, n).unlink() for n in (3, 4)], r"segments 3 to 4 are missing, with 896 steps", STEPS - 896
    ),
    "the oldest deleted": Harm(lambda d: path_of(d, 1).unlink(), r"segment 1 is missing, with 448 steps", STEPS - 448),
    "the newest cut": Harm(lambda d: cut_at_a_chunk(d, 6), r"000006.dfl: 64 steps at its end", STEPS - 64),
    "a middle one cut": Harm(lambda d: cut_at_a_chunk(d, 3), r"000003.dfl: the last 64 steps of it", STEPS - 64),
    "two swapped": Harm(swap, r"000002.dfl was begun as segment 3: it was renamed or copied", STEPS, is_refused=True),
    "one renamed on": Harm(rename(6, "segment-00000009.dfl"), r"9.dfl was begun as segment 6", STEPS, is_refused=True),
    "one copied": Harm(
        lambda d: shutil.copy(path_of(d, 2), path_of(d, 7)), r"7.dfl was begun as segment 2", STEPS, is_refused=True
    ),
    "one renamed away": Harm(rename(3, "segment-3.dfl"), r"segment-3.dfl is no segment", STEPS),
    "a middle foreign one": Harm(lambda d: take_foreign(d, 3), r"is of another replay", STEPS - 448, is_refused=True),
    "the first foreign": Harm(lambda d: take_foreign(d, 1), r"is of another replay", STEPS - 448, is_refused=True),
    "the newest foreign": Harm(lambda d: take_foreign(d, 6), r"is of another replay", STEPS - 320, is_refused=True),
    "a file that is none": Harm(
        lambda d: (d / "segment-abc.dfl").write_text("my notes"), r"segment-abc.dfl is no segment", STEPS
    ),
    "a directory that is none": Harm(
        lambda d: (d / "segment-abc.dfl").mkdir(), r"segment-abc.dfl is no segment", STEPS
    ),
    "a directory of a segment's name": Harm(
        lambda d: path_of(d, 8).mkdir(), r"00008.dfl is a directory, where a file", STEPS, is_refused=True
    ),
    "no manifest": Harm(lambda d: (d / "manifest.json").unlink(), r"manifest.json is missing", STEPS),
    "a damaged manifest": Harm(
        lambda d: (d / "manifest.json").write_text('{"manifest":{"newest":9},"crc32":0}'), r"json is damaged", STEPS
    ),
    "a damaged body": Harm(lambda d: spoil(d, 6, 0.5), r"6.dfl: \d+ bytes at byte \d+ are damaged", STEPS - 64),
    "a damaged header": Harm(lambda d: spoil(d, 3, 0.005), r"3.dfl: the segment header's checksum is wrong", STEPS),
}


@pytest.mark.parametrize("name", HARMS)
def test_what_happened_to_the_files_is_said_and_can_be_repaired(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No step is counted twice or not at all; `verify` finds it too; a repair leaves a replay without a fault."""
    harm, directory = HARMS[name], tmp_path / "replay"
    fill(directory)
    harm.do(directory)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for read_only in (True, False):
        caplog.clear()
        if harm.is_refused:
            with pytest.raises(UserError, match=harm.sentence):
                open_replay(directory, read_only=read_only)
            continue
        replay = open_replay(directory, read_only=read_only)
        assert [r for r in caplog.records if re.search(harm.sentence, r.getMessage())], caplog.text
        assert replay.counters().total_steps == STEPS
        assert replay.stats()["steps"] == (harm.left if name != "one renamed away" else STEPS - 448)
        if not read_only:
            assert replay.append(cut(FORMAT, make_stream(FORMAT, [64]), incarnation=3)[0])
        replay.close()
        assert count_steps(directory) == STEPS + 64 * (not read_only)

    before = sum(path.stat().st_size for path in copy.rglob("segment-*") if path.is_file())
    done = repair(copy)
    assert done
    assert verify(copy) == []
    kept = sum(path.stat().st_size for path in tmp_path.glob("copy*/segment-*") if path.is_file())
    assert kept >= before, "nothing is destroyed"
    caplog.clear()
    replay = open_replay(copy)
    assert caplog.text == ""
    assert (replay.counters().total_steps, replay.stats()["steps"]) == (STEPS, harm.left)
    assert replay.append(cut(FORMAT, make_stream(FORMAT, [64]), incarnation=3)[0])
    replay.close()
    assert verify(copy) == []
    assert repair(copy) == []


def test_a_run_of_many_kills_and_evictions_has_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a capacity drops is not missing, whether or not the process ended between two writes."""
    chunks = cut(FORMAT, make_stream(FORMAT, [64 * 200]))
    for start in range(0, 200, 9):
        replay = open_replay(tmp_path, capacity_steps=2000)
        for chunk in chunks[start : start + 9]:
            assert replay.append(chunk)
        if start % 2:
            replay.close()
        else:  # as a kill leaves it: nothing more is written
            replay._directory_lock.release()  # type: ignore[union-attr]
        assert verify(tmp_path) == []
    assert caplog.text == ""
    assert segment_paths(tmp_path)[0].name != "segment-00000001.dfl"
    replay = open_replay(tmp_path, capacity_steps=2000)
    assert replay.counters().total_steps == 64 * 200
    replay.close()


@pytest.mark.parametrize("when", ["before the manifest", "before the drop"])
def test_a_crash_while_a_segment_is_begun_loses_nothing(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A segment without its manifest, and segments that were to be dropped, are all in order."""
    chunks = cut(FORMAT, make_stream(FORMAT, [64 * 60]))
    replay = open_replay(tmp_path, capacity_steps=2000)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def append_until_it_crashes() -> int:
        for number, chunk in enumerate(chunks):
            try:
                replay.append(chunk)
            except KeyboardInterrupt:
                return number
            if number == 25:
                place = Manifest if when == "before the manifest" else type(replay._log)
                monkeypatch.setattr(place, "write" if place is Manifest else "drop", crash)
        raise AssertionError

    stored = append_until_it_crashes()
    replay._directory_lock.release()  # type: ignore[union-attr]
    monkeypatch.undo()
    assert verify(tmp_path) == []
    replay = open_replay(tmp_path, capacity_steps=2000)
    assert caplog.text == ""
    assert replay.counters().total_steps == 64 * stored
    for chunk in chunks:
        replay.append(chunk)
    assert replay.counters().total_steps == 64 * 60
    replay.close()
    assert verify(tmp_path) == []


def test_all_segments_gone_still_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that was emptied says what it held; the steps are not collected again without a word."""
    fill(tmp_path)
    for path in segment_paths(tmp_path):
        path.unlink()
    replay = open_replay(tmp_path)
    assert "segments 1 to 6 are missing, with 2560 steps" in caplog.text
    assert replay.counters().total_steps == STEPS
    assert replay.append(cut(FORMAT, make_stream(FORMAT, [64]))[0])
    replay.close()
    assert describe(tmp_path)["total_steps"] == STEPS + 64
    assert verify(tmp_path) == []


def test_a_shard_that_is_gone_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other shards know how many there were; opening says it, `verify` too, until it is repaired."""
    replay = open_all(tmp_path)
    fill_shards(replay)
    replay.close()
    assert verify(tmp_path) == []
    shutil.rmtree(tmp_path / "shard-1")
    sentence = "holds 2 shards, and shard-0 says that there were 3: 1 is missing"
    assert [fault for fault in verify(tmp_path) if sentence in fault]
    open_all(tmp_path, read_only=True).close()
    assert sentence in caplog.text
    assert repair(tmp_path)
    assert verify(tmp_path) == []


def test_an_old_replay_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Segments of before there was a chain are read, and continued with chained ones."""
    from dreamfleet.replay import segment_log
    from dreamfleet.replay.segment_header import SegmentHeader

    whole = SegmentHeader.encode

    def encode(header: SegmentHeader) -> bytes:
        return whole(SegmentHeader(header.step_format, header.steps_before, header.next_incarnation, header.dropped))

    monkeypatch.setattr(segment_log.SegmentHeader, "encode", encode)
    fill(tmp_path)
    monkeypatch.undo()
    (tmp_path / "manifest.json").unlink()
    assert verify(tmp_path) == []
    replay = open_replay(tmp_path)
    assert replay.counters().total_steps == STEPS
    for chunk in cut(FORMAT, make_stream(FORMAT, [STEPS]), incarnation=3):
        assert replay.append(chunk)
    replay.close()
    assert verify(tmp_path) == []
    assert caplog.text == ""
    path_of(tmp_path, 8).unlink()
    assert any("segment 8 is missing" in fault for fault in verify(tmp_path))


def test_repair_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's output names what was moved, and where to; a healthy replay is left alone."""
    fill(tmp_path / "shard-0")
    files = {path.name: path.read_bytes() for path in (tmp_path / "shard-0").iterdir()}
    assert print_repair(tmp_path) == 0
    assert capsys.readouterr().out == "there was nothing to repair\nno fault found\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "shard-0").iterdir()} == files
    shutil.copy(path_of(tmp_path / "shard-0", 2), path_of(tmp_path / "shard-0", 7))
    assert print_faults(tmp_path) == 1
    capsys.readouterr()
    assert print_repair(tmp_path) == 0
    moved, *_ = capsys.readouterr().out.splitlines()
    assert "segment-00000007.dfl was moved to" in moved
    assert (tmp_path / "shard-0.aside-1" / "segment-00000007.dfl").exists()


def test_a_replay_in_use_is_not_repaired(tmp_path: Path) -> None:
    """Nor is a folder that is none."""
    replay = open_replay(tmp_path / "shard-0")
    with pytest.raises(UserError, match="is in use by process"):
        repair(tmp_path)
    replay.close()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no replay"):
        repair(tmp_path / "empty")


def test_a_lock_that_is_a_directory_is_one_sentence(tmp_path: Path) -> None:
    """The same for a manifest that is one."""
    fill(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock in it is a directory"):
        open_replay(tmp_path)
    (tmp_path / ".lock").rmdir()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        open_replay(tmp_path)
