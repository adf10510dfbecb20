"""The replay in one process: speed, size and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.replay import Replay
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.memory import turn_over
from tests.bench.recording import Arrays, Recording
from tests.bench.report import Row, at_most
from tests.bench.torchrl_slices import TorchRLSlices

NAME = "replay"
METHOD = """
A `Replay` in this process, `sample` and `decompress` together, so decoding is included. Data: CarRacing 64×64×3 as the
actors collect it (recorded steps, repeated as further streams until the store is larger than the processor's caches),
and noise of the same shape. Yardsticks hold the same steps: `np.copyto` of as many bytes of frames into memory that
is there already; numpy slices of arrays in memory, stacked to a batch; TorchRL's `SliceSampler` over
`LazyMemmapStorage` and `LazyTensorStorage`, raw frames, streams as trajectories; processor time adds up the threads
of each. Ours, numpy's and TorchRL's batches are fresh memory each time. Memory is the resident set of a process of
its own that fills its replay, goes on until it has turned over three times, and samples meanwhile.
"""
SHAPES = ((16, 64), (50, 50))
"""Batch size and sequence length of the batches that are sampled."""
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

    def ours() -> dict[str, np.ndarray]:
        return decompress(replay.sample(next(numbers), size), step_format)

    whole = _repeated(recording, copies)
    batch_bytes = sum(array.nbytes for array in ours().values())
    contestants: dict[str, Callable[[], object]] = {"ours": ours, "memcpy": _copier(whole["image"], size * length)}
    if name == "CarRacing":
        contestants["numpy slices"] = _slicer(whole, copies * len(recording.streams), size, length)
        for kind in ("memmap", "tensor"):
            storage = TorchRLSlices(kind, whole, copies * len(recording.streams), size, length, bench.scratch)
            contestants[f"TorchRL {kind}"] = storage.sample
    turns = take_turns(contestants, bench.choose(31, 5), warm_up=2)
    replay.close()
    yield _speed_row(f"decoded bytes, {size}×{length}, {name}", turns, batch_bytes)
    batch = f"a batch, {size}×{length}, {name}"
    for peer in list(contestants)[2:]:
        yield _time_row(f"time of {batch}", turns, peer, 1 / 3 if peer.startswith("TorchRL") else None)
        if peer.startswith("TorchRL"):
            yield _time_row(f"processor time of {batch}", turns.processor_time(), peer, None)


def _time_row(what: str, turns: Turns, peer: str, limit: float | None) -> Row:
    ratio = turns.ratio("ours", peer)
    ours, theirs = (f"{1e3 * turns.median(who):.1f} ms" for who in ("ours", peer))
    return Row(NAME, what, ours, f"{peer} {theirs}", ratio, at_most(ratio, limit) if limit else None)


def _speed_row(what: str, turns: Turns, batch_bytes: int) -> Row:
    ours, peer = (f"{batch_bytes / turns.median(who) / _GB:.2f} GB/s" for who in ("ours", "memcpy"))
    return Row(NAME, what, ours, f"memcpy {peer}", turns.ratio("memcpy", "ours"))


def open_replay(directory: Path, recording: Recording, length: int, copies: int = 1) -> Replay:
    """Return a replay that holds the recording, each of its streams this many times."""
    settings = ReplaySettings(capacity_gb=4.0, held_out_every=0)
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
