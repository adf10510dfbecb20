"""The fleet loop alone: what share of a core it takes, and how soon an actor has its next order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import psutil
import ray

from dreamfleet.actors.collector import CollectReport
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import put_weights
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import ORDERS_QUEUED, FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.workers.pool import Worker
from dreamfleet.deploy.workers.ray_pool import RayPool
from tests.bench.measure import Bench, say
from tests.bench.ray_session import local_ray
from tests.bench.real_time_pool import RealTimePool
from tests.bench.report import Row

NAME = "loop"
METHOD = """
The fleet loop (`Fleet`) in this process, in real time, with simulated workers: 10, 100 and 1,000 actors that make 60
steps/s each and get orders of 64 steps, so about one order a second each, and a learner of 10 updates/s. Processor time
is this process's, the simulation's own part (a heap) and all looking after the actors included; delay is the time from
the moment at which an actor's answer is due to the moment at which the loop gives that actor its next order. An actor
has two orders, so it idles only if that delay is longer than an order takes. Ray's part is measured apart, with real
calls: a few actors that answer at once, two orders in flight each, through `RayPool.give`, `wait` and `result`; the
processor time is the driver's, of all its threads, Ray's included. Growth is that of Ray's own processes and of the
actors from the end of the warm-up on: a run gives a thousand orders a second at most, for days.
"""
_ACTORS = (10, 100, 1000)
_STEPS_PER_S = 60.0
_UPDATES_PER_S = 10.0
_ORDER_STEPS = 64
_CALLED_ACTORS = (2, 4)


@dataclass
class _Stretch:
    """What is read at the beginning and at the end of what is measured."""

    clock: float
    processor: float
    orders: int
    delays: int


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the loop's figures for each number of actors, then those of Ray's calls."""
    for count in _ACTORS:
        yield from _looping(count, bench.choose(30, 3), bench.choose(5, 2))
    with local_ray():
        for count in _CALLED_ACTORS:
            yield from _calling(count, bench.choose(20_000, 300))


def _looping(actors: int, seconds: float, warm_up_s: float) -> Iterator[Row]:
    """Yield the figures of the loop with this many simulated actors."""
    say(f"{NAME}: {actors} simulated actors")
    pool = RealTimePool(actors, _STEPS_PER_S, _UPDATES_PER_S)
    begun = time.perf_counter()
    read: list[_Stretch] = []

    def is_over() -> bool:
        now = time.perf_counter()
        if now - begun >= warm_up_s + seconds * len(read):
            read.append(_Stretch(now, time.process_time(), pool.orders, len(pool.delays)))
        return len(read) == 2

    # A little less experience than the learner could train on: it is the actors that are to be kept busy.
    ratio = TrainRatio(10**12, ratio=1.0, replayed_per_update=int(actors * _STEPS_PER_S / (0.9 * _UPDATES_PER_S)))
    Fleet(pool, _config(actors), Ledger(ratio), should_stop=is_over).run()
    first, last = read
    wall, processor, orders = last.clock - first.clock, last.processor - first.processor, last.orders - first.orders
    delays = np.array(pool.delays[first.delays : last.delays]) * 1e3
    what = f"{actors:,} simulated actors"
    yield Row(NAME, f"share of a core, {what}", f"{processor / wall:.1%}", f"{orders / wall:,.0f} orders/s")
    yield Row(NAME, f"processor time of an order, {what}", f"{processor / orders * 1e6:.0f} µs")
    low, high = np.percentile(delays, [50, 99])
    yield Row(NAME, f"delay until the next order, {what}", f"median {low:.2f} ms, 99 % within {high:.2f} ms",
              f"most {delays.max():.1f} ms")  # fmt: skip


def _config(actors: int) -> FleetConfig:
    return FleetConfig(
        actors=actors,
        environments=1,
        steps_per_order=_ORDER_STEPS,
        updates_per_order=8,
        checkpoint_every=1000,
        picture_every=1000,
        actor_timeout_s=300.0,
        learner_timeout_s=300.0,
    )


class _Calls(RayPool):
    """The part of the pool on Ray that gives orders and takes answers, without a run."""

    def __init__(self) -> None:
        self._done = SimpleQueue()
        self._actors = []


@ray.remote
class _Idler:
    """An actor that answers at once, with what an actor answers."""

    def collect(self, steps: int, weights: PublishedWeights) -> CollectReport:
        """Return the report of an order."""
        del weights
        return CollectReport(steps=steps, episodes=[], timings={"environment": 1.0, "policy": 0.1, "store": 0.1})


def _calling(actors: int, orders: int) -> Iterator[Row]:
    """Yield what an order costs the driver on Ray."""
    say(f"{NAME}: Ray's calls to {actors} actors")
    pool, workers, weights = start_calls(actors)
    order_about(pool, workers, weights, orders // 10)  # does not count: processes start
    before = sizes()
    begun, begun_processor = time.perf_counter(), time.process_time()
    order_about(pool, workers, weights, orders)
    seconds, processor = time.perf_counter() - begun, time.process_time() - begun_processor
    grown = {name: size - before[name] for name, size in sizes().items() if name in before}
    for worker in workers:
        pool.stop(worker)
    what = f"{actors} actors on Ray that answer at once"
    yield Row(NAME, f"orders answered, {what}", f"{orders / seconds:,.0f} orders/s")
    yield Row(NAME, f"processor time of an order in the driver, {what}", f"{processor / orders * 1e6:.0f} µs",
              f"{1000 * processor / orders:.0%} of a core for 1,000 orders/s")  # fmt: skip
    control = sum(size for name, size in grown.items() if name.startswith("gcs_server"))
    yield Row(NAME, f"growth of Ray's control process in {orders:,} orders, {what}", f"{control / 1e6:.1f} MB",
              f"all processes {sum(grown.values()) / 1e6:.1f} MB")  # fmt: skip


def start_calls(actors: int) -> tuple[RayPool, list[Worker], PublishedWeights]:
    """Return a pool with this many actors that answer at once, and weights for their orders."""
    workers = [Worker(f"actor {number}", _Idler.remote()) for number in range(actors)]  # type: ignore[attr-defined]
    return _Calls(), workers, put_weights(0, np.zeros(1000, np.float32))


def sizes() -> dict[str, int]:
    """Return the resident bytes of all processes that descend from this one, by name and id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found[f"{process.name()} {process.pid}"] = process.memory_info().rss
    return found


def order_about(pool: RayPool, workers: list[Worker], weights: PublishedWeights, orders: int) -> None:
    """Give this many orders, two in flight for each worker, and take the answers."""
    under_way = {pool.give(worker, "collect", _ORDER_STEPS, weights): worker for worker in workers * ORDERS_QUEUED}
    given = len(under_way)
    while under_way:
        for future in pool.wait(60.0):
            worker = under_way.pop(future)
            if pool.result(future).steps != _ORDER_STEPS:
                raise ValueError("an answer is not that of its order")
            if given < orders:
                under_way[pool.give(worker, "collect", _ORDER_STEPS, weights)] = worker
                given += 1
