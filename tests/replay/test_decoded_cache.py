"""What is kept decoded gives the same batches as the log, bit for bit, and never a step that was overwritten."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_chunks import counting_format, cut, make_stream, mixed_format
from patience import PATIENCE_S, wait_until

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay import batch_reader, decoded_cache, mapped_cache
from dreamfleet.replay.batch_reader import BatchReader
from dreamfleet.replay.compressed_batch import CompressedBatch, decompress
from dreamfleet.replay.decoded_cache import DecodedCache, cache_rows, most_rows
from dreamfleet.replay.mapped_cache import CacheUnreachableError, MappedCache, OverwrittenError, this_machine
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.shards import open_shards

FORMAT = counting_format()
MIXED = mixed_format()
Arrays = dict[str, np.ndarray]


def open_replay(
    directory: Path, steps: int = 4096, length: int = 20, step_format: StepFormat = FORMAT, **settings: Any
) -> Replay:
    """Open a replay that keeps this many steps decoded."""
    settings = {"held_out_every": 0, "cache_gb": steps * step_format.step_bytes / 1e9} | settings
    return Replay(directory, step_format, ReplaySettings.model_validate(settings), length, seed=5)


def store(replay: Replay, episodes: list[int], step_format: StepFormat = FORMAT, **key: int) -> None:
    """Store a stream of its own for each `actor`, `incarnation` and `stream`."""
    for chunk in cut(step_format, make_stream(step_format, episodes, key.get("actor", 0)), **key):
        replay.append(chunk)


def warm_up(replay: Replay, size: int = 64) -> None:
    """Draw until all that may be kept decoded is."""
    filler = replay._sampler._open_cache(this_machine())
    assert filler
    for number in range(40):
        replay.sample_several([number], [size], this_machine())
    wait_until(lambda: not filler._waiting, "all chunks are decoded")
    assert filler._thread.is_alive()


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
        assert array.dtype == other[name].dtype


def compressed(replay: Any, number: int, size: int, step_format: StepFormat = FORMAT) -> Arrays:
    """Return a batch by the way that knows no cache."""
    batch = replay.sample(number, size)
    assert not batch.caches
    return decompress(batch, step_format)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("steps", "length", "settings"),
    [
        (8192, 20, {}),
        (8192, 130, {"held_out_every": 3}),
        (8192, 64, {"across_episodes": False, "recent_fraction": 0.5, "recent_steps": 300}),
        (1024, 50, {"held_out_every": 5}),
        (2000, 1, {"capacity_steps": 3000}),
    ],
)
def test_batches_are_the_same_with_and_without(
    tmp_path: Path, steps: int, length: int, settings: dict[str, Any], threads: int
) -> None:
    """Cold, filling, full and after steps were overwritten or dropped; with a cache for all steps and for a part."""
    with closing(open_replay(tmp_path, steps, length, MIXED, **settings)) as replay:
        reader = BatchReader(replay, MIXED, 8, ahead=False)
        taken = 0
        for round_ in range(6):
            store(replay, [90, 33, 150, 300], MIXED, actor=round_, stream=round_)
            for number in range(10 * round_, 10 * round_ + 10):
                (batch,) = replay.sample_several([number], [8], this_machine())
                taken += len(batch.kept)
                assert_same(reader.read(number, threads), compressed(replay, number, 8, MIXED))
            warm_up(replay, 8)
            assert_same(reader.read(round_), compressed(replay, round_, 8, MIXED))
        assert taken > 50
        if steps > 4000:
            (batch,) = replay.sample_several([7], [8], this_machine())
            assert not len(batch.data)
            assert batch.nbytes < 8 * 8 * 50


def test_only_the_newest_steps_are_kept(tmp_path: Path) -> None:
    """A cache for 1,024 of 6,400 steps holds these, but for those next to be overwritten; older ones are read."""
    with closing(open_replay(tmp_path, 1024)) as replay:
        store(replay, [100] * 64)
        warm_up(replay, 512)
        (batch,) = replay.sample_several([0], [512], this_machine())
        assert batch.kept[:, 4].min() >= 6400 - 1024 + 64
        assert len(batch.slices) > 4 * len(batch.kept) > 0
        assert 800 <= replay.stats()["decoded_steps"] <= 1024
        assert 800 <= replay.stats()["decoded_bytes"] / FORMAT.step_bytes <= 1024


def test_a_cache_begins_empty_after_a_restart_and_on_a_replay_that_is_only_read(tmp_path: Path) -> None:
    """It warms up again as batches are drawn, and these are the same as before."""
    replay = open_replay(tmp_path, capacity_steps=5000)
    store(replay, [70] * 40)
    before = [compressed(replay, number, 8) for number in range(5)]
    replay.close()
    settings = ReplaySettings.model_validate({"held_out_every": 0, "cache_gb": 0.01})
    for read_only in (False, True):
        with closing(Replay(tmp_path, FORMAT, settings, 20, 5, read_only=read_only)) as again:
            assert again.stats()["decoded_steps"] == 0
            reader = BatchReader(again, FORMAT, 8, ahead=False)
            for _ in range(2):
                for number in range(5):
                    assert_same(reader.read(number), before[number])
                warm_up(again)
            assert again.stats()["decoded_steps"] == 2800


def test_held_out_sequences_are_those_of_the_log(tmp_path: Path) -> None:
    """They are drawn now and then, and decompressed as ever, also while everything is kept decoded."""
    with closing(open_replay(tmp_path, held_out_every=4)) as replay:
        store(replay, [300] * 10)
        first = replay.sample_held_out(1, 4, 30)
        warm_up(replay)
        second = replay.sample_held_out(1, 4, 30)
        assert first is not None
        assert second is not None
        assert_same(decompress(first, FORMAT), decompress(second, FORMAT))


def test_shards_are_one_replay_each_with_its_own_cache(tmp_path: Path) -> None:
    """A batch names the caches of all shards that it comes from, and is the same as without them."""
    settings = ReplaySettings.model_validate({"shards": 3, "cache_gb": 0.003, "held_out_every": 0})
    with closing(open_shards(tmp_path, FORMAT, settings, 20, 5)) as replay:
        for shard, opened in enumerate(replay.shards):
            assert isinstance(opened, Replay)
            store(opened, [300, 80], actor=shard)
            warm_up(opened)
        (batch,) = replay.sample_several([3], [16], this_machine())
        assert len(set(batch.caches)) == 3
        assert not len(batch.data)
        reader = BatchReader(replay, FORMAT, 16, ahead=False)
        for number in range(10):
            assert_same(reader.read(number), compressed(replay, number, 16))


def test_several_batches_are_what_single_ones_would_be(tmp_path: Path) -> None:
    """Of any numbers, in any order, with a size for each."""
    with closing(open_replay(tmp_path, held_out_every=3, recent_fraction=0.4)) as replay:
        store(replay, [70] * 40)
        for machine in ("", this_machine()):
            batches = replay.sample_several([7, 2, 5], [3, 9, 1], machine)
            caches = [MappedCache(handle, FORMAT) for handle in batches[0].caches]
            for batch, number, size in zip(batches, [7, 2, 5], [3, 9, 1], strict=True):
                assert_same(decompress(batch, FORMAT, caches=caches), compressed(replay, number, size))
            warm_up(replay)


def test_a_reader_elsewhere_gets_compressed_batches_and_no_cache_is_opened(tmp_path: Path) -> None:
    """On another machine, in another container, of another user, or without one; also with `cache_gb` 0."""
    with closing(open_replay(tmp_path)) as replay:
        store(replay, [300])
        for machine in ("", "another machine"):
            assert not replay.sample_several([0], [4], machine)[0].caches
        assert replay._sampler._filler is None
    with closing(open_replay(tmp_path, cache_gb=0)) as replay:
        assert not replay.sample_several([0], [4], this_machine())[0].caches
        assert replay._sampler._filler is None


def test_rows_that_were_overwritten_since_the_draw_are_noticed(tmp_path: Path) -> None:
    """Whoever has such a batch is told, and a reader asks for it anew; what is drawn before is intact until then."""
    with closing(open_replay(tmp_path, 1024)) as replay:
        store(replay, [100] * 10)
        warm_up(replay)
        (batch,) = replay.sample_several([0], [8], this_machine())
        assert len(batch.kept)
        caches = [MappedCache(handle, FORMAT) for handle in batch.caches]
        expected = compressed(replay, 0, 8)
        oldest = int(batch.kept[:, 4].min())
        room = oldest + 1024 - 1000
        for chunk in cut(FORMAT, make_stream(FORMAT, [room + 1], 1), actor=1, chunk_steps=[min(64, room)] * 99):
            assert_same(decompress(batch, FORMAT, caches=caches), expected)
            replay.append(chunk)
        with pytest.raises(OverwrittenError):
            decompress(batch, FORMAT, caches=caches)
        reader = BatchReader(replay, FORMAT, 8, ahead=True)
        reader._drawn[0] = _drawn_now(batch)
        assert_same(reader.read(0), compressed(replay, 0, 8))


def _drawn_now(batch: CompressedBatch) -> Any:
    return batch_reader._Drawn(batch, time.monotonic())


def test_a_writer_that_races_a_reader_never_shows_it_a_newer_step(tmp_path: Path) -> None:
    """While rows are overwritten all the time, each batch is whole, or its reader is told that it is not."""
    newest = {"recent_fraction": 0.9, "recent_steps": 960}
    with closing(open_replay(tmp_path, 1024, 60, capacity_steps=20_000, **newest)) as replay:
        store(replay, [4000])
        stop = threading.Event()

        def write() -> None:
            stream = 1
            while not stop.is_set():
                store(replay, [640], actor=stream)
                stream += 1
                stop.wait(stream % 5 / 50)  # else nothing would stay long enough to be decoded, let alone drawn

        writer = threading.Thread(target=write)
        writer.start()
        whole = overwritten = number = 0
        caches: dict[Any, MappedCache] = {}
        deadline = time.monotonic() + PATIENCE_S
        try:
            while whole < 100 or overwritten < 5:
                assert time.monotonic() < deadline, f"{whole} whole batches and {overwritten} overwritten ones"
                number += 1
                (batch,) = replay.sample_several([number], [16], this_machine())
                for handle in batch.caches:
                    caches.setdefault(handle, MappedCache(handle, FORMAT))
                time.sleep(number % 40 / 1000)  # some are read at once, some late
                try:
                    arrays = decompress(batch, FORMAT, caches=[caches[handle] for handle in batch.caches])
                except OverwrittenError:
                    overwritten += 1
                    continue
                whole += len(batch.kept) > 0
                tag, step = arrays["count"][..., 0], arrays["count"][..., 1]
                assert (tag == tag[:, :1]).all()
                assert (np.diff(step, axis=1) == 1).all()
        finally:
            stop.set()
            writer.join()


def test_a_reader_goes_on_when_a_cache_cannot_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, gets the same batches compressed, and no longer asks for what is decoded."""

    def refuse(*_: object) -> None:
        raise CacheUnreachableError("/proc/1/fd/3 cannot be mapped: Permission denied")

    with closing(open_replay(tmp_path)) as replay:
        store(replay, [300] * 5)
        warm_up(replay)
        monkeypatch.setattr("dreamfleet.replay.batch_reader.MappedCache", refuse)
        reader = BatchReader(replay, FORMAT, 8, ahead=False)
        for number in range(6):
            assert_same(reader.read(number), compressed(replay, number, 8))
        assert sum("Permission denied" in record.message for record in caplog.records) == 1
        assert reader._machine == ""


