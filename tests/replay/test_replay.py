"""The replay: what goes in comes out as sequences, and nothing acknowledged is lost, doubled or mixed up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_chunks import Arrays, counting_format, cut, image_format, make_stream, mixed_format
from patience import PATIENCE_S, wait_until

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import PREFIX, parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay import segment
from dreamfleet.replay.compressed_batch import CompressedBatch, decompress
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.manifest import Manifest
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import describe, verify
from dreamfleet.replay.segment import segment_paths

FORMAT = counting_format()
ALL = ReplaySettings(held_out_every=0)


def open_replay(
    directory: Path, settings: ReplaySettings = ALL, length: int = 20, step_format: StepFormat = FORMAT
) -> Replay:
    """Open a replay with the run seed 5."""
    return Replay(directory, step_format, settings, length, seed=5)


def same(one: CompressedBatch, other: CompressedBatch) -> bool:
    """Whether two batches are equal bit for bit."""
    first, second = decompress(one, FORMAT), decompress(other, FORMAT)
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 20, 64, 130])
def test_sampled_sequences_are_the_stream_s_own_steps(tmp_path: Path, length: int, threads: int) -> None:
    """All fields of a sequence are those of following steps of one stream; only `is_first` is forced at the start."""
    step_format = mixed_format()
    streams: dict[int, Arrays] = {}
    replay = open_replay(tmp_path, ALL, length, step_format)
    for stream in range(3):
        arrays = streams[stream] = make_stream(step_format, [90, 33, 150], seed=stream)
        arrays["joints"][:, 0], arrays["joints"][:, 1] = stream, np.arange(273)
        for chunk in cut(step_format, arrays, stream=stream, chunk_steps=[64, 30, 64]):
            assert replay.append(chunk)
    batch = decompress(replay.sample(0, 12), step_format, threads)
    for row in range(12):
        stream, start = batch["joints"][row, 0, :2].astype(int)
        expected = {name: array[start : start + length].copy() for name, array in streams[stream].items()}
        expected["is_first"][0] = True
        for name, array in expected.items():
            assert batch[name].shape == (12, length, *array.shape[1:])
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name][row], array, err_msg=name)
    replay.close()


def test_decompressed_arrays_are_the_reader_s_own(tmp_path: Path) -> None:
    """They can be written to, and do not lie in what was received."""
    replay = open_replay(tmp_path)
    for chunk in cut(FORMAT, make_stream(FORMAT, [100])):
        replay.append(chunk)
    compressed = replay.sample(0, 2)
    batch = decompress(compressed, FORMAT)
    for array in batch.values():
        assert array.flags.owndata
        assert array.flags.writeable
    replay.close()


def test_a_batch_is_decompressed_into_buffers_that_are_given(tmp_path: Path) -> None:
    """They are overwritten wholly, also where they held another batch; ones of another shape or type are refused."""
    step_format = mixed_format()
    replay = open_replay(tmp_path, step_format=step_format)
    for chunk in cut(step_format, make_stream(step_format, [70, 50])):
        replay.append(chunk)
    buffers: dict[str, np.ndarray] = {}
    for number in range(3):
        fresh = decompress(replay.sample(number, 4), step_format)
        buffers = buffers or {name: np.frombuffer(bytearray(b"\xff" * a.nbytes), a.dtype) for name, a in fresh.items()}
        out = {name: buffers[name].reshape(fresh[name].shape) for name in fresh}
        assert decompress(replay.sample(number, 4), step_format, out=out) is out
        for name, array in fresh.items():
            np.testing.assert_array_equal(out[name], array, err_msg=name)
    del out["reward"]
    with pytest.raises(ValueError, match="buffer of 'reward' is missing; the batch needs float32 of shape"):
        decompress(replay.sample(0, 4), step_format, out=out)
    with pytest.raises(ValueError, match="buffer of 'reward' is float64 of shape"):
        decompress(replay.sample(0, 4), step_format, out=out | {"reward": np.zeros((4, 20))})
    replay.close()


def test_a_batch_depends_on_its_number_alone(tmp_path: Path) -> None:
    """Asking again, in another order, or after a restart gives the same batch; another number gives another."""
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=3, recent_fraction=0.3, recent_steps=200))
    for chunk in cut(FORMAT, make_stream(FORMAT, [70] * 30)):
        replay.append(chunk)
    batches = [replay.sample(number, 8) for number in range(4)]
    assert same(replay.sample(2, 8), batches[2])
    assert not same(batches[0], batches[1])
    held_out = replay.sample_held_out(3, 4, 30)
    replay.close()
    again = open_replay(tmp_path, ReplaySettings(held_out_every=3, recent_fraction=0.3, recent_steps=200))
    assert same(again.sample(3, 8), batches[3])
    repeated = again.sample_held_out(3, 4, 30)
    assert held_out is not None
    assert repeated is not None
    assert same(held_out, repeated)
    again.close()


def test_a_chunk_sent_twice_is_stored_once(tmp_path: Path) -> None:
    """The second time is recognised, also after a restart, and changes no counter but that of duplicates."""
    chunks = cut(FORMAT, make_stream(FORMAT, [150]))
    replay = open_replay(tmp_path)
    assert [replay.append(chunk) for chunk in chunks] == [True] * 3
    before = replay.stats()
    assert [replay.append(chunk) for chunk in chunks] == [False] * 3
    assert replay.stats() == before | {"duplicates": 3}
    replay.close()
    replay = open_replay(tmp_path)
    assert not any(replay.append(chunk) for chunk in chunks)
    assert replay.counters().total_steps == 150
    replay.close()


def test_chunks_may_come_as_any_bytes(tmp_path: Path) -> None:
    """Bytes, memoryviews and arrays are stored alike."""
    one, two, three = cut(FORMAT, make_stream(FORMAT, [150]))
    replay = open_replay(tmp_path)
    assert replay.append(one)
    assert replay.append(memoryview(two))
    assert replay.append(np.frombuffer(three, np.uint8))
    assert replay.counters().valid_starts == 131
    replay.close()
    assert verify(tmp_path) == []


def test_a_damaged_chunk_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    """What arrives broken or of another format is an error, and the log stays clean."""
    chunk = cut(FORMAT, make_stream(FORMAT, [64]))[0]
    replay = open_replay(tmp_path)
    size = replay.stats()["bytes_stored"]
    for bad in (b"", chunk[:-1], chunk[:-1] + b"\x00", cut(image_format(16), make_stream(image_format(16), [64]))[0]):
        with pytest.raises(DamagedChunkError):
            replay.append(bad)
    assert replay.stats()["bytes_stored"] == size
    assert replay.append(chunk)
    replay.close()


def test_sampling_from_too_little_says_so(tmp_path: Path) -> None:
    """Before any sequence fits, sampling names what is stored and what is wanted."""
    replay = open_replay(tmp_path)
    replay.append(cut(FORMAT, make_stream(FORMAT, [19]))[0])
    with pytest.raises(NotEnoughExperienceError, match="19 steps in 1 chunks hold no sequence of 20 steps"):
        replay.sample(0, 1)
    assert replay.sample_held_out(0, 1, 5) is None
    replay.close()


def test_held_out_steps_are_never_trained_on(tmp_path: Path) -> None:
    """Training batches have all other steps, held-out batches these alone; also once the replay is opened again."""
    settings = ReplaySettings(held_out_every=4)
    replay = open_replay(tmp_path, settings)
    for chunk in cut(FORMAT, make_stream(FORMAT, [45] * 40)):
        replay.append(chunk)
    trained: set[int] = set()
    held_out: set[int] = set()
    for number in range(60):
        if number == 30:
            replay.close()
            replay = open_replay(tmp_path, settings)
        trained |= set(decompress(replay.sample(number, 32), FORMAT)["count"][..., 1].reshape(-1).tolist())
        compressed = replay.sample_held_out(number, 32, 40)
        assert compressed is not None
        windows = decompress(compressed, FORMAT)
        assert (windows["episode"] == windows["episode"][:, :1]).all()
        held_out |= set(windows["count"][..., 1].reshape(-1).tolist())
    assert not trained & held_out
    # Runs 3, 7 and 11 of 128 steps, with their borders moved on to where an episode begins: 45·9, 45·12, and so on.
    kept = {*range(405, 540), *range(900, 1035), *range(1440, 1575)}
    assert held_out == kept
    assert trained | kept >= set(range(20, 1780))  # the ends of a stream are in few sequences
    replay.close()


@pytest.mark.parametrize("chunk_steps", [64, 50, 7])
def test_rows_begin_anew_behind_held_out_steps(tmp_path: Path, chunk_steps: int) -> None:
    """There, and only there, an episode is cut short: `is_last` before, `is_first` behind; all else is as stored."""
    stream = make_stream(FORMAT, [300, 90, 400, 45, 1000])
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=3))
    for chunk in cut(FORMAT, stream, chunk_steps=chunk_steps):
        replay.append(chunk)
    joints = 0
    for number in range(8):
        batch = decompress(replay.sample(number, 64), FORMAT)
        for row in range(64):
            steps = batch["count"][row, :, 1].astype(int)
            expected = {name: array[steps].copy() for name, array in stream.items()}
            behind = np.flatnonzero(np.diff(steps) != 1) + 1
            expected["is_first"][[0, *behind]] = True
            expected["is_last"][behind - 1] = True
            joints += len(behind)
            for name, array in expected.items():
                np.testing.assert_array_equal(batch[name][row], array, err_msg=name)
    assert joints > 5
    replay.close()


def test_sequences_stay_within_an_episode_if_told_to(tmp_path: Path) -> None:
    """Without `across_episodes` the only first step of a sequence is its first."""
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, across_episodes=False))
    for chunk in cut(FORMAT, make_stream(FORMAT, [30, 25, 19, 100])):
        replay.append(chunk)
    assert replay.counters().valid_starts == 11 + 6 + 0 + 81
    for number in range(20):
        assert not decompress(replay.sample(number, 16), FORMAT)["is_first"][:, 1:].any()
    replay.close()


def test_turnover_keeps_files_memory_and_counts_bounded(tmp_path: Path) -> None:
    """Filled four times over, the replay keeps to its capacity, samples only what it holds and counts all it saw."""
    settings = ReplaySettings(held_out_every=0, capacity_steps=8000)
    replay = open_replay(tmp_path, settings)
    arrays = make_stream(FORMAT, [100] * 320)
    files, memory = [], []
    chunks = cut(FORMAT, arrays)
    for number, chunk in enumerate(chunks):
        assert replay.append(chunk)
        stats = replay.stats()
        assert stats["steps"] <= 8000
        if number % 125 == 124:
            files.append(len(segment_paths(tmp_path)))
            memory.append(stats["index_bytes"])
            assert stats["steps"] >= 7000
    assert len(set(files)) == 1
    assert max(memory) <= 1.1 * memory[0]
    assert replay.counters().total_steps == 32000
    assert replay.stats()["dropped_steps"] == 32000 - replay.stats()["steps"]
    oldest = 32000 - replay.stats()["steps"]
    assert min(decompress(replay.sample(n, 50), FORMAT)["count"][..., 1].min() for n in range(20)) >= oldest
    assert not replay.append(chunks[0]), "a chunk that was dropped is not taken for a new one"
    valid = replay.counters().valid_starts
    replay.close()
    assert verify(tmp_path) == []

    replay = open_replay(tmp_path, settings)
    assert (replay.counters().total_steps, replay.counters().valid_starts) == (32000, valid)
    assert not replay.append(chunks[0])
    replay.close()


def test_capacity_in_bytes_is_kept(tmp_path: Path) -> None:
    """Noise that does not compress never takes more of the disk than was granted."""
    step_format = image_format(32)
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_gb=0.004), 20, step_format)
    arrays = make_stream(step_format, [64 * 40])
    arrays["image"][:] = np.random.default_rng(0).integers(0, 256, arrays["image"].shape, np.uint8)
    for chunk in cut(step_format, arrays):
        replay.append(chunk)
        assert sum(path.stat().st_size for path in segment_paths(tmp_path)) <= 4_000_000
    assert replay.stats()["bytes_stored"] > 2_900_000
    replay.close()


def test_a_smaller_capacity_drops_the_oldest_when_opened(tmp_path: Path) -> None:
    """What is too much after a restart goes at once, and stays counted and known."""
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=8000))
    chunks = cut(FORMAT, make_stream(FORMAT, [7000]))
    for chunk in chunks:
        replay.append(chunk)
    replay.close()
    for _ in range(2):
        replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=2000))
        assert 1000 <= replay.stats()["steps"] <= 2000
        assert replay.counters().total_steps == 7000
        assert not replay.append(chunks[0])
        replay.close()


def test_opening_a_full_replay_drops_nothing(tmp_path: Path) -> None:
    """At any fill, closing and opening keeps every step and makes no file; appending keeps to the capacity."""
    settings = ReplaySettings(held_out_every=0, capacity_steps=2000)
    replay = open_replay(tmp_path, settings)
    most = 0.0
    for chunk in cut(FORMAT, make_stream(FORMAT, [64 * 60])):
        assert replay.append(chunk)
        before = replay.stats()
        most = max(most, before["steps"])
        replay.close()
        replay = open_replay(tmp_path, settings)
        assert replay.stats() == before | {"index_bytes": replay.stats()["index_bytes"]}
    assert 1900 < most <= 2000
    replay.close()


def test_a_capacity_made_a_little_smaller_is_kept(tmp_path: Path) -> None:
    """A newest segment with room left does not fill up beyond a capacity that is just not exceeded when opened."""
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=16000))
    chunks = cut(FORMAT, make_stream(FORMAT, [64 * 80]))
    for chunk in chunks[:46]:
        replay.append(chunk)
    replay.close()
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=2950))
    assert replay.stats()["steps"] == 2944
    for chunk in chunks[46:]:
        replay.append(chunk)
        assert replay.stats()["steps"] <= 2950
    replay.close()


def test_reading_beside_a_writer(tmp_path: Path) -> None:
    """A replay opened to read needs no lock, sees what was stored whole, and reads on while all of it is dropped."""
    settings = ReplaySettings(held_out_every=3, capacity_steps=2000)
    chunks = cut(FORMAT, make_stream(FORMAT, [50] * 130))
    writer = open_replay(tmp_path, settings)
    for chunk in chunks[:20]:
        writer.append(chunk)
    newest = segment_paths(tmp_path)[-1]
    with newest.open("ab") as file:  # as far as a chunk has come that is just being written
        file.write(chunks[20][:-7])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reader = Replay(tmp_path, FORMAT, settings, 20, 5, read_only=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert reader.counters().total_steps == 64 * 20
    assert reader.counters().valid_starts == writer.counters().valid_starts
    batch = reader.sample(0, 8)
    for chunk in chunks[20:]:
        assert writer.append(chunk)
    assert newest not in segment_paths(tmp_path)
    assert same(reader.sample(0, 8), batch)
    assert reader.sample_held_out(0, 4, 30) is not None
    with pytest.raises(UserError, match="opened to be read only"):
        reader.append(chunks[0])
    reader.sync()
    reader.close()
    reader.close()
    stored = writer.stats()["steps"]
    writer.close()
    assert describe(tmp_path)["steps"] == stored


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    """No directory is an empty replay, and stays none."""
    reader = Replay(tmp_path / "replay", FORMAT, ALL, 20, 5, read_only=True)
    with pytest.raises(NotEnoughExperienceError, match="0 steps in 0 chunks"):
        reader.sample(0, 1)
    assert reader.sample_held_out(0, 1, 2) is None
    reader.close()
    assert not (tmp_path / "replay").exists()


def test_a_capacity_that_cannot_work_is_refused(tmp_path: Path) -> None:
    """The sentence names the setting and what it must be at least."""
    with pytest.raises(UserError, match=r"replay.capacity_gb 0.001 is too small.*at least 0.003"):
        open_replay(tmp_path, ReplaySettings(capacity_gb=0.001), 20, image_format(64))


def test_two_replays_do_not_share_a_directory(tmp_path: Path) -> None:
    """The second is refused while the first is open."""
    replay = open_replay(tmp_path)
    with pytest.raises(UserError, match="in use"):
        open_replay(tmp_path)
    replay.close()
    replay.close()
    open_replay(tmp_path).close()


def test_another_environment_s_directory_is_refused_and_let_go(tmp_path: Path) -> None:
    """The refusal names the difference and leaves the directory free for the right run."""
    open_replay(tmp_path).close()
    with pytest.raises(UserError, match="its action was discrete"):
        open_replay(tmp_path, step_format=image_format(16))
    open_replay(tmp_path).close()


def test_incarnations_are_remembered_when_their_chunks_are_gone(tmp_path: Path) -> None:
    """A new incarnation gets a number above all earlier ones, also when nothing of those is left."""
    settings = ReplaySettings(held_out_every=0, capacity_steps=1000)
    replay = open_replay(tmp_path, settings)
    assert replay.counters().next_incarnation == 0
    replay.append(cut(FORMAT, make_stream(FORMAT, [64]), incarnation=9)[0])
    for chunk in cut(FORMAT, make_stream(FORMAT, [3000]), incarnation=2):
        replay.append(chunk)
    assert replay.counters().next_incarnation == 10
    replay.close()
    replay = open_replay(tmp_path, settings)
    assert replay.counters().next_incarnation == 10
    replay.close()


def test_a_chunk_that_rots_on_the_disk_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sampling continues without it, says once what was lost, and never gives its bytes away."""
    step_format = image_format(16)
    replay = open_replay(tmp_path, ALL, 20, step_format)
    chunks = cut(step_format, make_stream(step_format, [64 * 6]))
    for chunk in chunks:
        replay.append(chunk)
    path = segment_paths(tmp_path)[0]
    data = path.read_bytes()
    middle = data.index(chunks[2]) + len(chunks[2]) // 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes(data[middle + k] ^ 255 for k in range(40)))
    for number in range(20):
        decompress(replay.sample(number, 16), step_format)
    assert replay.stats()["damaged_chunks"] == 1
    assert replay.counters().valid_starts == (128 - 19) + (192 - 19)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "64 steps are lost" in caplog.text
    replay.close()
    assert any("no chunk" in fault for fault in verify(tmp_path))


