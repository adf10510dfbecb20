"""Callbacks: called as the events of a run happen."""

from __future__ import annotations

from typing import Any

from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.fleet_state import FleetState
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot


class Callbacks:
    """The events of a run; a subclass overrides those that it wants to hear of.

    Counters are in `fleet.ledger` (`env_steps`, `updates`), and `fleet.stop(reason)` ends the run cleanly. All are
    called in the process that started the run, between two orders: what takes long holds up the fleet. An exception
    ends the run, after a last checkpoint.
    """

    def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
        """The learner is ready, at the start and after each restart; `decisions` are the choices it made by itself."""

    def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
        """The actor in this slot collected an order's steps (`CollectReport`: steps, episodes, timings)."""

    def on_updates(self, fleet: FleetState, report: Any) -> None:
        """The learner made an order's updates (`TrainReport`: updates, metrics, timings)."""

    def on_pictures(self, fleet: FleetState, pictures: Any) -> None:
        """The learner drew its pictures (`Pictures`: still, video)."""

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        """A checkpoint was written, with these facts."""

    def on_evaluation(self, fleet: FleetState, env_steps: int, report: Any) -> None:
        """The checkpoint of `env_steps` was evaluated (`EvaluationReport`: returns, lengths, film)."""

    def on_log(self, records: list[LogRecord]) -> None:
        """The learner's process logged these."""

    def on_turn(self, fleet: FleetState) -> None:
        """The loop has gone round once, at least five times a second."""
