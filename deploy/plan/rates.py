"""Rates of actors and learner: read from a run's metrics, or measured here for a few seconds, with nothing stored."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import counted
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory, read_rows

if TYPE_CHECKING:
    from dreamfleet.actors.collector import Collector
    from dreamfleet.learner.hardware import Hardware, TorchThreads

MEASURED_STEPS = 512
"""Environment steps after which measuring an actor ends, if its time is not over before."""
MOST_UPDATES = 20
MOST_WAITING = 0.9
"""A row in which somebody waited for more than this share of the time says little of how fast it could be."""


class Known(NamedTuple):
    """A figure and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """Environment steps/s of one actor, updates/s of the learner, raw bytes per stored byte; None if unknown."""

    steps_per_actor: Known | None
    updates_per_s: Known | None
    compression: Known | None

    def or_else(self, other: Rates) -> Rates:
        """Return these rates, those that are unknown taken from `other`."""
        return Rates(*(mine or theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def rates_of_run(run: RunDirectory) -> Rates:
    """Return the rates that a run recorded: medians over its rows, of the time in which nobody waited.

    Raises:
        UserError: if its metrics cannot be read.
    """
    rows = _rows(run)
    collecting = [row for row in rows if row.get("fleet/actors")]
    fleets = [(row["fleet/actors"], _unhindered(row, "env_steps_per_s", "actors_wait_fraction")) for row in collecting]
    learner = [_unhindered(row, "updates_per_s", "learner_wait_fraction") for row in rows]
    sizes = [(row.get("replay/bytes_raw"), row.get("replay/bytes_stored")) for row in rows]
    compression = [raw / stored for raw, stored in sizes if raw and stored]
    return Rates(
        _median([rate / actors for actors, rate in fleets if rate]),
        _median([rate for rate in learner if rate]),
        Known(compression[-1], "the run: its replay at the last row") if compression else None,
    )


class Collected(NamedTuple):
    """Environment steps that were collected, the seconds they took, and their bytes."""

    steps: int
    seconds: float
    raw_bytes: int
    stored_bytes: int

    @property
    def rate(self) -> float:
        """Environment steps per second."""
        return self.steps / self.seconds


def measure_actor(settings: Settings, seconds: float, on_model: bool) -> tuple[Spaces, Collected, Collected]:
    """Return what an actor collects with random actions, and on a model that has learnt nothing.

    It runs in this process, on one thread, as actors do. Each of the two ends when the order is done that is at work
    after `seconds`. Unless `on_model`, the second result is the first.

    Raises:
        UserError: if the environment cannot be made or fails.
    """
    from dreamfleet.actors.collector import build_collector
    from dreamfleet.actors.environment_batch import EnvironmentFailedError
    from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten

    collector = build_collector(settings, actor=0, incarnation=0, writer=_Discard())
    try:
        with one_thread():
            random = _collect(collector, settings, seconds)
            if not on_model:
                return collector.spaces, random, random
            collector.adopt(0, flatten(AgentNetworks(collector.spaces, settings).acting_parameters()))
            return collector.spaces, random, _collect(collector, settings, seconds)
    except EnvironmentFailedError as error:
        raise UserError(f"env.id '{settings.env.id}' failed while it was measured: {error}") from error
    finally:
        collector.close()


def suppose_gpus(settings: Settings) -> tuple[Settings, str]:
    """Return the settings with a number for `learner.gpus auto`, by this machine's, and a sentence that says so."""
    learner = settings.learner
    if not learner.takes_all_gpus:
        return settings, ""
    have = torch.cuda.device_count()
    ranks = learner.most_ranks(have)
    sentence = (
        f"learner.gpus auto is planned as {ranks}, by what this machine has: {counted(have, 'GPU')}. Name the number "
        "of the learner's machine to plan for that."
    )
    return settings.model_copy(update={"learner": learner.model_copy(update={"gpus": ranks})}), sentence


class UpdateTime(NamedTuple):
    """Seconds of an update with a whole batch; the sequences of the greatest batch measured, and how many were.

    If `batch` is smaller than the settings' batch, `seconds` is extrapolated.
    """

    seconds: float
    batch: int
    updates: int


def measure_updates(
    settings: Settings, spaces: Spaces, busy_cores: int, seconds: float, set_to: TorchThreads | None = None
) -> tuple[UpdateTime, Hardware]:
    """Return what an update takes on this machine, without compiling, on made-up batches, and on which hardware.

    Where several ranks are to share a batch, it is an update on the part of one of them.
    Actors keep `busy_cores` of the machine's cores busy. For `seconds` see `fit_update_time`, for `set_to`
    `choose_hardware`.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    from dreamfleet.learner.hardware import choose_hardware

    with _threads(torch.get_num_threads()):
        ranks = settings.learner.ranks
        learner = settings.learner.model_copy(update={"compile": "off"})
        hardware = choose_hardware(learner, busy_cores, set_to, ranks)
        update = _updater(settings, spaces, hardware)
        return fit_update_time(update, settings.learner.batch_size // ranks, seconds), hardware


def fit_update_time(update: Callable[[int], None], wanted: int, most_s: float) -> UpdateTime:
    """Return what an update with a batch of `wanted` sequences takes.

    `update` makes one with a batch of the given size. Batches of 1, 2, 4 … sequences are measured, up to `wanted`, for
    `most_s` seconds; the first two updates, of one sequence, may take longer. The time of a greater batch is found by
    drawing a line through the last two.
    """
    begun = perf_counter()
    update(1)  # what is made once and never again does not count
    size, took = 1, _seconds_of(update, 1)
    smaller = slope = 0.0
    while size < wanted and perf_counter() - begun + 2 * took < most_s:
        next_size = min(2 * size, wanted)
        smaller, before = took, size
        took, size = _seconds_of(update, next_size), next_size
        slope = (took - smaller) / (size - before)
    if size < wanted:
        # A further sequence costs no less than nothing, and no more than the sequences before it did.
        slope = min(max(slope, 0.0), took / size) if smaller else took / size
        return UpdateTime(took + slope * (wanted - size), size, 1)
    times = [took]
    while len(times) < MOST_UPDATES and perf_counter() - begun + took < most_s / 2:
        times.append(_seconds_of(update, size))
    return UpdateTime(statistics.median(times), size, len(times))


def _collect(collector: Collector, settings: Settings, seconds: float) -> Collected:
    order = settings.actors.steps_per_order * settings.actors.environments
    steps = raw = stored = 0
    began = perf_counter()
    while steps < MEASURED_STEPS and perf_counter() - began < seconds:
        report = collector.collect(order)
        steps, raw, stored = steps + order, raw + report.raw_bytes, stored + report.stored_bytes
    return Collected(steps, perf_counter() - began, raw, stored)


class _Discard:
    """Takes a collector's chunks and stores nothing."""

    def append(self, chunk: bytes, /) -> None:
        pass

    def flush(self, timeout_s: float) -> None:
        pass


def _updater(settings: Settings, spaces: Spaces, hardware: Hardware) -> Callable[[int], None]:
    """Return a function that makes an update with a batch of the given number of sequences, and waits for it."""
    from dreamfleet.learner.behaviour.networks import make_networks
    from dreamfleet.learner.made_up_batch import made_up_batch
    from dreamfleet.learner.stopwatch import Stopwatch
    from dreamfleet.learner.updater import Updater

    updater = Updater(make_networks(spaces, settings).to(hardware.device), settings, hardware)
    batch = made_up_batch(settings, spaces)
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


def one_thread() -> AbstractContextManager[None]:
    """Return a context in which torch computes on one thread, as in an actor."""
    return _threads(1)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(rates: list[float]) -> Known | None:
    return Known(statistics.median(rates), f"the run: {len(rates)} rows, waiting left out") if rates else None


def _unhindered(row: dict[str, float], rate: str, wait: str) -> float | None:
    """Return the rate that a row would tell, had nobody waited; None if it tells none."""
    value, waited = row.get(f"fleet/{rate}"), row.get(f"fleet/{wait}") or 0.0
    return value / (1 - waited) if value and waited <= MOST_WAITING else None


def _rows(run: RunDirectory) -> list[dict[str, float]]:
    """Return the numbers in the rows of metrics; a last row that is being written is left out."""
    file = run.metrics_file
    try:
        lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except OSError as error:
        raise UserError(f"flag --run: {file} cannot be read: {error}.") from None
    rows = read_rows(lines)
    if len(rows) < len(lines):
        raise UserError(
            f"flag --run: {file} is damaged: {len(lines) - len(rows)} of its {len(lines)} lines are no rows."
        )
    return [{name: v for name, v in row.items() if v is not None and not isinstance(v, list)} for row in rows]
