"""The traffic, the limits and the time of a run: pure arithmetic.

All of a run moves in step: at U updates/s of B sequences of T steps and train ratio X, the learner replays U·B·T
steps/s, for which the actors collect S = U·B·T / X env steps/s. So every limit can be said in updates per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from dreamfleet.common.formatting import counted, number
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.plan.footprint import Footprint

GIGABIT = 125e6
"""Bytes per second of 1 Gbit/s."""
DISK_BYTES_PER_S = 125e6
"""A disk's sequential writing: what an ordinary network volume grants (AWS gp3); local SSDs do ten times that."""

BETWEEN_GPUS_BYTES_PER_S = 20e9
"""What GPUs of one machine send each other over PCIe 4.0 ×16, about; over NVLink it is ten times that and more."""

# docs/results/bench-2026-11-22.md, part replay-ray, two cores: CarRacing 64×64×3, 12,307 bytes a step, 760 stored.
BENCH_RAW_STEP = 12_307
BENCH_STORED_STEP = 760
APPENDED_STEPS_PER_S = 73_000
"""Steps that one replay shard stored a second, from 16 actors."""
SAMPLED_STEPS_PER_S = 75_900
"""Steps that one reader drew from one shard and decompressed a second: 74.1 batches of 16×64; of 50×50 it was more."""
DECODED_STEPS_PER_S = 320_000
"""Likewise of steps that the replay keeps decoded: docs/results/replay-cache-2026-11-29.md, 3.2 ms a batch of 16×64."""

ORDERS_PER_S = 1_000
"""Orders that the driver's loop gives and takes a second: an assumption, from Ray's 1,400 calls/s on two slow cores."""

_NETWORK = "a faster network, or smaller pictures"
_REMEDIES = {
    "the actors": "more actors, on more nodes",
    "gradients between ranks": "GPUs with NVLink, or fewer of them (learner.gpus)",
    "the learner": "faster GPUs or more (learner.gpus), or a smaller train.ratio for more experience in the same time",
    "storing in the replay": "more shards (replay.shards)",
    "sampling from the replay": "a machine with faster cores for the learner",
    "network of 1 Gbit/s": _NETWORK,
    "network of 10 Gbit/s": _NETWORK,
    "the disk": "a local SSD, or fewer checkpoints (records.checkpoint_every)",
    "the driver's loop": "longer orders (actors.steps_per_order, actors.environments)",
}


class Flow(NamedTuple):
    """What flows at `updates_per_s`: env steps and orders of the driver's loop per second, bytes/s over each edge."""

    updates_per_s: float
    env_steps_per_s: float
    orders_per_s: float
    bytes_per_s: dict[str, float]


class Limit(NamedTuple):
    """A part that saturates: the updates per second that it carries, why, and what carries more."""

    name: str
    updates_per_s: float
    because: str
    remedy: str


def flow(settings: Settings, footprint: Footprint, updates_per_s: float) -> Flow:
    """Return what flows at this rate of updates."""
    env_steps_per_s = wanted_env_steps(settings, updates_per_s)
    stored = env_steps_per_s * footprint.stored_step
    collected = settings.actors.steps_per_order * settings.actors.environments
    orders = env_steps_per_s / collected + updates_per_s / settings.learner.updates_per_order
    published = footprint.model.weights / settings.learner.publish_every if settings.acts_by_weights else 0.0
    edges = {
        "actors → replay": stored,
        "replay → learner (within a node)": updates_per_s * footprint.compressed_batch,
        "learner → each node with actors": updates_per_s * published,
        "replay → disk": stored,
        "checkpoints → disk": updates_per_s / settings.records.checkpoint_every * footprint.model.checkpoint,
    }
    ranks = settings.learner.ranks
    if ranks > 1:
        edges["gradients out of each rank"] = updates_per_s * footprint.model.reduced(ranks)
    return Flow(updates_per_s, env_steps_per_s, orders, edges)


def wanted_env_steps(settings: Settings, updates_per_s: float) -> float:
    """Return S = U·B·T / X, the env steps per second that the train ratio wants."""
    return updates_per_s * TrainRatio.of(settings).replayed_per_update / settings.train.ratio


def fed_updates(settings: Settings, env_steps_per_s: float) -> float:
    """Return U = S·X / (B·T), the updates per second that the train ratio allows."""
    return env_steps_per_s * settings.train.ratio / TrainRatio.of(settings).replayed_per_update


def actors_wanted(settings: Settings, updates_per_s: float, steps_per_actor: float) -> int:
    """Return how many actors of `steps_per_actor` env steps/s keep a learner of `updates_per_s` busy."""
    return max(1, math.ceil(wanted_env_steps(settings, updates_per_s) / steps_per_actor - 1e-9))


