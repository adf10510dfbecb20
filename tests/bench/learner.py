"""Training: how fast, and what the time goes into."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import ray

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers.ray_pool import KEEP_MEMORY
from dreamfleet.learner.process import LearnerProcess
from tests.bench.measure import Bench, say
from tests.bench.ray_session import local_ray, replay_server
from tests.bench.report import Aim, Row

NAME = "learner"
METHOD = """
The learner's process as the service has it, `LearnerProcess` on Ray, on the GPU if there is one, fed by a replay's
process that is full of the recorded CarRacing frames dressed as the preset's environment would show them (grey,
enlarged, other actions). No actors run beside it, and it has all cores. Orders are queued two at a time, long enough
for two seconds or more each; figures are medians over the orders, after a first update that does not count. Shares
are of the orders' time; `publish` is measured once per order and counted as often as the preset publishes. On a GPU
the optimiser runs on while the next update is prepared: its time is then within the next forward and backward.
"""
PRESETS = ("quickstart", "seed", "planet")
_TIMEOUT_S = 600
_ORDER_S = 2.0
_MOST_UPDATES = 200
_QUEUED_ORDERS = 2
_MOST_WAITING = 0.02
_QUICK_BATCH = "8"


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of training, preset by preset."""
    with local_ray():
        for preset in PRESETS:
            yield from _preset(bench, preset)


def _preset(bench: Bench, preset: str) -> Iterator[Row]:
    """Yield how fast one preset's learner is, how its time divides, and how long it waits."""
    publish_every = resolve([preset]).learner.publish_every
    flags = [("learner.publish_every", "1"), ("learner.threads", str(len(os.sched_getaffinity(0))))]
    flags += [("learner.batch_size", _QUICK_BATCH)] if bench.quick else []
    settings = resolve([preset], flags)
    size, length = settings.learner.batch_size, settings.learner.sequence_length
    spaces = probe_environment(settings.env)
    recording = bench.recording.dressed_as(spaces)
    with replay_server(bench.scratch / f"replay-{preset}", recording, length, 2, settings.replay) as server:
        say(f"{NAME}: starting the learner of {preset}")
        learner = _start(settings, spaces, server, bench.scratch / f"run-{preset}")
        orders = _train(learner, bench.choose(5, 2), publish_every)
        ray.kill(learner)
    shape = f"{size}×{length} of {'×'.join(map(str, spaces.images[0].shape))}"
    yield from _rows(preset, shape, orders)


def _start(settings: Settings, spaces: Spaces, server: Any, run_directory: Path) -> Any:
    """Return a learner's process, started as `RayPool` does, that has published its first weights."""
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    variables = {"OMP_NUM_THREADS": str(settings.learner.threads)} | ({} if has_gpu else KEEP_MEMORY)
    learner_class: Any = LearnerProcess
    options = {"num_cpus": 1, "num_gpus": int(has_gpu), "runtime_env": {"env_vars": variables}}
    run_directory.mkdir()
    learner = learner_class.options(**options).remote(settings, spaces.to_json(), [server], str(run_directory))
    for decision in ray.get(learner.restore.remote(), timeout=_TIMEOUT_S).decisions:
        say(f"{NAME}: {decision}")
    return learner


def _train(learner: Any, orders: int, publish_every: int) -> list[dict[str, float]]:
    """Return for each order the seconds per update, `all` and what they went into; warm up first."""
    ray.get(learner.train.remote(1), timeout=_TIMEOUT_S)
    begun = time.perf_counter()
    ray.get(learner.train.remote(1), timeout=_TIMEOUT_S)
    updates = max(1, min(_MOST_UPDATES, round(_ORDER_S / (time.perf_counter() - begun))))
    say(f"{NAME}: {orders} orders of {updates} updates")
    under_way = [learner.train.remote(updates) for _ in range(min(_QUEUED_ORDERS, orders))]
    found, begun = [], time.perf_counter()
    for number in range(orders):
        report = ray.get(under_way.pop(0), timeout=_TIMEOUT_S)
        ended = time.perf_counter()
        if number + _QUEUED_ORDERS < orders:
            under_way.append(learner.train.remote(updates))
        found.append(_per_update(report.timings, ended - begun, updates, publish_every))
        begun = ended
    return found


def _per_update(timings: dict[str, float], took_s: float, updates: int, publish_every: int) -> dict[str, float]:
    """Return an order's seconds per update; its one publication counts as often as the preset would publish."""
    publish = timings["publish"]
    seconds = {name: value / updates for name, value in timings.items()} | {"publish": publish / publish_every}
    return seconds | {"all": (took_s - publish) / updates + seconds["publish"]}


def _rows(preset: str, shape: str, orders: list[dict[str, float]]) -> Iterator[Row]:
    """Yield the rows of one preset, from the seconds per update of its orders."""
    rate = 1 / median(order["all"] for order in orders)
    shares = {name: median(order[name] / order["all"] for order in orders) for name in orders[0] if name != "all"}
    divided = ", ".join(f"{name} {share:.1%}" for name, share in (shares | {"other": 1 - sum(shares.values())}).items())
    aim = Aim(f"< {_MOST_WAITING:.0%}", shares["wait"] < _MOST_WAITING)
    yield Row(NAME, f"updates, {preset}, {shape}", f"{rate:.3g} updates/s")
    yield Row(NAME, f"where its time goes, {preset}", divided)
    yield Row(NAME, f"waiting while data is there, {preset}", f"{shares['wait']:.2%}", aim=aim)
