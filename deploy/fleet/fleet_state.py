"""The state of a fleet, which the loop and its two sides change and callbacks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dreamfleet.common.acting.policy import PublishedWeights
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
        roster: the workers.
        weights: the newest that the learner published, or those that a fleet without learner acts with.
        stop_reason: why a callback asked the run to end; empty if none did.
    """

    pool: Pool
    config: FleetConfig
    ledger: Ledger
    roster: Roster
    weights: PublishedWeights | None = None
    stop_reason: str = ""

    def stop(self, reason: str) -> None:
        """End the run after the orders in flight, with a checkpoint, as the first Ctrl-C does."""
        self.stop_reason = self.stop_reason or reason


class GiveOrder(Protocol):
    """Gives an order to the worker in a slot.

    Args:
        slot: of the worker.
        method: of the worker.
        arguments: of the method.
        amount: environment steps of a collect order.
        then: called with the worker's answer.
    """

    def __call__(
        self, slot: WorkerSlot, method: str, *arguments: Any, then: Callable[[Any], None], amount: int = 0
    ) -> None:
        """Give the order."""
        ...
