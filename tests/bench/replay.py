"""The replay in one process: speed, size and memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.batch_reader import BatchReader
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.ray_replay import RayReplay
from dreamfleet.replay.replay import Replay
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.memory import turn_over
from tests.bench.recording import Arrays, Recording
from tests.bench.report import Row, at_most
from tests.bench.torchrl_slices import TorchRLSlices

NAME = "replay"
METHOD = """
A `Replay` in this process. "Decompressed": `sample` and `decompress` together, so decoding is included. "Kept decoded":
a `BatchReader` on a replay that keeps all its steps decoded; each batch is drawn when it is read, so drawing is
included; batches in a row are drawn ahead, all at once, as the learner does. Data: CarRacing 64×64×3 as the actors
collect it (recorded steps, repeated as further streams until the store is larger than the processor's caches), and
noise of the same shape. Yardsticks hold the same steps: `np.copyto` of as many bytes of frames into memory that is
there already; numpy slices of arrays in memory, stacked to a batch; TorchRL's `SliceSampler` over `LazyMemmapStorage`
and `LazyTensorStorage`, raw frames, streams as trajectories; processor time adds up the threads of each. Ours, numpy's
and TorchRL's batches are fresh memory each time. Memory is the resident set of a process of its own that fills its
replay, goes on until it has turned over three times, and samples meanwhile.
"""
SHAPES = ((16, 64), (50, 50))
"""Batch size and sequence length of the batches that are sampled."""
_ROW = 32
"""Batches that are measured in a row: as many as a reader draws at once."""
_FILLING_S = 120
_GB = 1e9


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of a replay in one process."""
    copies = bench.choose(8, 4)
    for name, recording in (("CarRacing", bench.recording), ("noise", bench.recording.as_noise())):
        yield _stored_share(bench, name, recording)
        for shape in SHAPES:
            yield from _sampling(bench, name, recording, copies, *shape)
    yield from _memory(bench)


def _stored_share(bench: Bench, name: str, recording: Recording) -> Row:
    """Return what a replay's files take beside the steps not compressed."""
    replay = open_replay(bench.scratch / f"share-{name}", recording, 50)
    stats = replay.stats()
    replay.close()
    ratio = stats["bytes_stored"] / stats["bytes_raw"]
    aim = at_most(ratio, 1 / 8) if name == "CarRacing" else at_most(ratio, 1.01)
    ours, raw = f"{stats['bytes_stored'] / 1e6:.1f} MB", f"raw {stats['bytes_raw'] / 1e6:.1f} MB"
    return Row(NAME, f"bytes stored, {name}", ours, raw, ratio, aim)


def _sampling(bench: Bench, name: str, recording: Recording, copies: int, size: int, length: int) -> Iterator[Row]:
    """Yield sampling's figures beside those of its yardsticks, for batches of one shape."""
    say(f"{NAME}: sampling {size}×{length}, {name}")
    replay = open_replay(bench.scratch / f"{name}-{size}-{length}", recording, length, copies)
    step_format, numbers = recording.step_format, iter(range(1_000_000))

    reader = BatchReader(replay, step_format, size, ahead=False)

    def decompressed() -> dict[str, np.ndarray]:
        return decompress(replay.sample(next(numbers), size), step_format)

    def kept() -> dict[str, np.ndarray]:
        return reader.read(next(numbers))

    whole = _repeated(recording, copies)
    batch_bytes = sum(array.nbytes for array in decompressed().values())
    fill_cache(replay, reader)
    contestants: dict[str, Callable[[], object]] = {
        "decompressed": decompressed,
        "kept decoded": kept,
        "memcpy": _copier(whole["image"], size * length),
    }
    if name == "CarRacing":
        contestants["numpy slices"] = _slicer(whole, copies * len(recording.streams), size, length)
        for kind in ("memmap", "tensor"):
            storage = TorchRLSlices(kind, whole, copies * len(recording.streams), size, length, bench.scratch)
            contestants[f"TorchRL {kind}"] = storage.sample
    turns = take_turns(contestants, bench.choose(31, 5), warm_up=2)
    in_a_row = _in_a_row(bench, BatchReader(replay, step_format, size, ahead=True), contestants.get("numpy slices"))
    replay.close()
    batch = f"a batch, {size}×{length}, {name}"
    for who in ("decompressed", "kept decoded"):
        yield _speed_row(f"bytes of {batch}, {who}", turns, who, batch_bytes)
        for peer in list(contestants)[3:]:
            limit = 1 / 3 if (who, peer) == ("kept decoded", "TorchRL memmap") else None
            yield _time_row(f"time of {batch}, {who}", turns, who, peer, limit)
            yield _time_row(f"processor time of {batch}, {who}", turns.processor_time(), who, peer, None)
    if in_a_row:
        yield _time_row(
            f"time of {_ROW} batches, {size}×{length}, {name}", in_a_row, "kept decoded", "numpy slices", 1.5
        )
        in_a_row = in_a_row.processor_time()
        what = f"processor time of {_ROW} batches, {size}×{length}, {name}"
        yield _time_row(what, in_a_row, "kept decoded", "numpy slices", None)


def _in_a_row(bench: Bench, reader: BatchReader, slices: Callable[[], object] | None) -> Turns | None:
    """Return the times of as many batches in a row as a reader draws at once, beside numpy slices."""
    if slices is None:
        return None
    numbers = itertools.count()

    def kept() -> None:
        for number in itertools.islice(numbers, _ROW):
            reader.read(number)

    def sliced() -> None:
        for _ in range(_ROW):
            slices()

    return take_turns({"kept decoded": kept, "numpy slices": sliced}, bench.choose(15, 3), warm_up=7)


def _time_row(what: str, turns: Turns, who: str, peer: str, limit: float | None) -> Row:
    ratio = turns.ratio(who, peer)
    ours, theirs = (f"{1e3 * turns.median(each):.1f} ms" for each in (who, peer))
    return Row(NAME, what, ours, f"{peer} {theirs}", ratio, at_most(ratio, limit) if limit else None)


def _speed_row(what: str, turns: Turns, who: str, batch_bytes: int) -> Row:
    ours, peer = (f"{batch_bytes / turns.median(each) / _GB:.2f} GB/s" for each in (who, "memcpy"))
    return Row(NAME, what, ours, f"memcpy {peer}", turns.ratio("memcpy", who))


def fill_cache(replay: Replay | RayReplay, reader: BatchReader) -> None:
    """Read batches until the replay keeps all its steps decoded, or no more than it does.

    Raises:
        TimeoutError: if it does not come about.
    """
    deadline = time.monotonic() + _FILLING_S
    for number in itertools.count():
        reader.read(number)
        if number % 20 == 0 and (stats := replay.stats())["decoded_steps"] == stats["steps"]:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{stats['decoded_steps']} of {stats['steps']} steps are decoded after {_FILLING_S} s")


def open_replay(directory: Path, recording: Recording, length: int, copies: int = 1) -> Replay:
    """Return a replay that holds the recording, each of its streams this many times."""
    settings = ReplaySettings(capacity_gb=4.0, held_out_every=0, cache_gb=2.0)
    replay = Replay(directory, recording.step_format, settings, length, seed=0)
    for chunk in recording.chunks(copies=copies):
        replay.append(chunk)
    return replay


def _repeated(recording: Recording, copies: int) -> Arrays:
    """Return all streams end to end, this many times, each field as (steps, *shape)."""
    streams = [stream for _ in range(copies) for stream in recording.streams]
    return {name: np.concatenate([stream[name] for stream in streams]) for name in streams[0]}


def _copier(frames: np.ndarray, count: int) -> Callable[[], None]:
    """Return the function that copies `count` frames, each time others, to one place in memory."""
    generator, target = np.random.default_rng(0), np.zeros((count, *frames.shape[1:]), np.uint8)
    span = min(count, len(frames))

    def copy() -> None:
        done = 0
        while done < count:
            part = min(span, count - done)
            start = int(generator.integers(0, len(frames) - part + 1))
            np.copyto(target[done : done + part], frames[start : start + part])
            done += part

    return copy


def _slicer(whole: Arrays, streams: int, size: int, length: int) -> Callable[[], Arrays]:
    """Return the function that makes a batch of slices of arrays in memory, none of which joins two streams."""
    generator, stream_steps = np.random.default_rng(0), len(whole["reward"]) // streams

    def draw() -> Arrays:
        starts = generator.integers(0, streams, size) * stream_steps
        starts += generator.integers(0, stream_steps - length + 1, size)
        return {name: np.stack([array[s : s + length] for s in starts]) for name, array in whole.items()}

    return draw


def _memory(bench: Bench) -> Iterator[Row]:
    """Yield the resident memory of a replay's process that fills up and turns over."""
    capacity_gb = bench.choose(200, 20) / 1e3
    for name, recording in (("CarRacing", bench.recording), ("noise", bench.recording.as_noise())):
        say(f"{NAME}: memory while {capacity_gb * 1e3:.0f} MB of {name} turn over")
        sizes = turn_over(bench.scratch / f"memory-{name}", recording, capacity_gb, turns=3)
        shown = ", ".join(f"{size / 2**20:.1f}" for size in sizes[1:])
        what = f"memory after turning over 1, 2, 3 times, {capacity_gb * 1e3:.0f} MB of {name}"
        ratio = sizes[-1] / sizes[0]
        yield Row(NAME, what, f"{shown} MiB", f"when full {sizes[0] / 2**20:.1f} MiB", ratio, at_most(ratio, 1.05))
