"""Training: how fast, and what the time goes into."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import ray

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers.learner_ranks import LearnerRanks
from dreamfleet.deploy.workers.ray_pool import KEEP_MEMORY
from dreamfleet.learner.process import LearnerProcess
from dreamfleet.learner.reports import TrainReport
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
the host only tells the device what to do: `forward_backward` and `optimiser` are the telling, `confirm` is the wait for
the device, and the device's own time is that between the first and the last kernel of an update, by CUDA events. What
is hidden are seconds in threads (fetching: of all threads together) and on the streams of copies; on a CPU only batches
are fetched beside the updates, and the rest is done in line. A checkpoint is without the measuring of its loss.
"""
PRESETS = ("quickstart", "article", "planet")
ON_A_GPU = ("dreamer_v3+size_12m",)
"""What a CPU would take minutes for, several presets joined by +."""
_TIMEOUT_S = 600
_ORDER_S = 2.0
_MOST_UPDATES = 200
_QUEUED_ORDERS = 2
_MOST_WAITING = 0.02
_QUICK_BATCH = "8"
_WAITS = {"a batch": "wait", "the device": "confirm"}
_HIDDEN = {"fetch": "wait", "transfer": "transfer", "publish": "publish"}
"""What may be done beside an update, and the timing of what is left of it in line."""


class Order(NamedTuple):
    """The seconds per update of one order: in all, by what they were spent on, and of what was done beside it."""

    all_s: float
    spent: dict[str, float]
    hidden: dict[str, float]


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of training, preset by preset."""
    with local_ray():
        has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        for preset in [*(ON_A_GPU if has_gpu else ()), *PRESETS]:
            yield from _preset(bench, preset.split("+"))


def _preset(bench: Bench, presets: Sequence[str]) -> Iterator[Row]:
    """Yield how fast a learner with these presets is, how its time divides, and how long it waits."""
    preset, publish_every = " ".join(presets), resolve(presets).learner.publish_every
    flags = [("learner.publish_every", "1"), ("learner.threads", str(len(os.sched_getaffinity(0))))]
    flags += [("learner.batch_size", _QUICK_BATCH)] if bench.quick else []
    settings = resolve(presets, flags)
    size, length = settings.learner.batch_size, settings.learner.sequence_length
    spaces = probe_environment(settings.env)
    recording = bench.recording.dressed_as(spaces)
    with replay_server(bench.scratch / f"replay-{presets[0]}", recording, length, 2, settings.replay) as server:
        say(f"{NAME}: starting the learner of {preset}")
        learner = _start(settings, spaces, server, bench.scratch / f"run-{presets[0]}")
        orders = _train(learner, bench.choose(5, 2), publish_every)
        checkpoint = _save(learner)
        learner.kill()
    shape = f"{size}×{length} of {'×'.join(map(str, spaces.images[0].shape))}"
    yield from _rows(preset, shape, orders)
    yield Row(NAME, f"a checkpoint, {preset}", checkpoint)


def _start(settings: Settings, spaces: Spaces, server: Any, run_directory: Path) -> LearnerRanks:
    """Return a learner's process, started as `RayPool` does, that has published its first weights."""
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    variables = {"OMP_NUM_THREADS": str(settings.learner.threads)} | ({} if has_gpu else KEEP_MEMORY)
    learner_class: Any = LearnerProcess
    options = {"num_cpus": 1, "num_gpus": int(has_gpu), "runtime_env": {"env_vars": variables}}
    run_directory.mkdir()
    handle = learner_class.options(**options).remote(settings, spaces.to_json(), [server], str(run_directory))
    learner = LearnerRanks([handle])
    restored = learner.give("restore").result(_TIMEOUT_S)
    for decision in restored.decisions:
        say(f"{NAME}: {decision}")
    if not restored.is_prepared:
        for record in learner.give("prepare").result(_TIMEOUT_S):
            say(f"{NAME}: {record}")
    return learner


