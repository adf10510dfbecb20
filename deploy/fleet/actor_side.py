"""The actors' side of the fleet loop: whose turn it is to collect, and what was collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamfleet.common.errors import UserError, WrongHereError
from dreamfleet.deploy.fleet.fleet_config import ORDERS_QUEUED
from dreamfleet.deploy.fleet.worker_slot import Order, Slot

if TYPE_CHECKING:
    from dreamfleet.deploy.fleet.fleet import Fleet


class ActorSide:
    """Gives actors their orders by turns, while the learner has little left to train on.

    Args:
        fleet: what this is a side of.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._hungry: dict[int, Slot] = {}  # placed actors that may have more orders, by turns
        self._has_collected = False  # whether any actor ever did

    @property
    def may_collect(self) -> bool:
        """Whether the learner has less than two orders' worth of updates allowed and not yet made."""
        return self._fleet.ledger.backlog < ORDERS_QUEUED * self._fleet.staffing.updates_per_order

    def give_orders(self) -> None:
        """Have actors collect as long as they may; everyone gets one order before anyone gets two."""
        fleet, ledger = self._fleet, self._fleet.ledger
        for depth in range(ORDERS_QUEUED):
            for slot in list(self._hungry.values()):
                left = ledger.steps_left
                if left <= 0 or not self.may_collect:
                    return
                if len(slot.orders) <= depth:
                    steps = min(fleet.staffing.steps_per_order, left)
                    ledger.ordered_steps += steps
                    weights = fleet.learner_side.weights if self._is_prefilled else None
                    slot.version = weights.version if weights else -1
                    fleet.give(slot, "collect", steps, steps, weights)
                    del self._hungry[slot.number]  # and again to the end of the line, if it may have more
                    if len(slot.orders) < ORDERS_QUEUED:
                        self._hungry[slot.number] = slot

    @property
    def _is_prefilled(self) -> bool:
        """Whether actors are to act on weights; until there is a prefill, chance acts."""
        return not self._fleet.staffing.learns or self._fleet.env_steps >= self._fleet.ratio.prefill

    def joined(self, slot: Slot) -> None:
        """Note that an actor has its place and may have orders."""
        self._hungry[slot.number] = slot

    def lost(self, slot: Slot) -> int:
        """Note that an actor is gone: whatever of it is still on its way is not stored; return how many steps were."""
        self._hungry.pop(slot.number, None)
        return self._fleet.pool.retire(slot.number, slot.incarnation)

    def is_fatal(self, cause: BaseException) -> bool:
        """Whether a failure ends the run: what no other actor in its place would mend.

        Once an actor has collected, an environment that cannot be made elsewhere is a fault of that place. An actor
        that cannot reach the replay is lost; the others may reach it.
        """
        is_of_its_place = isinstance(cause, WrongHereError) and self._has_collected
        return isinstance(cause, UserError) and not is_of_its_place

    def take_collect(self, slot: Slot, order: Order, report: Any) -> None:
        """Note what an actor collected."""
        fleet, ledger = self._fleet, self._fleet.ledger
        ledger.ordered_steps -= order.amount
        ledger.uncounted_steps += report.steps  # fewer than ordered, where the order was cut
        ledger.simulator.add(report.steps, report.simulator_steps)
        self._has_collected = True
        self._hungry[slot.number] = slot
        slot.acted(order, lost_weights=report.weights_lost > 0)
        slot.succeeded()
        fleet.watcher.collected(fleet, slot, report)
