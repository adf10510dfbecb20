"""What replay processes take in and give out, by the number of shards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import ray

from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.ray_replay import RayChunkWriter, RayReplay
from tests.bench.measure import Bench, say
from tests.bench.ray_session import local_ray, replay_server
from tests.bench.recording import Recording
from tests.bench.report import Row

NAME = "ingest"
METHOD = """
Replay processes on Ray, as many as there are shards, each on a directory of its own. Inserting: two processes send
chunks of 64 steps of 64×64×3 (CarRacing, compressed; and noise, which does not compress) that they have encoded before,
to all shards in turn, through `RayChunkWriter`; timed until the last is acknowledged. Sampling: the same two processes
fetch compressed batches of 50×50 from the shards in turn with `RayReplay.sample` and do not decode them. With few
cores the sum over the shards cannot rise with their number, since senders, shards and Ray share them; so the
processor time is measured too (of all threads of the replay processes, Ray's part of them included), and what one
process could take from a core of its own is derived from it, not measured.
"""
_SHARDS = (1, 2, 4)
_SENDERS = 2
_BATCH = (50, 50)
_TIMEOUT_S = 300
_MB = 1e6


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of each number of shards."""
    with local_ray():
        senders = [_Sender.remote(number) for number in range(_SENDERS)]  # type: ignore[attr-defined]
        for count in _SHARDS if not bench.quick else _SHARDS[:1]:
            with _shards(bench, count, "frames", bench.recording) as servers:
                yield from _inserting(senders, servers, bench.recording, "CarRacing", bench.choose(4000, 200))
                yield from _sampling(senders, servers, bench.choose(200, 10))
        noise = bench.recording.as_noise()
        with _shards(bench, 1, "noise", noise) as servers:
            yield from _inserting(senders, servers, noise, "noise", bench.choose(800, 100))


@ray.remote
class _Sender:
    """A process that sends chunks to shards, and fetches batches from them, as fast as it can."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._chunks: list[bytes] = []
        self._incarnation = 0

    def prepare(self, recording: Recording, chunks: int) -> int:
        """Encode chunks; return their bytes."""
        self._incarnation += 1
        keys = (ChunkKey(self._number, self._incarnation, 0, number) for number in range(chunks))
        self._chunks = [recording.chunk(key) for key in keys]
        return sum(map(len, self._chunks))

    def send(self, servers: list[Any]) -> float:
        """Send all of them to the shards in turn; return the processor seconds that took here."""
        begun = time.process_time()
        writers = [RayChunkWriter(server) for server in servers]
        for number, chunk in enumerate(self._chunks):
            writers[number % len(writers)].append(chunk)
        for writer in writers:
            writer.flush(_TIMEOUT_S)
        return time.process_time() - begun

    def sample(self, servers: list[Any], batches: int) -> float:
        """Fetch batches from the shards in turn; return the processor seconds that took here."""
        begun = time.process_time()
        replays = [RayReplay(server) for server in servers]
        for number in range(batches):
            replays[number % len(replays)].sample(number * _SENDERS + self._number, _BATCH[0])
        return time.process_time() - begun


def _inserting(senders: list[Any], servers: list[Any], recording: Recording, what: str, chunks: int) -> Iterator[Row]:
    """Yield how fast the shards take in chunks, and what that costs."""
    say(f"{NAME}: inserting {what}, {len(servers)} shards")
    shared, share = ray.put(recording), chunks // len(senders)
    _all([sender.prepare.remote(shared, share // 4) for sender in senders])
    _all([sender.send.remote(servers) for sender in senders])  # does not count: connections are made
    sent = sum(_all([sender.prepare.remote(shared, share) for sender in senders]))
    seconds, ours, theirs = _timed(servers, [sender.send for sender in senders], servers)
    steps = share * len(senders) * CHUNK_STEPS
    label = f"inserted, {what}, {_shards_in_words(len(servers))}"
    yield Row(NAME, f"steps {label}", f"{steps / seconds:,.0f} steps/s", f"{sent / seconds / _MB:.1f} MB/s on the wire")
    yield _cost(label, steps, ours, theirs)


def _sampling(senders: list[Any], servers: list[Any], batches: int) -> Iterator[Row]:
    """Yield how fast the shards give out batches, and what that costs."""
    say(f"{NAME}: sampling, {len(servers)} shards")
    share = batches // len(senders)
    _all([sender.sample.remote(servers, 2 * len(servers)) for sender in senders])
    seconds, ours, theirs = _timed(servers, [sender.sample for sender in senders], servers, share)
    steps = share * len(senders) * _BATCH[0] * _BATCH[1]
    label = f"sampled, CarRacing, {_shards_in_words(len(servers))}"
    rate = share * len(senders) / seconds
    yield Row(NAME, f"steps {label}", f"{steps / seconds:,.0f} steps/s", f"{rate:.1f} batches/s of 50×50")
    yield _cost(label, steps, ours, theirs)


def _cost(label: str, steps: int, ours: float, theirs: float) -> Row:
    """Return the row of processor time: per 1,000 steps, and what a whole core would do."""
    each = f"{ours / steps * 1e6:.1f} ms of the shards per 1,000 steps"
    alone = f"derived: {steps / ours:,.0f} steps/s from a core; senders {theirs / steps * 1e6:.1f} ms per 1,000"
    return Row(NAME, f"processor time, {label}", each, alone)


def _timed(servers: list[Any], methods: list[Any], *arguments: Any) -> tuple[float, float, float]:
    """Have all do it; return the seconds, and the processor seconds of the shards and of the senders."""
    processes = [psutil.Process(pid) for pid in _all([server.health.remote() for server in servers])]
    before, begun = _processor_seconds(processes), time.perf_counter()
    theirs = _all([method.remote(*arguments) for method in methods])
    seconds = time.perf_counter() - begun
    return seconds, _processor_seconds(processes) - before, sum(theirs)


def _processor_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


@contextmanager
def _shards(bench: Bench, count: int, name: str, recording: Recording) -> Iterator[list[Any]]:
    """Give the handles of this many replay processes, each filled enough to sample from."""
    with ExitStack() as stack:
        folder = bench.scratch / f"{name}-{count}"
        yield [
            stack.enter_context(replay_server(folder / str(number), recording, _BATCH[1], copies=1))
            for number in range(count)
        ]


def _shards_in_words(count: int) -> str:
    return f"{count} shard{'s' * (count > 1)}"


def _all(references: list[Any]) -> list[Any]:
    return list(ray.get(references, timeout=_TIMEOUT_S))
