"""The state of a fleet, which the loop and its two sides change, and the callbacks that see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger
from dreamfleet.deploy.fleet.roster import Roster
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.workers.pool import Pool


@dataclass
class FleetState:
    """What a fleet consists of and has done.

    Attributes:
        ledger: what was collected and trained: `ledger.env_steps`, `ledger.updates`, `ledger.ratio`.
        weights: the newest that the learner published, or those that a fleet without learner acts with.
        can_act: whether somebody acts with them: not while the process that acts for all actors is being started.
        stop_reason: why a callback asked the run to end; empty if none did.
    """

    pool: Pool
    config: FleetConfig
    ledger: Ledger
    roster: Roster
    weights: PublishedWeights | None = None
    can_act: bool = True
    stop_reason: str = ""

    def stop(self, reason: str) -> None:
        """End the run after the orders in flight, with a checkpoint, as the first Ctrl-C does."""
        self.stop_reason = self.stop_reason or reason or "no reason given"


class GiveOrder(Protocol):
    """Gives an order to the worker in a slot.

    Args:
        steps: environment steps of a collect order.
    """

    def __call__(
        self, slot: WorkerSlot, method: str, *arguments: Any, then: Callable[[Any], None], steps: int = 0
    ) -> None:
        """Give the order."""


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

    def on_inference(self, fleet: FleetState, report: Any) -> None:
        """The process that acts for all actors told what it did (`InferenceReport`: steps, batches, version)."""

    def on_log(self, records: list[LogRecord]) -> None:
        """The learner's process logged these."""

    def on_turn(self, fleet: FleetState) -> None:
        """The loop has gone round once, at least five times a second."""
