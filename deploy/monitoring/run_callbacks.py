"""The callbacks of every run: they write its log, status lines, scalars and pictures, and keep the final figures."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.formatting import counted
from dreamfleet.common.process_log import LogRecord, logged_once
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.monitoring.metrics_writer import MetricsWriter
from dreamfleet.deploy.monitoring.progress import Console, Progress
from dreamfleet.deploy.state import StateWriter

TERMINAL_STATUS_S = 1.0
"""Seconds between two status lines on a terminal, where they take no room."""

log = logging.getLogger("dreamfleet")


class RunCallbacks(Callbacks):
    """Writes down what happens.

    Attributes:
        first_metrics: the learner's metrics of this start's first order; `last_metrics` of its last.
        last_replay: the replay's figures of the newest row.
        last_picture: file of the newest still; `last_video` of the newest video.

    Args:
        on_restored: called when the learner is ready and its checkpoint, if any, fits the settings.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: MetricsWriter,
        console: Console,
        state: StateWriter,
        on_restored: Callable[[], None],
    ) -> None:
        self.first_metrics: dict[str, float] = {}
        self.last_metrics: dict[str, float] = {}
        self.last_replay: dict[str, float] = {}
        self.last_picture: Path | None = None
        self.last_video: Path | None = None
        self.progress: Progress | None = None
        self._settings = settings
        self._metrics = metrics
        self._console = console
        self._state = state
        self._on_restored = on_restored
        self._is_begun = False
        self._deaths_seen = 0  # deaths and replacements that state.json has
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._row_due = time.monotonic() + settings.records.log_every_s
        self._status_due = 0.0

    def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
        """Log what the learner chose by itself, and what there is already."""
        is_first, self._is_begun = not self._is_begun, True
        self._on_restored()
        ledger = fleet.ledger
        self._metrics.begin(ledger.updates)
        if self.progress:
            self.progress.begin_anew()
        for decision in decisions:
            log.info("learner: %s", decision)
        if ledger.env_steps:
            log.info("replay: %s env steps collected so far", f"{ledger.env_steps:,}")
        if is_first and ledger.has_all:
            dataset = self._settings.train.dataset
            more = "train.ratio" if dataset else "train.env_steps" if fleet.config.learns else "--steps"
            log.info("nothing is left to do; a greater %s continues the run", more)

    def on_updates(self, fleet: FleetState, report: Any) -> None:
        """Keep the order's metrics for the next row."""
        _log_records(report.log_records)
        if self.progress and not self.first_metrics:
            self.progress.training_begins()
        self.first_metrics = self.first_metrics or dict(report.metrics)
        self.last_metrics = dict(report.metrics) or self.last_metrics
        seconds = sum(report.timings.values()) or 1.0
        for name, value in report.metrics.items():
            self._sums[name].append(value)
        for name, value in report.timings.items():
            self._sums[f"learner/{name}_fraction"].append(value / seconds)
        if self.progress:
            self.progress.batch_wait_s += report.timings.get("wait", 0.0)

    def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
        """Keep the episodes' results, and how the actor spent its time, for the next row."""
        _log_records(report.log_records)
        seconds = sum(report.timings.values()) or 1.0
        for name, value in report.timings.items():
            self._sums[f"actor/{name}_fraction"].append(value / seconds)
        self._sums["actor/weights_lost"].append(report.weights_lost)
        for episode in report.episodes:
            self._sums["episode/return"].append(episode.total_reward)
            self._sums["episode/length"].append(episode.length)

    def on_pictures(self, fleet: FleetState, pictures: Any) -> None:
        """Write the learner's pictures."""
        self.last_picture = self._metrics.picture("prediction", pictures.still, fleet.ledger.updates)
        if pictures.video is not None:  # vectors are drawn as charts, which do not move
            self.last_video = self._metrics.video("prediction", pictures.video, fleet.ledger.updates)

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        """Log that there is a checkpoint."""
        held_out = facts.get("held_out_loss")
        loss = f", held-out loss {held_out:.4g}" if held_out is not None else ""
        log.info("checkpoint at update %d%s", facts["updates"], loss)
        if held_out is not None:
            self._metrics.scalars({"held_out/loss": held_out}, fleet.ledger.env_steps, fleet.ledger.updates)

    def on_evaluation(self, fleet: FleetState, env_steps: int, report: Any) -> None:
        """Log how well the policy does, and write it against steps and time."""
        _log_records(report.log_records)
        mean, std = float(np.mean(report.returns)), float(np.std(report.returns))
        cut = f", {report.cut_short} cut short" if report.cut_short else ""
        found = f"return {mean:.4g} ± {std:.3g} over {counted(len(report.returns), 'episode')}{cut}"
        extremes = f"best {max(report.returns):.4g}, worst {min(report.returns):.4g}"
        log.info("evaluation at %s env steps, update %d: %s, %s", f"{env_steps:,}", report.version, found, extremes)
        if report.gif:
            self._metrics.film(report.gif, env_steps, self._settings.train.env_steps)
        self._metrics.evaluation(
            {
                "env_steps": env_steps,
                "simulator_steps": fleet.ledger.simulator.of(env_steps),
                "updates": report.version,
                "mean": mean,
                "std": std,
                "returns": report.returns,
                "lengths": report.lengths,
                "seconds": round(report.seconds, 1),
            }
        )

    def on_inference(self, fleet: FleetState, report: Any) -> None:
        """Keep what the process that acts for all actors did, for the next row."""
        _log_records(report.log_records)
        if report.batches:
            self._sums["inference/batch"].append(report.steps / report.batches)
            self._sums["inference/batch_s"].append(report.busy_s / report.batches)
            self._sums["inference/answer_s"].append(report.waited_s / report.questions)
        self._sums["inference/actors"].append(report.clients)

    def on_log(self, records: list[LogRecord]) -> None:
        """Log what the learner logged at last."""
        _log_records(records)

    def on_turn(self, fleet: FleetState) -> None:
        """Show the status and write a row when they are due."""
        self.progress = self.progress or Progress(fleet)
        deaths = fleet.roster.deaths
        if deaths.changes != self._deaths_seen:
            self._deaths_seen = deaths.changes
            self._state.died(deaths.summary())
        now = time.monotonic()
        if now >= self._status_due:
            self.progress.read()
            pause = TERMINAL_STATUS_S if self._console.is_terminal else self._settings.records.log_every_s
            self._status_due = now + pause
            line = self.progress.line(self.last_metrics.get("loss/total"), left_first=self._console.is_terminal)
            self._console.status(line, self.progress.share())
            self._state.beat(self.progress.counters() | self.last_metrics)
        if self._is_begun and now >= self._row_due:
            self._row_due = now + self._settings.records.log_every_s
            self.write_row(fleet)

    def write_last_row(self, fleet: FleetState) -> None:
        """Write what has come in since the last row."""
        if self.progress and self._is_begun:
            self.progress.read()
            self.write_row(fleet)

    def write_last_state(self, fleet: FleetState) -> None:
        """Have the run's state say how far it came, however it ended, and whoever was up by then."""
        self.progress = self.progress or Progress(fleet)
        self.progress.read()
        self._state.beat(self.progress.counters() | self.last_metrics)
        self._state.died(fleet.roster.deaths.summary())

    def write_row(self, fleet: FleetState) -> None:
        """Write the means since the last row, and the figures of fleet and replay."""
        assert self.progress
        _log_records(fleet.pool.replay.log_records())
        row = {name: sum(values) / len(values) for name, values in self._sums.items()}
        row["episode/count"] = len(self._sums["episode/return"])
        self._sums.clear()
        self.last_replay = fleet.pool.replay.stats()
        row |= {f"replay/{name}": value for name, value in self.last_replay.items()}
        self._metrics.scalars(row | self.progress.scalars(), fleet.ledger.env_steps, fleet.ledger.updates)


def _log_records(records: list[LogRecord]) -> None:
    """Write what a worker's process logged to the run's log, except what this one has logged as well."""
    known = [line for _, line in logged_once()] if records else []
    for level, text in records:
        if text not in known:
            log.log(level, "%s", text)