WRITE = """
import sys
from pathlib import Path
from make_chunks import counting_format, cut, make_stream
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.replay import Replay
step_format = counting_format()
replay = Replay(Path(sys.argv[1]), step_format, ReplaySettings(held_out_every=0, capacity_steps=40000), 20, 0)
incarnation = replay.counters().next_incarnation
for number, chunk in enumerate(cut(step_format, make_stream(step_format, [64 * 500]), incarnation=incarnation)):
    assert replay.append(chunk)
    print(incarnation, number, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_sigkill_of_the_writer(tmp_path: Path) -> None:
    """A process is killed at three instants while it writes; every chunk that it said was stored is there."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root.parent / '.pkg'}{os.pathsep}{root / 'support'}"}
    acknowledged: set[tuple[int, int]] = set()
    for lines in (1, 60, 237):
        command = [sys.executable, "-c", WRITE, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
        process.wait()
        acknowledged |= {(int(line.split()[0]), int(line.split()[1])) for line in seen if line.endswith("\n")}
    assert {incarnation for incarnation, _ in acknowledged} == {0, 1, 2}
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=40000))
    again = [cut(FORMAT, make_stream(FORMAT, [64 * 500]), incarnation=incarnation) for incarnation in range(3)]
    assert all(not replay.append(again[incarnation][number]) for incarnation, number in acknowledged)
    assert replay.counters().total_steps >= 64 * len(acknowledged)
    replay.close()
    assert verify(tmp_path) == []


