"""The batch reader: several batches by one call, never ones that were drawn long ago, and the same in any case."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay import batch_reader
from dreamfleet.replay.batch_reader import FRESH_S, BatchReader
from dreamfleet.replay.compressed_batch import CompressedBatch, decompress
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.replay import Replay

FORMAT = counting_format()


class Counting:
    """A replay that notes which batches it is asked for; time passes by `now` alone."""

    def __init__(self, directory: Path, cache_gb: float = 0.0) -> None:
        settings = ReplaySettings(held_out_every=0, cache_gb=cache_gb)
        self.replay = Replay(directory, FORMAT, settings, 20, seed=5)
        self.calls: list[list[int]] = []
        self.now = 0.0

    def sample(self, number: int, size: int) -> CompressedBatch:
        return self.replay.sample(number, size)

    def sample_several(self, numbers: list[int], sizes: list[int], machine: str = "") -> list[CompressedBatch]:
        self.calls.append(list(numbers))
        return self.replay.sample_several(numbers, sizes, machine)

    def reader(self, ahead: bool = True, every: int = 1) -> BatchReader:
        replay: Any = self
        return BatchReader(replay, FORMAT, 4, ahead, every)


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    replay = Counting(tmp_path)
    for chunk in cut(FORMAT, make_stream(FORMAT, [300])):
        replay.replay.append(chunk)
    monkeypatch.setattr(batch_reader, "time", SimpleNamespace(monotonic=lambda: replay.now))
    yield replay
    replay.replay.close()


def assert_is_batch(arrays: dict[str, np.ndarray], replay: Counting, number: int) -> None:
    for name, array in decompress(replay.sample(number, 4), FORMAT).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_ever_more_batches_are_drawn_by_one_call(counting: Counting) -> None:
    """Twice as many each time, up to 32; each is what it would be if drawn alone."""
    reader = counting.reader()
    for number in range(90):
        assert_is_batch(reader.read(number), counting, number)
    assert [len(call) for call in counting.calls] == [1, 2, 4, 8, 16, 32, 32]
    assert [number for call in counting.calls for number in call] == list(range(95))


def test_without_drawing_ahead_each_batch_is_drawn_when_it_is_read(counting: Counting) -> None:
    """So that what is stored between two batches is in the second."""
    reader = counting.reader(ahead=False)
    for number in range(5):
        assert_is_batch(reader.read(number), counting, number)
        for chunk in cut(FORMAT, make_stream(FORMAT, [100], number), actor=1 + number):
            counting.replay.append(chunk)
    assert counting.calls == [[0], [1], [2], [3], [4]]


def test_what_was_drawn_long_ago_is_drawn_anew_and_fewer_at_a_time(counting: Counting) -> None:
    """A slow reader gets what is drawn at the time; it costs little more than single calls would."""
    reader = counting.reader()
    for number in range(30):
        reader.read(number)
    for number in range(30, 40):
        counting.now += 2 * FRESH_S
        for chunk in cut(FORMAT, make_stream(FORMAT, [100], number), actor=number):
            counting.replay.append(chunk)
        assert_is_batch(reader.read(number), counting, number)
    assert [len(call) for call in counting.calls[-3:]] == [1, 2, 1]


def test_batches_of_many_bytes_are_drawn_one_by_one(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compressed pictures are; two threads then call at the same time, as one batch travels beside another."""
    monkeypatch.setattr(batch_reader, "_MOST_BYTES_AT_ONCE", 1)
    reader = counting.reader()
    for number in range(6):
        assert_is_batch(reader.read(number), counting, number)
    assert [len(call) for call in counting.calls] == [1] * 6


def test_numbers_may_be_some_way_apart(counting: Counting) -> None:
    """As those that one of several readers reads, each in its turn."""
    reader = counting.reader(every=3)
    for number in range(1, 40, 3):
        assert_is_batch(reader.read(number), counting, number)
    assert counting.calls[:3] == [[1], [4, 7], [10, 13, 16, 19]]


def test_threads_share_a_call(counting: Counting) -> None:
    """Threads that read following numbers wait for the call that brings them, and no batch is drawn twice."""
    reader = counting.reader()
    with ThreadPoolExecutor(3) as threads:
        for number, arrays in enumerate(threads.map(reader.read, range(60))):
            assert_is_batch(arrays, counting, number)
    drawn = [number for call in counting.calls for number in call]
    assert len(drawn) == len(set(drawn))
    assert len(counting.calls) < 20


def test_a_call_that_fails_is_the_reader_s_to_make_again(tmp_path: Path) -> None:
    """An empty replay has no batch yet; the same number is there once something is stored."""
    replay = Counting(tmp_path)
    reader = replay.reader()
    for _ in range(2):
        with pytest.raises(NotEnoughExperienceError):
            reader.read(3)
    for chunk in cut(FORMAT, make_stream(FORMAT, [300])):
        replay.replay.append(chunk)
    assert_is_batch(reader.read(3), replay, 3)
    assert_is_batch(reader.read(0), replay, 0)
    replay.replay.close()


def test_batches_are_read_into_given_buffers(tmp_path: Path) -> None:
    """With a cache and without, the same arrays are returned, filled wholly."""
    for cache_gb in (0.0, 0.01):
        replay = Counting(tmp_path / str(cache_gb), cache_gb)
        for chunk in cut(FORMAT, make_stream(FORMAT, [300])):
            replay.replay.append(chunk)
        reader = replay.reader()
        out = reader.read(0)
        for number in range(1, 20):
            assert reader.read(number, out=out) is out
            assert_is_batch(out, replay, number)
        replay.replay.close()
