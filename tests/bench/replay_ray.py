"""The replay as a process on Ray: inserting and sampling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import ray

from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.batch_reader import BatchReader
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.ray_replay import RayChunkWriter, RayReplay
from tests.bench.measure import Bench, say, take_turns
from tests.bench.ray_session import local_ray, replay_server
from tests.bench.recording import Arrays, Recording
from tests.bench.replay import fill_cache
from tests.bench.report import Aim, Row, at_least, at_most

NAME = "replay-ray"
METHOD = """
The replay's process on Ray, and real CarRacing frames of 64×64×3. Inserting: 1, 4 and 16 Ray actors push chunks of 64
steps that they have encoded before, through `RayChunkWriter`, all at once; timed from the order until the last chunk is
acknowledged, so on disk as the service promises. Sampling: this process fetches whole batches with `RayReplay.sample`
and decodes them with `decompress`, one after the other. The yardstick is a Ray actor that has the decoded batch as
arrays and returns it, which puts it in Ray's object store; this process gets it and copies it to memory of its own, as
a learner must that keeps nothing pinned; and once more without the copy, only touching each page.
"""
_ACTORS = (1, 4, 16)
_SHAPES = ((16, 64), (50, 50))
_TIMEOUT_S = 300
_PAGE = 4096
_STARTED_AT_ONCE = 4
_LEAST_STEPS_PER_S = 20_000
_UPDATES_PER_S = 60
_MOST_OF_A_CORE = 0.02


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of inserting and of sampling."""
    with local_ray():
        yield from _inserting(bench)
        for shape in _SHAPES:
            yield from _sampling(bench, *shape)
        for cache_gb in (0.0, 2.0):
            yield _in_step(bench, cache_gb)


@ray.remote
class Pusher:
    """A simulated actor that pushes recorded chunks.

    Args:
        number: its number as an actor.
        server: the replay's process.
        recording: what it pushes.
    """

    def __init__(self, number: int, server: Any, recording: Recording) -> None:
        self._number, self._writer, self._recording = number, RayChunkWriter(server), recording
        self._sequence = 0
        self._chunks: list[bytes] = []

    def prepare(self, chunks: int) -> None:
        """Encode the next chunks."""
        numbers = range(self._sequence, self._sequence + chunks)
        self._chunks = [self._recording.chunk(ChunkKey(self._number, 0, 0, number)) for number in numbers]
        self._sequence += chunks

    def push(self) -> None:
        """Send what is prepared, and return once all of it is acknowledged."""
        for chunk in self._chunks:
            self._writer.append(chunk)
        self._writer.flush(_TIMEOUT_S)


@ray.remote
class Giver:
    """Has a batch, and returns it."""

    def __init__(self, batch: Arrays) -> None:
        self._batch = {name: np.array(array) for name, array in batch.items()}

    def give(self) -> Arrays:
        """Return the batch; Ray copies it to the object store."""
        return self._batch