def _train(learner: LearnerRanks, orders: int, publish_every: int) -> list[Order]:
    """Return for each order the seconds per update; warm up first."""
    learner.give("train", 1).result(_TIMEOUT_S)
    begun = time.perf_counter()
    learner.give("train", 1).result(_TIMEOUT_S)
    updates = max(1, min(_MOST_UPDATES, round(_ORDER_S / (time.perf_counter() - begun))))
    say(f"{NAME}: {orders} orders of {updates} updates")
    under_way = [learner.give("train", updates) for _ in range(min(_QUEUED_ORDERS, orders))]
    found, begun = [], time.perf_counter()
    for number in range(orders):
        report = under_way.pop(0).result(_TIMEOUT_S)
        ended = time.perf_counter()
        if number + _QUEUED_ORDERS < orders:
            under_way.append(learner.give("train", updates))
        found.append(_per_update(report, ended - begun, updates, publish_every))
        begun = ended
    return found


def _per_update(report: TrainReport, took_s: float, updates: int, publish_every: int) -> Order:
    """Return an order's seconds per update; its one publication counts as often as the preset would publish."""
    per_update = dict.fromkeys(report.timings | report.hidden, 1 / updates) | {"publish": 1 / publish_every}
    spent = {name: seconds * per_update[name] for name, seconds in report.timings.items()}
    hidden = {name: seconds * per_update[name] for name, seconds in report.hidden.items()}
    return Order((took_s - report.timings["publish"]) / updates + spent["publish"], spent, hidden)


def _save(learner: LearnerRanks) -> str:
    """Have a checkpoint written, and return how long training stands still for it, and when it is on the disk."""
    begun = time.perf_counter()
    learner.give("start_saving", {"held_out_loss": None}).result(_TIMEOUT_S)
    stands_s = time.perf_counter() - begun
    learner.give("finish_saving").result(_TIMEOUT_S)
    written_s = time.perf_counter() - begun
    return f"training stands still for {1000 * stands_s:.3g} ms, it is on the disk after {1000 * written_s:.3g} ms"


def _rows(preset: str, shape: str, orders: list[Order]) -> Iterator[Row]:
    """Yield the rows of one preset, from the seconds per update of its orders."""
    rate = 1 / median(order.all_s for order in orders)
    shares = {name: median(order.spent[name] / order.all_s for order in orders) for name in orders[0].spent}
    divided = ", ".join(f"{name} {share:.1%}" for name, share in (shares | {"other": 1 - sum(shares.values())}).items())
    aim = Aim(f"< {_MOST_WAITING:.0%}", shares["wait"] < _MOST_WAITING)
    yield Row(NAME, f"updates, {preset}, {shape}", f"{rate:.3g} updates/s")
    yield Row(NAME, f"where its time goes, {preset}", divided)
    yield Row(NAME, f"waiting while data is there, {preset}", f"{shares['wait']:.2%}", aim=aim)
    yield Row(NAME, f"an update, {preset}", _one_update(orders))
    yield Row(NAME, f"beside an update, {preset}", _beside(orders))


def _one_update(orders: list[Order]) -> str:
    """Return the times of one update: the device's, the host's, and the host's waiting."""
    host_s = median(sum(order.spent.values()) - order.spent["wait"] - order.spent["confirm"] for order in orders)
    waits = [f"waiting for {of} {_ms([order.spent[name] for order in orders])}" for of, name in _WAITS.items()]
    device = [order.hidden["device"] for order in orders if "device" in order.hidden]
    kernels = [f"device {_ms(device)}"] if device else []
    return ", ".join([*kernels, f"host {_ms([host_s])}", *waits])


def _beside(orders: list[Order]) -> str:
    """Return what was done beside an update, and how much of it the update had to wait for."""
    found = []
    for name, in_line in _HIDDEN.items():
        hidden = [order.hidden.get(name, 0.0) for order in orders]
        found.append(f"{name} {_ms(hidden)} hidden, {_ms([order.spent[in_line] for order in orders])} not")
    return ", ".join(found)


def _ms(seconds: list[float]) -> str:
    return f"{1000 * median(seconds):.3g} ms"
