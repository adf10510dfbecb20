"""The rates that a plan starts from: given by flags, read from a run's metrics, or measured here for a few seconds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory

if TYPE_CHECKING:
    from dreamfleet.actors.collector import Collector

MEASURED_STEPS = 512
"""Environment steps after which measuring ends; `MEASURED_S` ends it earlier, after the order then at work."""
MEASURED_S = 6.0
MOST_WAITING = 0.9
"""A row in which somebody waited for more than this share of the time says little of how fast it could be."""


@dataclass(frozen=True)
class Known:
    """A figure and where it is from; None if nobody knows."""

    value: float | None
    source: str


@dataclass(frozen=True)
class Rates:
    """Environment steps per second of one actor, updates per second of the learner, raw bytes per stored byte."""

    steps_per_actor: Known
    updates_per_s: Known
    compression: Known

    def or_else(self, other: Rates) -> Rates:
        """Return these rates, those that nobody knows taken from `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Rates(*(mine if mine.value is not None else theirs for mine, theirs in pairs))


def rates_of_run(run: RunDirectory) -> Rates:
    """Return the rates that a run recorded: medians over its rows, of the time in which nobody waited.

    Raises:
        UserError: if its metrics cannot be read.
    """
    rows = _rows(run.metrics_file)
    collecting = [row for row in rows if row.get("fleet/actors")]
    actor = [rate / row["fleet/actors"] for row in collecting
             if (rate := _unhindered(row, "env_steps_per_s", "actors_wait_fraction"))]  # fmt: skip
    learner = [rate for row in rows if (rate := _unhindered(row, "updates_per_s", "learner_wait_fraction"))]
    stored = [row["replay/bytes_raw"] / row["replay/bytes_stored"] for row in rows
              if row.get("replay/bytes_raw") and row.get("replay/bytes_stored")]  # fmt: skip
    nowhere = f"not in {run.metrics_file.name}"
    return Rates(
        Known(statistics.median(actor), f"the run: {len(actor)} rows, waiting left out") if actor
        else Known(None, nowhere),
        Known(statistics.median(learner), f"the run: {len(learner)} rows, waiting left out") if learner
        else Known(None, nowhere),
        Known(stored[-1], "the run: its replay at the last row") if stored else Known(None, nowhere),
    )  # fmt: skip


def measure_actor(settings: Settings) -> tuple[Rates, Spaces]:
    """Collect by chance for a few seconds in this process, as an actor does, and store nothing.

    Raises:
        UserError: if the environment cannot be made or fails.
    """
    with measuring_collector(settings) as collector:
        found = time_collecting(collector, settings)
    return Rates(
        Known(found.rate, f"{found.words}, compressing included"), Known(None, "not measured"),
        Known(found.raw_bytes / found.stored_bytes, "measured here, on those steps"),
    ), collector.spaces  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """What a measurement collected: environment steps, the seconds they took, and their bytes."""

    steps: int
    seconds: float
    raw_bytes: int
    stored_bytes: int

    @property
    def rate(self) -> float:
        """Environment steps per second."""
        return self.steps / self.seconds

    @property
    def words(self) -> str:
        """How it was found."""
        return f"measured here: {self.steps:,} steps in {self.seconds:.1f} s"


@contextmanager
def measuring_collector(settings: Settings) -> Iterator[Collector]:
    """Give an actor's collector that stores nothing.

    Raises:
        UserError: if the environment cannot be made or fails.
    """
    from dreamfleet.actors.collector import build_collector
    from dreamfleet.actors.environment_batch import EnvironmentFailedError

    collector = build_collector(settings, actor=0, incarnation=0, writer=_Nowhere())
    try:
        yield collector
    except EnvironmentFailedError as error:
        raise UserError(f"env.id '{settings.env.id}' failed while it was measured: {error}") from error
    finally:
        collector.close()


def time_collecting(collector: Collector, settings: Settings, most_s: float = MEASURED_S) -> Collected:
    """Give an actor's orders to a collector for a few seconds, with the policy that it has."""
    order = settings.actors.steps_per_order * settings.actors.environments
    steps = raw = stored = 0
    began = perf_counter()
    while steps < MEASURED_STEPS and perf_counter() - began < most_s:
        report = collector.collect(order)
        steps, raw, stored = steps + order, raw + report.raw_bytes, stored + report.stored_bytes
    return Collected(steps, perf_counter() - began, raw, stored)


class _Nowhere:
    """A sink that keeps nothing."""

    def append(self, record: bytes) -> None:
        """Take a record."""

    def flush(self, timeout_s: float) -> None:
        """Return."""


def _unhindered(row: dict[str, Any], rate: str, wait: str) -> float | None:
    """Return the rate that a row tells, had nobody waited; None if it tells none."""
    value, waited = row.get(f"fleet/{rate}"), row.get(f"fleet/{wait}") or 0.0
    return value / (1 - waited) if value and waited <= MOST_WAITING else None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics; a last one that is being written is left out."""
    try:
        lines = file.read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"flag --run: {file} cannot be read: {error}.") from None
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise UserError(f"flag --run: {file} is damaged: {error}.") from None
