"""The segment log: what is acknowledged is found again, whatever happened to the files."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from make_chunks import counting_format, cut, image_format, make_stream

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkKey, parse_header
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.segment import Segment, open_segments, segment_paths
from dreamfleet.replay.segment_header import SegmentHeader
from dreamfleet.replay.segment_log import SegmentLog

FORMAT = counting_format()


def open_log(
    directory: Path, segment_bytes: int = 1 << 20, segment_steps: int = 10**6
) -> tuple[SegmentLog, list[ChunkKey]]:
    """Open a log and return it with the keys it found, in order."""
    log = SegmentLog(directory, FORMAT, segment_bytes, segment_steps)
    return log, [header.key for header, _ in log.recover()]


def fill(directory: Path, count: int, chunk_steps: int = 4, per_segment: int = 1000) -> list[bytes]:
    """Write a stream to a new log and return its chunks."""
    directory.mkdir(exist_ok=True)
    chunks = cut(FORMAT, make_stream(FORMAT, [count * chunk_steps]), chunk_steps=chunk_steps)
    log, _ = open_log(directory)
    for number, chunk in enumerate(chunks):
        if number and number % per_segment == 0:
            log.roll(SegmentHeader(FORMAT.to_json(), log.total_steps))
        log.append(chunk, chunk_steps)
    log.close()
    return chunks


def sequences(directory: Path) -> list[int]:
    """Return the sequence numbers that a reopened log finds."""
    log, keys = open_log(directory)
    log.close()
    return [key.number for key in keys]


def test_chunks_are_found_where_they_were_put(tmp_path: Path) -> None:
    """Reopening gives all chunks in order, and their places hold their bytes."""
    chunks = fill(tmp_path, 10, per_segment=4)
    log = SegmentLog(tmp_path, FORMAT, 1 << 20, 10**6)
    found = list(log.recover())
    assert [header.key.number for header, _ in found] == list(range(10))
    assert [location.segment for _, location in found] == [1] * 4 + [2] * 4 + [3] * 2
    for chunk, (header, location) in zip(chunks, found, strict=True):
        assert log.segment(location.segment).read(location.offset, header.chunk_bytes) == chunk
    assert log.total_steps == 40
    log.close()


def test_a_tail_torn_anywhere_is_cut_off_and_nothing_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For every length to which the last chunk can be torn, the others survive and appending continues cleanly."""
    chunks = fill(tmp_path / "whole", 3)
    whole = segment_paths(tmp_path / "whole")[0].read_bytes()
    last = len(chunks[-1])
    for kept in range(last):
        directory = tmp_path / "torn"
        directory.mkdir()
        (directory / "segment-00000001.dfl").write_bytes(whole[: len(whole) - last + kept])
        caplog.clear()
        log, keys = open_log(directory)
        assert [key.number for key in keys] == [0, 1], kept
        assert (f"{kept} bytes of a torn chunk" in caplog.text) == (kept > 0)
        log.append(chunks[2], 4)
        log.close()
        assert (directory / "segment-00000001.dfl").read_bytes() == whole
        shutil.rmtree(directory)


def test_a_tail_of_zeros_or_rubbish_is_cut_off(tmp_path: Path) -> None:
    """What a file system leaves after a power cut does not hide what was stored."""
    for tail in (bytes(5000), b"DFCK" * 100, b"\xff" * 17):
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        fill(tmp_path / "log", 3)
        path = segment_paths(tmp_path / "log")[0]
        whole = path.read_bytes()
        path.write_bytes(whole + tail)
        assert sequences(tmp_path / "log") == [0, 1, 2]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("place", ["magic", "header", "header size", "body size", "body"])