def _inserting(bench: Bench) -> Iterator[Row]:
    """Yield how many steps per second one server takes in from this many actors."""
    recording = bench.recording
    with replay_server(bench.scratch / "insert", recording, 50) as server:
        say(f"{NAME}: starting {max(_ACTORS)} actors that push")
        pushers = _start_pushers(server, recording, max(_ACTORS))
        chunks = bench.choose(480, 96)
        for count in _ACTORS:
            say(f"{NAME}: inserting from {count} actors")
            seconds = _push_all(pushers[:count], chunks // count, bench.choose(5, 2))
            rate = chunks // count * count * CHUNK_STEPS / seconds
            aim = Aim(f"> {_LEAST_STEPS_PER_S:,} steps/s", rate > _LEAST_STEPS_PER_S)
            yield Row(NAME, f"steps inserted, {count} actor{'s' * (count > 1)}", f"{rate:,.0f} steps/s", aim=aim)
        for actor in pushers:
            ray.kill(actor)


def _start_pushers(server: Any, recording: Recording, count: int) -> list[Any]:
    """Return this many actors that push, started a few at a time: Ray warns of more."""
    shared, pushers = ray.put(recording), []
    for number in range(count):
        pushers.append(Pusher.options(num_cpus=1).remote(number, server, shared))  # type: ignore[attr-defined]
        if number % _STARTED_AT_ONCE == 0:
            ray.get(pushers[-1].prepare.remote(0), timeout=_TIMEOUT_S)
    return pushers


def _push_all(pushers: list[Any], chunks: int, turns: int) -> float:
    """Return the median seconds in which all the actors push this many chunks each."""

    def prepare() -> None:
        ray.get([pusher.prepare.remote(chunks) for pusher in pushers], timeout=_TIMEOUT_S)

    def push() -> None:
        ray.get([pusher.push.remote() for pusher in pushers], timeout=_TIMEOUT_S)

    return take_turns({"prepare": prepare, "push": push}, turns).median("push")


def _sampling(bench: Bench, size: int, length: int) -> Iterator[Row]:
    """Yield how many batches per second arrive decoded, beside Ray's object store alone."""
    say(f"{NAME}: sampling {size}×{length}")
    recording = bench.recording
    with replay_server(bench.scratch / f"sample-{length}", recording, length, bench.choose(8, 4)) as server:
        replay, step_format, numbers = RayReplay(server), recording.step_format, iter(range(1_000_000))

        def ours() -> Arrays:
            return decompress(replay.sample(next(numbers), size), step_format)

        giver = Giver.remote(ours())  # type: ignore[attr-defined]
        contestants: dict[str, Callable[[], object]] = {
            "ours": ours,
            "put, get and copy": lambda: {name: array.copy() for name, array in _get(giver).items()},
            "put, get and touch": lambda: [_touch(array) for array in _get(giver).values()],
        }
        turns = take_turns(contestants, bench.choose(21, 5), warm_up=2)
        ray.kill(giver)
    for peer in list(contestants)[1:]:
        ratio = turns.ratio(peer, "ours")
        rates = [f"{1 / turns.median(who):.1f} batches/s" for who in ("ours", peer)]
        aim = at_least(ratio, 0.5) if peer == "put, get and copy" else None
        yield Row(NAME, f"batches sampled, {size}×{length}", rates[0], f"{peer} {rates[1]}", ratio, aim)


def _in_step(bench: Bench, cache_gb: float) -> Row:
    """Return what the replay's process spends while a learner takes 60 batches of 16×64 a second."""
    size, length = _SHAPES[0]
    kept = "kept decoded" if cache_gb else "compressed"
    say(f"{NAME}: {_UPDATES_PER_S} batches of {size}×{length} a second, {kept}")
    recording, seconds = bench.recording, bench.choose(20, 3)
    settings = ReplaySettings(capacity_gb=4.0, held_out_every=0, cache_gb=cache_gb)
    directory = bench.scratch / f"step-{kept}"
    with replay_server(directory, recording, length, bench.choose(8, 4), settings) as server:
        reader = BatchReader(RayReplay(server), recording.step_format, size, ahead=True)
        process = psutil.Process(ray.get(server.health.remote(), timeout=_TIMEOUT_S))
        if cache_gb:
            fill_cache(RayReplay(server), reader)
        with ThreadPoolExecutor(2) as threads:
            _read_in_step(reader, threads, 0, _UPDATES_PER_S)
            times = [process.cpu_times()]
            took = _read_in_step(reader, threads, _UPDATES_PER_S, seconds * _UPDATES_PER_S)
            times.append(process.cpu_times())
            time.sleep(seconds)
            times.append(process.cpu_times())
    reading, idle = (after.user + after.system - before.user - before.system for before, after in pairwise(times))
    idle *= took / seconds
    updates = seconds * _UPDATES_PER_S
    share = (reading - idle) / updates * _UPDATES_PER_S
    ours = f"{share:.1%} of a core, {1e3 * (reading - idle) / updates:.2f} ms a batch"
    beside = f"idle {idle / took:.1%}; {updates / took:.0f} batches/s"
    what = f"the replay's side of {_UPDATES_PER_S} updates/s, {size}×{length}, {kept}"
    return Row(NAME, what, ours, beside, aim=at_most(share, _MOST_OF_A_CORE) if cache_gb else None)


def _read_in_step(reader: BatchReader, threads: ThreadPoolExecutor, first: int, count: int) -> float:
    """Read batches at the rate of a learner, two ahead, and return the seconds it took."""
    begun = time.monotonic()
    reading = deque(threads.submit(reader.read, first + number) for number in range(2))
    for number in range(count):
        time.sleep(max(0.0, begun + number / _UPDATES_PER_S - time.monotonic()))
        reading.popleft().result()
        if number + 2 < count:
            reading.append(threads.submit(reader.read, first + number + 2))
    return time.monotonic() - begun


def _get(giver: Any) -> Arrays:
    arrays: Arrays = ray.get(giver.give.remote(), timeout=_TIMEOUT_S)
    return arrays


def _touch(array: np.ndarray) -> int:
    """Read one byte of each page."""
    return int(array.reshape(-1).view(np.uint8)[::_PAGE].max())
