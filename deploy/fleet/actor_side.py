"""The actors' side of the fleet loop: whose turn it is to collect, and what was collected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from dreamfleet.common.errors import UserError, WrongHereError
from dreamfleet.deploy.fleet.fleet_config import ORDERS_QUEUED
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState, GiveOrder
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot


class ActorSide:
    """Gives collect orders to actors in turn, while the learner has little left to train on."""

    def __init__(self, state: FleetState, give: GiveOrder, callbacks: Sequence[Callbacks]) -> None:
        self._state = state
        self._give = give
        self._callbacks = callbacks
        self._ready: dict[int, WorkerSlot] = {}  # actors that may have another order, the next one first
        self._has_collected = False  # whether any actor ever did

    @property
    def may_collect(self) -> bool:
        """Whether the learner has less than two orders' worth of updates allowed and not yet made."""
        return self._state.ledger.coming_backlog < ORDERS_QUEUED * self._state.config.updates_per_order

    def give_orders(self) -> None:
        """Have actors collect as long as they may; everyone gets one order before anyone gets two."""
        state, ledger = self._state, self._state.ledger
        for depth in range(ORDERS_QUEUED):
            for slot in list(self._ready.values()):
                left = ledger.steps_left
                if left <= 0 or not self.may_collect:
                    return
                if len(slot.orders) > depth:
                    continue
                is_prefilled = state.config.acts_at_once or ledger.env_steps >= ledger.ratio.prefill
                acts = state.config.acts_by_weights and is_prefilled
                weights = state.weights if acts else None
                if (weights and not state.can_act) or (state.config.acts_at_once and not weights):
                    return
                steps = min(state.config.steps_per_order, left)
                ledger.ordered_steps += steps
                slot.version = weights.version if weights else -1
                take = partial(self._take_report, slot, steps, slot.version)
                self._give(slot, "collect", steps, weights, then=take, steps=steps)
                del self._ready[slot.number]  # and again to the end of the line, if it may have more
                if len(slot.orders) < ORDERS_QUEUED:
                    self._ready[slot.number] = slot

    def add(self, slot: WorkerSlot) -> None:
        """Let an actor have orders, now that it runs."""
        self._ready[slot.number] = slot

    def lost(self, slot: WorkerSlot) -> int:
        """Have the replay refuse what a lost actor may still send; return how many of its steps are stored."""
        self._ready.pop(slot.number, None)
        return self._state.pool.replay.retire(slot.number, slot.incarnation)

    def is_fatal(self, cause: BaseException) -> bool:
        """Whether a failure ends the run, because every other actor would fail the same way.

        Once an actor has collected, an environment that cannot be made elsewhere is a fault of that machine. An actor
        that cannot reach the replay is lost; the others may reach it.
        """
        is_of_its_machine = isinstance(cause, WrongHereError) and self._has_collected
        return isinstance(cause, UserError) and not is_of_its_machine

    def _take_report(self, slot: WorkerSlot, ordered: int, version: int, report: Any) -> None:
        ledger = self._state.ledger
        ledger.ordered_steps -= ordered
        ledger.uncounted_steps += report.steps  # fewer than ordered, where the order was cut short
        ledger.simulator.add(report.steps, report.simulator_steps)
        self._has_collected = True
        self._ready[slot.number] = slot
        slot.acted(by_weights=version >= 0 and not report.weights_lost)
        slot.made_progress(is_useful=False)  # how much of it is stored will tell
        for callback in self._callbacks:
            callback.on_steps(self._state, slot, report)