def test_reading_goes_on_while_segments_are_dropped(tmp_path: Path) -> None:
    """Two threads sample while a third turns the replay over five times; every sequence is whole."""
    replay = open_replay(tmp_path, ReplaySettings(held_out_every=0, capacity_steps=2000))
    chunks = cut(FORMAT, make_stream(FORMAT, [100] * 100))
    for chunk in chunks[:20]:
        replay.append(chunk)
    stop = threading.Event()
    faults: list[BaseException] = []
    batches = [0, 0]

    def read(reader: int) -> None:
        try:
            while not stop.is_set():
                steps = decompress(replay.sample(batches[reader], 8), FORMAT, 1)["count"][..., 1]
                assert (np.diff(steps, axis=1) == 1).all()
                batches[reader] += 1
        except BaseException as fault:  # noqa: BLE001 - handed to the test's own thread
            faults.append(fault)

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    for reader in readers:
        reader.start()
    for number, chunk in enumerate(chunks[20:]):
        replay.append(chunk)
        wait_until(lambda number=number: min(batches) > number // 10 or faults)  # neither reader may sleep through it
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert min(batches) > 5
    assert replay.stats()["damaged_chunks"] == 0
    replay.close()


def test_sampling_does_not_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync of the disk hangs, sequences can still be drawn."""
    replay = open_replay(tmp_path)
    for chunk in cut(FORMAT, make_stream(FORMAT, [100])):
        replay.append(chunk)
    hanging, go_on = threading.Event(), threading.Event()

    def hang(_descriptor: int) -> None:
        hanging.set()
        go_on.wait(PATIENCE_S)

    monkeypatch.setattr(os, "fsync", hang)
    syncing = threading.Thread(target=replay.sync)
    syncing.start()
    assert hanging.wait(PATIENCE_S)
    replay.sample(0, 4)
    assert syncing.is_alive()
    go_on.set()
    syncing.join()
    replay.close()


def test_a_full_disk_is_said_plainly_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that does not fit leaves no half of it behind, and is taken once there is room."""
    replay = open_replay(tmp_path)
    one, two = cut(FORMAT, make_stream(FORMAT, [128]))
    replay.append(one)
    write = os.pwrite
    calls = []

    def fill_up(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return write(descriptor, data[:100], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(UserError, match=r"the disk is full at 0.00 GB of replay: .*replay.capacity_gb, which is 4.0"):
        replay.append(two)
    monkeypatch.undo()
    assert replay.append(two)
    replay.close()
    assert verify(tmp_path) == []


def test_report_tells_steps_returns_and_versions(tmp_path: Path) -> None:
    """`describe` agrees with what was stored, with complete episodes only."""
    arrays = make_stream(FORMAT, [30, 50, 70])
    arrays["reward"][:] = 1
    replay = open_replay(tmp_path)
    for chunk in cut(FORMAT, arrays)[:2]:
        replay.append(chunk)
    replay.close()
    facts = describe(tmp_path)
    assert (facts["steps"], facts["total_steps"], facts["chunks"], facts["complete_episodes"]) == (128, 128, 2, 2)
    assert facts["return_mean"] == (29 + 49) / 2
    assert facts["length_mean"] == (29 + 49) / 2
    assert facts["versions"] == "0 to 1"
    assert facts["bytes_raw"] == 128 * FORMAT.step_bytes


def test_a_chunk_being_written_is_no_fault(tmp_path: Path) -> None:
    """While a process has the replay open, verify and info pass over its unfinished end; other damage is reported."""
    chunks = cut(FORMAT, make_stream(FORMAT, [64 * 4]))
    replay = open_replay(tmp_path)
    for chunk in chunks[:3]:
        replay.append(chunk)
    path = segment_paths(tmp_path)[0]
    whole = path.read_bytes()
    for kept in (1, 30, len(chunks[3]) - 1):
        path.write_bytes(whole + chunks[3][:kept])
        assert verify(tmp_path) == []
        assert describe(tmp_path)["steps"] == 192
    middle = whole.index(chunks[1]) + 100
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert [fault for fault in verify(tmp_path) if "no chunk" in fault]
    path.write_bytes(whole + chunks[3][:30])
    replay.close()
    assert [fault for fault in verify(tmp_path) if "30 bytes" in fault]


def test_reports_live_with_segments_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files dropped before they are opened, or while they are read, are no fault."""
    settings = ReplaySettings(held_out_every=0, capacity_steps=8000)
    for number, report in enumerate((describe, verify)):
        directory = tmp_path / str(number)
        replay = open_replay(directory, settings)
        for chunk in cut(FORMAT, make_stream(FORMAT, [64 * 40])):
            replay.append(chunk)
        replay.close()
        first, second, *rest = segment_paths(directory)
        assert rest
        manifest = Manifest.read(directory)
        assert manifest
        replace(manifest, oldest=3).write(directory)  # as a writer does before it drops
        first.unlink()
        monkeypatch.setattr(segment, "segment_paths", lambda _, paths=(first, second, *rest): list(paths))
        seen = segment.Segment.read_header

        def read_header(self: segment.Segment, seen: Any = seen, second: Path = second) -> Any:
            second.unlink(missing_ok=True)
            return seen(self)

        monkeypatch.setattr(segment.Segment, "read_header", read_header)
        found = report(directory)
        assert found == [] if report is verify else found["segments"] == 1 + len(rest)
        assert not second.exists()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("name", "at"), [("is_first", 0), ("is_last", 8), ("is_terminal", 16), ("episode", -1), ("version", -2)]
)
def test_verify_compares_header_and_steps(tmp_path: Path, name: str, at: int) -> None:
    """A header that tells other flags, episodes or versions than its steps, with a right checksum, is a fault."""
    chunk = bytearray(cut(FORMAT, make_stream(FORMAT, [20, 30]))[0])
    header_bytes = parse_header(chunk).blocks[0].offset - PREFIX.size
    episode = PREFIX.size + 4 * 4 + 2 * 8
    place = {-1: episode, -2: episode + 8 + 3 * 8}.get(at, episode + 8 + at)
    chunk[place] ^= 8
    header = chunk[PREFIX.size : PREFIX.size + header_bytes]
    chunk[PREFIX.size - 4 : PREFIX.size] = zlib.crc32(header).to_bytes(4, "little")
    replay = open_replay(tmp_path)
    assert replay.append(bytes(chunk))
    replay.close()
    faults = verify(tmp_path)
    assert any(f"differ in {name}." in fault for fault in faults), faults


def test_verify_finds_an_episode_number_that_does_not_follow(tmp_path: Path) -> None:
    """The episodes of following chunks are numbered on."""
    one, two = (cut(FORMAT, make_stream(FORMAT, [30, 98], first_episode=first)) for first in (0, 3))
    replay = open_replay(tmp_path)
    replay.append(one[0])
    replay.append(two[1])
    replay.close()
    assert [fault for fault in verify(tmp_path) if "begins in episode 4, not 1." in fault]


def test_verify_names_what_is_missing(tmp_path: Path) -> None:
    """A chunk that was never stored and a file that is gone are both reported."""
    settings = ReplaySettings(held_out_every=0, capacity_steps=8000)
    replay = open_replay(tmp_path, settings)
    chunks = cut(FORMAT, make_stream(FORMAT, [64 * 40]))
    for chunk in chunks[:3] + chunks[4:]:
        replay.append(chunk)
    replay.close()
    assert [fault for fault in verify(tmp_path) if "chunks 3 to 3 before it are missing" in fault]
    assert len(verify(tmp_path)) == 1
    segment_paths(tmp_path)[2].unlink()
    assert any("segment 3 is missing, with 448 steps" in fault for fault in verify(tmp_path))


def test_a_directory_without_replay_is_refused(tmp_path: Path) -> None:
    """Both reports say what was looked for."""
    for report in (describe, verify):
        with pytest.raises(UserError, match=r"holds no replay.*segment-\*\.dfl"):
            report(tmp_path)


def test_nothing_more_is_stored_of_an_incarnation_that_was_retired(tmp_path: Path) -> None:
    """Late chunks of a retired incarnation are passed over; those stored before stay, other incarnations continue."""
    replay = open_replay(tmp_path)
    chunks = cut(FORMAT, make_stream(FORMAT, [200]), actor=3, incarnation=7)
    assert replay.append(chunks[0])
    assert replay.retire(3, 7) == 64, "how much of the incarnation is stored"
    assert not replay.append(chunks[1])
    assert replay.counters().total_steps == 64
    for chunk in cut(FORMAT, make_stream(FORMAT, [200]), actor=3, incarnation=8):
        assert replay.append(chunk)
    assert replay.counters().total_steps > 64
    replay.close()