def test_something_else_at_a_cache_s_place_is_refused(tmp_path: Path) -> None:
    """A file that is shorter, or does not begin with the token, as when its process died and another has its number."""
    cache = DecodedCache(FORMAT, 1024)
    MappedCache(cache.handle, FORMAT)
    with pytest.raises(CacheUnreachableError, match="not the cache it was"):
        MappedCache(cache.handle._replace(token=b"\1" * 16), FORMAT)
    with pytest.raises(CacheUnreachableError, match="cannot be mapped"):
        MappedCache(cache.handle._replace(rows=2048), FORMAT)
    cache.close()
    (tmp_path / "short").write_bytes(cache.handle.token)
    for path in (cache.handle.path, str(tmp_path / "short"), str(tmp_path)):
        with pytest.raises(CacheUnreachableError, match="cannot be mapped"):
            MappedCache(cache.handle._replace(path=path), FORMAT)


def test_a_mapped_cache_cannot_be_written_to_nor_cut_short() -> None:
    """A reader cannot spoil it, and the writer cannot take a page away under a reader, which would kill it."""
    cache = DecodedCache(FORMAT, 1024)
    mapped = MappedCache(cache.handle, FORMAT)
    with pytest.raises(ValueError, match="read-only"):
        mapped.arrays["reward"][0] = 1
    with pytest.raises(PermissionError):
        os.ftruncate(cache._file, 0)
    cache.close()
    assert mapped.arrays["reward"][0] == 0


