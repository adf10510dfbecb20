"""The traffic of a run: what flows over each edge at a rate of updates, and what saturates first. Pure arithmetic.

All of a run moves in step: at U updates/s of B sequences of T steps and train ratio X, the learner replays U·B·T
steps/s, for which the actors collect S = U·B·T / X env steps/s. So every limit can be said in updates per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.plan.footprint import Footprint

GIGABIT = 125e6
"""Bytes per second of 1 Gbit/s."""
DISK_BYTES_PER_S = 125e6
"""A disk's sequential writing: what an ordinary network volume grants (AWS gp3); local SSDs do ten times that."""

# docs/results/bench-2026-11-22.md, part replay-ray, two cores: CarRacing 64×64×3, 12,307 bytes a step, 760 stored.
BENCH_RAW_STEP = 12_307
BENCH_STORED_STEP = 760
APPENDED_STEPS_PER_S = 73_000
"""Steps that one replay shard stored a second, from 16 actors."""
SAMPLED_STEPS_PER_S = 75_900
"""Steps that one reader drew from one shard and decoded a second: 74.1 batches of 16×64; of 50×50 it was more."""

ORDERS_PER_S = 1_000
"""Orders that the driver's loop gives and takes a second: an assumption, from Ray's 1,400 calls/s on two slow cores."""


@dataclass(frozen=True)
class Flow:
    """What flows when the learner makes `updates_per_s`; edges in bytes per second.

    Attributes:
        updates_per_s: U.
        replayed_steps_per_s: U·B·T.
        env_steps_per_s: S, what the train ratio wants for U.
        actors_to_replay: compressed chunks.
        replay_to_learner: packed batches, within the learner's node.
        learner_to_node: weights, to each node that has actors.
        replay_to_disk: chunks, written as they came.
        checkpoints_to_disk: parameters and optimiser.
        orders_per_s: what the driver's loop gives and takes.
    """

    updates_per_s: float
    replayed_steps_per_s: float
    env_steps_per_s: float
    actors_to_replay: float
    replay_to_learner: float
    learner_to_node: float
    replay_to_disk: float
    checkpoints_to_disk: float
    orders_per_s: float


@dataclass(frozen=True)
class Limit:
    """Something that saturates: its name, the updates per second that it carries, why, and what would carry more."""

    name: str
    updates_per_s: float
    because: str
    change: str


def flow(settings: Settings, footprint: Footprint, updates_per_s: float) -> Flow:
    """Return what flows at so many updates per second."""
    env_steps_per_s = wanted_env_steps(settings, updates_per_s)
    stored = env_steps_per_s * footprint.stored_step
    return Flow(
        updates_per_s=updates_per_s,
        replayed_steps_per_s=updates_per_s * _replayed(settings),
        env_steps_per_s=env_steps_per_s,
        actors_to_replay=stored,
        replay_to_learner=updates_per_s * footprint.batch_packed,
        learner_to_node=updates_per_s / settings.learner.publish_every * footprint.weights,
        replay_to_disk=stored,
        checkpoints_to_disk=updates_per_s / settings.records.checkpoint_every * footprint.checkpoint,
        orders_per_s=updates_per_s * _orders_per_update(settings),
    )


def wanted_env_steps(settings: Settings, updates_per_s: float) -> float:
    """Return S = U·B·T / X, the env steps per second that the train ratio wants."""
    return updates_per_s * _replayed(settings) / settings.train.ratio


def fed_updates(settings: Settings, env_steps_per_s: float) -> float:
    """Return U = S·X / (B·T), the updates per second that the train ratio allows."""
    return env_steps_per_s * settings.train.ratio / _replayed(settings)


def actors_wanted(settings: Settings, updates_per_s: float, steps_per_actor: float) -> int:
    """Return how many actors of so many steps per second keep a learner of so many updates per second busy."""
    return max(1, math.ceil(wanted_env_steps(settings, updates_per_s) / steps_per_actor - 1e-9))


def limits(
    settings: Settings, footprint: Footprint, actors: int, steps_per_actor: float, updates_per_s: float | None
) -> list[Limit]:
    """Return all that may saturate, what saturates first in front.

    Args:
        settings: the run's.
        footprint: its sizes.
        actors: how many there are.
        steps_per_actor: env steps per second of one.
        updates_per_s: of the learner, if known.
    """
    rate = f"{steps_per_actor:,.0f}" if steps_per_actor >= 100 else f"{steps_per_actor:.3g}"
    found = [
        Limit("the actors", fed_updates(settings, actors * steps_per_actor),
              f"{actors} × {rate} env steps/s", "more actors, on more nodes"),
        *_replay_limits(settings, footprint),
        *[_network_limit(settings, footprint, gigabits) for gigabits in (1, 10)],
        Limit("the disk", DISK_BYTES_PER_S / _written_per_update(settings, footprint),
              f"{DISK_BYTES_PER_S / 1e6:.0f} MB/s of replay and checkpoints (assumed)",
              "a local SSD, or fewer checkpoints (records.checkpoint_every)"),
        Limit("the driver's loop", ORDERS_PER_S / _orders_per_update(settings), f"{ORDERS_PER_S:,} orders/s (assumed)",
              "longer orders (actors.steps_per_order, actors.environments)"),
    ]  # fmt: skip
    if updates_per_s is not None:
        found.append(Limit("the learner", updates_per_s, "its own speed, while batches are there",
                           "a faster GPU, or a smaller train.ratio for more experience in the same time"))  # fmt: skip
    return sorted(found, key=lambda limit: limit.updates_per_s)


def _replay_limits(settings: Settings, footprint: Footprint) -> list[Limit]:
    """Return what the replay stores and gives back; bigger steps than the benchmark's take longer by their bytes."""
    shards = settings.replay.shards
    appended = shards * APPENDED_STEPS_PER_S * min(1.0, BENCH_STORED_STEP / footprint.stored_step)
    sampled = SAMPLED_STEPS_PER_S * min(1.0, BENCH_RAW_STEP / footprint.raw_step)
    return [
        Limit("storing in the replay", fed_updates(settings, appended),
              f"{appended:,.0f} env steps/s by {shards} shard{'s' * (shards > 1)} (benchmark)",
              "more shards (replay.shards)"),
        Limit("sampling from the replay", sampled / _replayed(settings),
              f"{sampled:,.0f} steps/s to one reader (benchmark)",
              "a machine with faster cores for the learner"),
    ]  # fmt: skip


def _network_limit(settings: Settings, footprint: Footprint, gigabits: int) -> Limit:
    steps = gigabits * GIGABIT / footprint.stored_step
    return Limit(f"network of {gigabits} Gbit/s", fed_updates(settings, steps),
                 f"{steps:,.0f} env steps/s into the learner's node",
                 "a faster network, or smaller pictures")  # fmt: skip


def _written_per_update(settings: Settings, footprint: Footprint) -> float:
    """Return the bytes that go to the disk for each update."""
    return (
        wanted_env_steps(settings, 1.0) * footprint.stored_step
        + footprint.checkpoint / settings.records.checkpoint_every
    )


def _replayed(settings: Settings) -> int:
    """Return B·T, the steps that an update replays."""
    return settings.learner.batch_size * settings.learner.sequence_length


def _orders_per_update(settings: Settings) -> float:
    """Return how many orders of collecting and of training an update comes with."""
    collected = settings.actors.steps_per_order * settings.actors.environments
    return wanted_env_steps(settings, 1.0) / collected + 1 / settings.learner.updates_per_order
