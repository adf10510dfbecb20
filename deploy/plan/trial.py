"""The first measurement of a run: what an actor and the learner manage here, found in seconds, nothing stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.plan.rates import Collected, measuring_collector, time_collecting
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.hardware import Hardware, choose_hardware
from dreamfleet.learner.updater import Stopwatch, Updater

ACTING_S = 4.0
"""Seconds after which each of the two measurements of an actor ends, after the order then at work."""
UPDATES_S = 12.0
"""Seconds that measuring updates may take, if a single sequence's does not take longer."""
MOST_UPDATES = 20


@dataclass(frozen=True)
class UpdateTime:
    """What an update takes.

    Attributes:
        seconds: for a batch of the settings' size.
        batch: sequences in the greatest batch that was measured; of a greater one the time is extrapolated.
        updates: how many of it were measured.
    """

    seconds: float
    batch: int
    updates: int


def measure_acting(settings: Settings) -> tuple[Collected, Collected]:
    """Return what an actor collects by chance, and on a model that has learnt nothing, on one thread as actors have.

    Raises:
        UserError: if the environment cannot be made or fails.
    """
    with _threads(1), measuring_collector(settings) as collector:
        by_chance = time_collecting(collector, settings, ACTING_S)
        if settings.behaviour.kind == "random":
            return by_chance, by_chance
        collector.adopt(0, flatten(AgentNetworks(collector.spaces, settings).acting_parameters()))
        return by_chance, time_collecting(collector, settings, ACTING_S)


def measure_updates(settings: Settings, spaces: Spaces, busy_cores: int) -> tuple[UpdateTime, Hardware]:
    """Return what an update takes on this machine, eagerly, on batches that are made up, and on what it was made.

    Batches of 1, 2, 4 … sequences are measured, up to the settings' size, as long as there is time: the time of a
    greater one is found by drawing a line through the last two.

    Args:
        settings: the run's.
        spaces: what its environment shows and takes.
        busy_cores: cores of this machine that actors keep busy.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    with _threads(torch.get_num_threads()):
        hardware = choose_hardware(settings.learner.model_copy(update={"compile": False}), busy_cores)
        update = _updater(settings, spaces, hardware)
        return fit_update_time(update, settings.learner.batch_size, UPDATES_S), hardware


def fit_update_time(update: Callable[[int], None], wanted: int, most_s: float) -> UpdateTime:
    """Return what an update with a batch of `wanted` sequences takes, from batches that fit into `most_s` seconds.

    Args:
        update: makes one with a batch of so many sequences, and returns when it is made.
        wanted: sequences.
        most_s: seconds; the first two updates, of one sequence, may take longer.
    """
    begun = perf_counter()
    update(1)  # what is made once and never again does not count
    size, took = 1, _seconds_of(update, 1)
    smaller = 0.0
    while size < wanted and perf_counter() - begun + 2 * took < most_s:
        next_size = min(2 * size, wanted)
        smaller, before = took, size
        took, size = _seconds_of(update, next_size), next_size
        slope = (took - smaller) / (size - before)
    if size < wanted:
        # A batch costs no less for each sequence more than nothing, and no more than the sequences before it did.
        slope = min(max(slope, 0.0), took / size) if smaller else took / size
        return UpdateTime(took + slope * (wanted - size), size, 1)
    times = [took]
    while len(times) < MOST_UPDATES and perf_counter() - begun + took < most_s / 2:
        times.append(_seconds_of(update, size))
    return UpdateTime(float(np.median(times)), size, len(times))


def made_up_batch(step_format: StepFormat, size: int, length: int) -> dict[str, Tensor]:
    """Return a batch (size, length, …) of noise and zeros with the fields that a loss reads."""
    generator = np.random.default_rng(0)
    batch: dict[str, Tensor] = {}
    for field in step_format.fields:
        shape = (size, length, *field.shape)
        if field.name in {spec.name for spec in step_format.spaces.observations}:
            noise = generator.integers(0, 256, shape) if field.dtype == "uint8" else generator.normal(size=shape)
            batch[field.name] = torch.from_numpy(noise.astype(field.dtype))
        elif field.name not in ("episode", "version"):
            batch[field.name] = torch.zeros(shape, dtype=getattr(torch, field.dtype))
    batch["is_first"][:, 0] = True
    return batch


def _updater(settings: Settings, spaces: Spaces, hardware: Hardware) -> Callable[[int], None]:
    """Return what makes an update with a batch of so many sequences."""
    agent = AgentNetworks(spaces, settings).to(hardware.device)
    learns = settings.behaviour.kind == "actor_critic"
    actor_critic = ActorCritic(agent, settings).to(hardware.device) if learns else None
    updater = Updater(agent, actor_critic, settings, hardware)
    learner = settings.learner
    batch = made_up_batch(StepFormat(spaces), learner.batch_size, learner.sequence_length)
    numbers = count(1)

    def update(size: int) -> None:
        part = {name: tensor[:size].to(hardware.device) for name, tensor in batch.items()}
        updater.update(next(numbers), part, Stopwatch())
        if hardware.device.type == "cuda":
            torch.cuda.synchronize()

    return update


def _seconds_of(update: Callable[[int], None], size: int) -> float:
    begun = perf_counter()
    update(size)
    return perf_counter() - begun


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute on so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
