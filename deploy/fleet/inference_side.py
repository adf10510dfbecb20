"""The side of the process that acts for all actors: it gets each version of the weights, and tells what it does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState, GiveOrder
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot

log = logging.getLogger("dreamfleet")


class InferenceSide:
    """Gives the inference process its orders, if the fleet has one.

    An order for a report is always under way, so that the loss of the process is noticed whatever else it does.
    """

    def __init__(self, state: FleetState, give: GiveOrder, callbacks: Sequence[Callbacks]) -> None:
        self._state = state
        self._give = give
        self._callbacks = callbacks
        self._slot = state.roster.inference
        self._given: PublishedWeights | None = None
        self._version = -1  # that acts
        self._is_adopting = self._is_reporting = False
        self._was_lost = False
        state.can_act = not state.config.acts_centrally

    def give_orders(self) -> None:
        """Have the process adopt the newest weights, again until it has some to act with, and report."""
        if not self._slot.is_placed:
            return
        if not self._is_reporting:  # the first in the queue: a process that hangs is known by its report
            self._is_reporting = True
            self._give(self._slot, "report", then=self._take_report)
        weights = self._state.weights
        is_newer = weights is not None and weights is not self._given and weights.version > self._version
        if weights is not None and is_newer and not self._is_adopting:
            self._given, self._is_adopting = weights, True
            self._give(self._slot, "adopt", weights, then=partial(self._take_adopted, weights.version))

    def forget(self, actor: WorkerSlot) -> None:
        """Have the process drop what it keeps of a lost actor."""
        if self._slot.is_placed:
            self._give(self._slot, "forget", actor.number, actor.incarnation, then=lambda _: None)

    def lost(self) -> None:
        """Record that the process is gone, and with it the states of all environments."""
        self._was_lost |= self._version >= 0
        self._given, self._version = None, -1
        self._is_adopting = self._is_reporting = False
        self._state.can_act = False

    def _take_adopted(self, version: int, could_be_fetched: bool) -> None:
        self._is_adopting = False
        if not could_be_fetched:
            log.warning("inference could not fetch the weights of update %d; it goes on with %s", version, self._what())
            return
        self._version = self._slot.version = version
        self._state.can_act = True
        if self._was_lost:
            self._was_lost = False
            log.warning(
                "inference acts again, with the weights of update %d; the states of all environments begin at zero, "
                "in the middle of episodes",
                version,
            )

    def _what(self) -> str:
        return f"those of update {self._version}" if self._version >= 0 else "asking for them"

    def _take_report(self, report: Any) -> None:
        self._is_reporting = False
        if self._version < 0 and not self._is_adopting:
            self._given = None  # it has none to act with, and there may be no newer ones until somebody acts
        if self._version >= 0:  # before, the networks are being made, which may take much longer
            self._slot.acted(by_weights=True)
        if report.steps:
            self._slot.made_progress(is_useful=True)
        for callback in self._callbacks:
            callback.on_inference(self._state, report)