def limits(
    settings: Settings, footprint: Footprint, actors: int, steps_per_actor: float, updates_per_s: float | None
) -> list[Limit]:
    """Return all that may saturate, what saturates first in front; the learner only if its speed is known.

    Steps bigger than the benchmark's take the replay longer by their bytes.
    """
    one, shards = flow(settings, footprint, 1.0), settings.replay.shards
    written = one.bytes_per_s["replay → disk"] + one.bytes_per_s["checkpoints → disk"]
    appended = shards * APPENDED_STEPS_PER_S * min(1.0, BENCH_STORED_STEP / footprint.stored_step)
    decoded = footprint.decoded_share(settings)
    sampled = min(1.0, BENCH_RAW_STEP / footprint.raw_step)
    sampled /= decoded / DECODED_STEPS_PER_S + (1 - decoded) / SAMPLED_STEPS_PER_S
    sampled_updates = sampled / TrainRatio.of(settings).replayed_per_update
    collected = {
        "the actors": (actors * steps_per_actor, f"{actors} × {number(steps_per_actor)} env steps/s"),
        "storing in the replay": (appended, f"{appended:,.0f} env steps/s by {counted(shards, 'shard')} (benchmark)"),
    }
    for gigabits in (1, 10):
        sent = gigabits * GIGABIT / footprint.stored_step
        collected[f"network of {gigabits} Gbit/s"] = (sent, f"{sent:,.0f} env steps/s into the learner's node")
    disk = f"{DISK_BYTES_PER_S / 1e6:.0f} MB/s of replay and checkpoints (assumed)"
    carried = {name: (fed_updates(settings, steps), because) for name, (steps, because) in collected.items()} | {
        "sampling from the replay": (
            sampled_updates,
            f"{sampled:,.0f} steps/s by one reader, {1 - decoded:.0%} of them to be decompressed (benchmark)",
        ),
        "the disk": (DISK_BYTES_PER_S / written, disk),
        "the driver's loop": (ORDERS_PER_S / one.orders_per_s, f"{ORDERS_PER_S:,} orders/s (assumed)"),
    }
    if settings.learner.ranks > 1:
        sent = footprint.model.reduced(settings.learner.ranks)
        because = f"{BETWEEN_GPUS_BYTES_PER_S / 1e9:.0f} GB/s from GPU to GPU (assumed: PCIe)"
        carried["gradients between ranks"] = (BETWEEN_GPUS_BYTES_PER_S / sent, because)
    if updates_per_s is not None:
        carried["the learner"] = (updates_per_s, "its own speed, while batches are there")
    remedies = dict(_REMEDIES)
    if decoded < 1:
        remedies["sampling from the replay"] = f"a greater replay.cache_gb, or {remedies['sampling from the replay']}"
    found = [Limit(name, updates, because, remedies[name]) for name, (updates, because) in carried.items()]
    return sorted(found, key=lambda limit: limit.updates_per_s)


class Work(NamedTuple):
    """What is left of a run: environment steps of the prefill and after it, and updates."""

    prefill_steps: int
    later_steps: int
    updates: int

    @staticmethod
    def left(ratio: TrainRatio, env_steps: int, updates: int) -> Work:
        """Return what is left after `env_steps` and `updates`."""
        prefill = max(0, min(ratio.prefill, ratio.env_steps) - env_steps)
        later = max(0, ratio.env_steps - max(env_steps, ratio.prefill))
        return Work(prefill, later, max(0, ratio.updates - updates))


@dataclass(frozen=True)
class Speeds:
    """What the parts of a run manage: env steps/s of one actor (in the prefill, after it), seconds of an update.

    `cores` are CPU cores that all processes share, 0 if they are on several machines; `threads` are cores that an
    update keeps busy, 0 on a GPU.
    """

    random: float
    on_model: float
    update_s: float
    actors: int
    cores: int = 0
    threads: int = 0


class Forecast(NamedTuple):
    """Seconds of the prefill and of the whole run, and what bounds them."""

    prefill_s: float
    seconds: float
    bound: str


def forecast(work: Work, speeds: Speeds, inline: bool) -> Forecast:
    """Return how long a run takes at least: the sum of its parts if inline, else what the slowest of them takes.

    Training begins after the prefill, and runs beside collecting. On one machine all of it shares the cores: the
    seconds of all processes together are no more than the cores have.
    """
    prefill = work.prefill_steps / speeds.random
    collecting = prefill + work.later_steps / speeds.on_model
    training = work.updates * speeds.update_s
    if inline:
        bound = "updates" if training > collecting else "collecting"
        return Forecast(prefill, collecting + training, f"one after the other in one process, mostly {bound}")
    at_once = max(1, min(speeds.actors, speeds.cores or speeds.actors))
    bounds = {"the actors": collecting / at_once, "the learner": prefill / at_once + training}
    if speeds.cores:
        shared = (collecting + training * speeds.threads) / speeds.cores
        bounds["the cores, which actors and learner share"] = shared
    slowest = max(bounds, key=lambda name: bounds[name])
    return Forecast(prefill / at_once, bounds[slowest], slowest)