def test_a_damaged_chunk_is_passed_over_as_without(tmp_path: Path) -> None:
    """Batches are the same as those of a replay that keeps nothing decoded, before and after the damage is found."""
    replays = [open_replay(tmp_path / "with"), open_replay(tmp_path / "without", cache_gb=0)]
    for replay in replays:
        store(replay, [70] * 20)
        (path,) = segment_paths(replay.directory)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\0" * 200)
    one, other = (BatchReader(replay, FORMAT, 8, ahead=False) for replay in replays)
    for number in range(60):
        assert_same(one.read(number), other.read(number))
        if number % 20 == 10:
            filler = replays[0]._sampler._filler
            assert filler
            wait_until(lambda filler=filler: not filler._waiting, "all chunks are decoded")
    assert replays[0].stats()["damaged_chunks"] == replays[1].stats()["damaged_chunks"] > 0
    for replay in replays:
        replay.close()


def test_a_chunk_that_is_damaged_where_nobody_reads_is_not_kept(tmp_path: Path) -> None:
    """The filler leaves it alone, and says nothing: what is intact of it is still read."""
    with closing(open_replay(tmp_path, 2000, 4, MIXED)) as replay:
        store(replay, [64], MIXED)
        numbers = [number for number in range(40) if replay.sample(number, 1).slices[0, 4] <= 48]
        (path,) = segment_paths(tmp_path)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size - 20)  # in the last block of the last field, of steps from 48 on
            file.write(b"\0" * 20)
        reader = BatchReader(replay, MIXED, 1, ahead=False)
        for number in numbers:
            assert_same(reader.read(number), compressed(replay, number, 1, MIXED))
        filler = replay._sampler._filler
        assert filler
        wait_until(lambda: filler._refused, "the chunk is refused")
        assert replay.stats()["decoded_steps"] == 0


