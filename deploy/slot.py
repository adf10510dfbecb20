"""A worker's place in the fleet: who fills it, its orders, and how often it failed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from dreamfleet.deploy.pool import Worker

FAILURES_IN_A_ROW = 3
"""After so many failures without an order done in between, an actor is given up."""
START_S = 60.0
"""Until its first answer a worker may take so much longer: its process has to start, on a machine that may be busy."""


@dataclass
class Order:
    """Something that a worker was asked to do.

    Attributes:
        future: what its pool gave for it.
        kind: the worker's method: "collect", "restore", "train", "save" or "illustrate".
        amount: environment steps or updates.
        number: of all orders given, which one it is.
        begun: when it came to the head of its worker's queue, by the loop's clock.
    """

    future: Any
    kind: str
    amount: int
    number: int
    begun: float


@dataclass
class Slot:
    """A worker's place: it outlives the workers that fill it.

    Attributes:
        name: for the log.
        timeout_s: an order may take so long at most.
        patience_s: once orders have been answered, the next may take ten times as long as the slowest, and at least
            this long; so a hung environment is found soon, and a slow one is not taken for hung. 0: always `timeout_s`.
        worker: who fills it; None while it waits to be filled again.
        orders: given and not answered, oldest first.
        failures: in a row.
        restart_at: when to fill it again, by the loop's clock.
        given_up: whether it failed too often.
        last_cause: what its worker last failed of.
        idle_s: time without an order.
        version: of the weights that it last got.
    """

    name: str
    timeout_s: float
    patience_s: float = 0.0
    worker: Worker | None = None
    orders: deque[Order] = field(default_factory=deque)
    failures: int = 0
    restart_at: float = 0.0
    given_up: bool = False
    last_cause: str = ""
    idle_s: float = 0.0
    version: int = -1
    _idle_since: float | None = None
    _has_answered: bool = False
    _slowest_s: float = 0.0

    def gave(self, order: Order, now: float) -> None:
        """Note an order that was given."""
        if not self.orders and self._idle_since is not None:
            self.idle_s += now - self._idle_since
            self._idle_since = None
        self.orders.append(order)

    def answered(self, order: Order, now: float) -> None:
        """Note that an order was answered: the next one begins."""
        self.orders.remove(order)
        self._has_answered = True
        self._slowest_s = max(self._slowest_s, now - order.begun)
        if self.orders:
            self.orders[0].begun = max(self.orders[0].begun, now)
        else:
            self._idle_since = now

    def succeeded(self) -> None:
        """Note that the worker did what it is there for: earlier failures no longer count."""
        self.failures = 0

    def lost(self, now: float, cause: str) -> int:
        """Empty the slot after its worker failed; return the amount of its unanswered orders."""
        unanswered = sum(order.amount for order in self.orders if order.kind == "collect")
        self.idle_s = self.idle_until(now)
        self.orders.clear()
        self.worker = None
        self.version = -1
        self._has_answered = False
        self.failures += 1
        self.last_cause = cause
        self.given_up = self.failures >= FAILURES_IN_A_ROW
        self.restart_at = now + 2.0 ** (self.failures - 1) - 1.0  # at once, after 1 s, after 3 s
        self._idle_since = now
        return unanswered

    def idle_until(self, now: float) -> float:
        """Return the seconds without an order so far."""
        return self.idle_s + (now - self._idle_since if self._idle_since is not None and not self.orders else 0.0)

    def is_late(self, now: float) -> bool:
        """Whether the order at the head of the queue has taken too long."""
        return bool(self.orders) and now - self.orders[0].begun > self.allowed_s

    @property
    def allowed_s(self) -> float:
        """How long the order at the head of the queue may take."""
        if not self._has_answered:
            return self.timeout_s + START_S
        return min(self.timeout_s, max(self.patience_s, 10.0 * self._slowest_s)) if self.patience_s else self.timeout_s