@pytest.mark.parametrize("newest", [True, False])
def test_a_chunk_damaged_in_the_middle_costs_itself_alone(
    tmp_path: Path, place: str, newest: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The chunks after it are found again; a damaged body of an older segment is left to whoever reads it."""
    chunks = fill(tmp_path, 6, per_segment=6 if newest else 4)
    path = segment_paths(tmp_path)[0]
    data = bytearray(path.read_bytes())
    begin = data.index(chunks[2])
    offset = {"magic": 0, "header size": 5, "body size": 9, "header": 40, "body": len(chunks[2]) - 1}[place]
    data[begin + offset] ^= 64
    path.write_bytes(data)
    found = sequences(tmp_path)
    if place == "body" and not newest:
        assert found == [0, 1, 2, 3, 4, 5]
    else:
        assert found == [0, 1, 3, 4, 5]
        assert f"{len(chunks[2])} bytes" in caplog.text
    assert path.stat().st_size == len(data)


def test_a_damaged_segment_header_loses_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Chunks are searched for when the file's own header is bad, and the count of all steps comes from the next."""
    fill(tmp_path, 9, per_segment=3)
    path = segment_paths(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    log, keys = open_log(tmp_path)
    assert [key.number for key in keys] == list(range(9))
    assert log.total_steps == 36
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    log.close()


def test_an_unfinished_new_segment_is_forgotten(tmp_path: Path) -> None:
    """A crash while a segment was begun leaves nothing that matters, nor litter."""
    fill(tmp_path, 3)
    (tmp_path / "segment-00000002.tmp").write_bytes(b"DFSG")
    assert sequences(tmp_path) == [0, 1, 2]
    assert len(list(tmp_path.glob("segment-*"))) == 1


def test_a_segment_is_full_at_its_bytes_or_its_steps(tmp_path: Path) -> None:
    """Either limit asks for the next segment, but never before a segment has a chunk."""
    chunk = cut(FORMAT, make_stream(FORMAT, [4]))[0]
    log, _ = open_log(tmp_path, segment_bytes=10)
    assert not log.is_full(len(chunk), 4)
    log.append(chunk, 4)
    assert log.is_full(len(chunk), 4)
    log.close()
    log, _ = open_log(tmp_path, segment_steps=7)
    assert log.is_full(len(chunk), 4)
    assert not log.is_full(len(chunk), 3)
    log.close()


def test_the_excess_is_the_oldest_and_never_everything(tmp_path: Path) -> None:
    """As many of the oldest segments go as make the wanted room; the newest stays whatever its size."""
    fill(tmp_path, 12, per_segment=3)
    log, _ = open_log(tmp_path)
    assert log.excess(10**9, 48) == []
    assert log.excess(10**9, 47) == [1]
    assert log.excess(10**9, 60, room=(0, 12)) == []
    assert log.excess(10**9, 48, room=(0, 12)) == [1]
    assert log.excess(10**9, 30, room=(0, 12)) == [1, 2, 3]
    assert log.excess(log.bytes_stored, 48) == []
    assert log.excess(log.bytes_stored, 48, room=(1, 0)) == [1]
    assert log.excess(1, 1) == [1, 2, 3]
    log.close()


def test_reading_only_changes_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn tail is not seen and stays, an unfinished new file stays too, and no word is said about it."""
    fill(tmp_path, 5, per_segment=3)
    with segment_paths(tmp_path)[-1].open("ab") as file:
        file.write(cut(FORMAT, make_stream(FORMAT, [24]), chunk_steps=4)[5][:-5])
    (tmp_path / "segment-00000003.tmp").write_bytes(b"DFSG")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    log = SegmentLog(tmp_path, FORMAT, 1 << 20, 10**6, read_only=True)
    assert [header.key.number for header, _ in log.recover()] == [0, 1, 2, 3, 4]
    log.close()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert caplog.text == ""


def test_segments_dropped_between_listing_and_opening_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened is a run of segments without a gap, up to the newest."""
    fill(tmp_path, 12, per_segment=3)
    opened = Segment.__init__

    def drop_meanwhile(self: Segment, path: Path, writable: bool = True) -> None:
        if path.name == "segment-00000003.dfl":
            (tmp_path / "segment-00000001.dfl").unlink()
            (tmp_path / "segment-00000002.dfl").unlink()
        opened(self, path, writable)

    monkeypatch.setattr(Segment, "__init__", drop_meanwhile)
    segments = open_segments(tmp_path, writable=False)
    assert [segment.number for segment in segments] == [3, 4]
    for segment in segments:
        segment.close()


def test_a_dropped_segment_is_readable_while_pinned(tmp_path: Path) -> None:
    """Whoever reads from a segment can end, and the file is gone from the directory at once."""
    chunks = fill(tmp_path, 6, per_segment=3)
    log = SegmentLog(tmp_path, FORMAT, 1 << 20, 10**6)
    locations = [location for _, location in log.recover()]
    segment = log.segment(1)
    segment.pin()
    log.drop([1])
    assert [path.name for path in segment_paths(tmp_path)] == ["segment-00000002.dfl"]
    assert segment.read(locations[0].offset, len(chunks[0])) == chunks[0]
    segment.unpin()
    with pytest.raises(OSError, match="file descriptor"):
        segment.read(0, 1)
    log.close()


def vector_format(name: str, width: int, choices: int) -> StepFormat:
    """Return a format with one vector and this many actions; ("count", 2, 3) is the one of these tests."""
    return StepFormat(Spaces((ObservationSpec(name, (width,), "float32"),), ActionSpec("discrete", (choices,))))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (image_format(16), r"its action was discrete \(3,\) and is now box \(3,\) from"),
        (vector_format("count", 3, 3), r"its observation 'count' was float32 \(2,\) and is now float32 \(3,\)"),
        (vector_format("c", 2, 3), "observation 'c' was not there and is now float32"),
        (vector_format("count", 2, 4), r"its action was discrete \(3,\) and is now discrete \(4,\)"),
    ],
)
def test_a_directory_of_another_format_is_refused_by_the_name_of_what_differs(
    tmp_path: Path, other: StepFormat, sentence: str
) -> None:
    """The sentence names the first entry that differs, and both versions of it."""
    fill(tmp_path, 2)
    log = SegmentLog(tmp_path, other, 1 << 20, 10**6)
    with pytest.raises(UserError, match=sentence):
        list(log.recover())


def test_record_bytes_are_what_the_header_says(tmp_path: Path) -> None:
    """The file is its header and the chunks, end to end, with nothing between."""
    chunks = fill(tmp_path, 5)
    data = segment_paths(tmp_path)[0].read_bytes()
    assert data.endswith(b"".join(chunks))
    assert [parse_header(chunk).chunk_bytes for chunk in chunks] == [len(chunk) for chunk in chunks]