def test_no_more_is_taken_while_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that have their memory are used on; new ones wait until there is enough again; it is said once."""
    free = [100]
    monkeypatch.setattr(DecodedCache.__init__, "__defaults__", (lambda: (100, free[0]),))
    with closing(open_replay(tmp_path, 2048)) as replay:
        store(replay, [64] * 4)
        warm_up(replay)
        assert replay.stats()["decoded_steps"] == 256
        free[0] = 5
        store(replay, [64] * 4, actor=1)
        warm_up(replay)
        assert replay.stats()["decoded_steps"] == 256
        assert sum("memory is short" in record.message for record in caplog.records) == 1
        free[0] = 50
        warm_up(replay)
        assert replay.stats()["decoded_steps"] == 512


def test_a_system_without_such_memory_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once, and batches come compressed."""

    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(decoded_cache.os, "memfd_create", refuse)
    with closing(open_replay(tmp_path)) as replay:
        store(replay, [300])
        reader = BatchReader(replay, FORMAT, 8, ahead=False)
        for number in range(3):
            assert_same(reader.read(number), compressed(replay, number, 8))
    assert sum("Function not implemented" in record.message for record in caplog.records) == 1


def test_the_memory_running_out_ends_the_filling_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error from the system, where mapped memory would have killed the process; batches go on."""
    caplog.set_level(logging.ERROR)

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with closing(open_replay(tmp_path)) as replay:
        store(replay, [300] * 3)
        reader = BatchReader(replay, FORMAT, 8, ahead=False)
        monkeypatch.setattr(decoded_cache, "_write", refuse)
        reader.read(0)
        wait_until(lambda: "No space left" in caplog.text, "it is said")
        for number in range(3):
            assert_same(reader.read(number), compressed(replay, number, 8))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("settings", "stored", "free", "expected_gb"),
    [
        ({"cache_gb": 2.0, "capacity_steps": 10**8}, 0, 1, 2.0),
        ({"cache_gb": "auto", "capacity_steps": 10**8}, 0, 8 * GIB, 2 * GIB / 1e9),
        ({"cache_gb": "auto", "capacity_steps": 10**8, "shards": 4}, 0, 8 * GIB, GIB / 2e9),
        ({"cache_gb": "auto", "capacity_steps": 1000}, 0, 64 * GIB, most_rows(1000) * FORMAT.step_bytes / 1e9),
        ({"cache_gb": "auto", "capacity_steps": 1000}, 5000, 64 * GIB, most_rows(5000) * FORMAT.step_bytes / 1e9),
        ({"cache_gb": "auto"}, 0, -1, 0),
        ({"cache_gb": "auto"}, 0, 100_000, 0),
        ({"cache_gb": 0}, 0, 64 * GIB, 0),
    ],
)
def test_its_size_is_what_is_set_or_a_quarter_of_what_is_free(
    settings: dict[str, Any], stored: int, free: int, expected_gb: float
) -> None:
    """And never more than all steps need that the replay may hold, or less than is of use."""
    rows = cache_rows(ReplaySettings.model_validate(settings), FORMAT, stored, lambda: (64 * GIB, free))
    assert rows % 64 == 0
    assert expected_gb * 1e9 - 64 * FORMAT.step_bytes <= rows * FORMAT.step_bytes <= expected_gb * 1e9


def test_a_cache_for_all_steps_has_room_for_all_beside_those_about_to_be_overwritten() -> None:
    """So a full replay is drawn from it alone."""
    for steps in (1000, 6400, 10**6):
        cache = DecodedCache(FORMAT, most_rows(steps) // 64 * 64)
        cache.arrive(10**7)
        assert cache.may_hold(np.array([10**7 - steps])).all()
        cache.close()


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True, "much"])
def test_a_size_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a number of at least 0, or auto"):
        ReplaySettings.model_validate({"cache_gb": wrong})


@pytest.fixture(autouse=True)
def _the_same_machine() -> Iterator[None]:
    assert this_machine()
    yield
    mapped_cache.this_machine.cache_clear()
