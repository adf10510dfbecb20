"""A worker's place in the fleet: who fills it, its orders, and how often it failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.deploy.workers.pool import Worker

FAILURES_IN_A_ROW = 3
"""A worker that failed this often without completing an order in between is given up."""
SHORT_INCARNATIONS_IN_A_ROW = 10
"""So is one whose last incarnations all ended before they had completed `USEFUL_ORDERS`."""
USEFUL_ORDERS = 10
"""A worker that completed this many orders was of use, whatever ended it."""
USEFUL_STEPS = CHUNK_STEPS
"""So was an actor incarnation with this many steps stored: a simulator that dies now and then is restarted at once."""
LONGEST_PAUSE_S = 60.0
"""Before a slot is filled again."""
START_S = 60.0
"""Added to the time limit of a worker's first order: its process has to start, on a machine that may be busy."""
PATIENCE_FACTOR = 10.0
"""An order may take this many times as long as the slowest before it (see `WorkerSlot.patience_s`)."""


@dataclass
class Order:
    """A call of a worker's method that is under way.

    Attributes:
        method: "greet" is answered by an actor as soon as its process runs.
        begun: when it came to the head of its worker's queue, by the loop's clock; for a greeting, when the worker's
            process was found to have started.
        steps: environment steps of a collect order.
        version: of the weights that are to act in a collect order; -1 for none.
    """

    future: Any
    method: str
    then: Callable[[Any], None]
    begun: float
    steps: int = 0
    version: int = -1


@dataclass
class WorkerSlot:
    """A worker's place, which outlives the workers that fill it.

    Attributes:
        timeout_s: the most that an order may take.
        patience_s: once a worker has answered orders, the next may take `PATIENCE_FACTOR` times the slowest, and at
            least this long: so a hung environment is found soon, and a slow one is not taken for hung. Orders by
            chance and by weights are compared apart, since weights may plan at every step. 0: always `timeout_s`.
        number: the actor's; negative for other workers.
        incarnation: of the actor in it; a number that no other worker of the run has had.
        worker: None while the slot waits to be filled again.
        is_placed: whether the worker has answered its greeting; on a cluster it may wait for room until then.
        orders: not answered yet, the oldest first.
        failures: in a row, without an order completed in between.
        short_incarnations: in a row, each ended before it was of much use.
        restart_at: when to fill it again, by the loop's clock.
        idle_s: time without an order.
        version: of the weights that it last got.
        node: the machine that it runs on, once it is placed.
    """

    name: str
    timeout_s: float
    patience_s: float = 0.0
    number: int = -1
    incarnation: int = -1
    worker: Worker | None = None
    is_placed: bool = False
    orders: deque[Order] = field(default_factory=deque)
    failures: int = 0
    short_incarnations: int = 0
    restart_at: float = 0.0
    given_up: bool = False
    last_cause: str = ""
    idle_s: float = 0.0
    version: int = -1
    node: str = ""
    _idle_since: float | None = None
    _has_answered: bool = False
    _has_started: bool = False  # its process, as far as is known
    _completed: int = 0
    _taken_s: float = 0.0  # by the last order answered
    _slowest_s: dict[bool, float] = field(default_factory=dict)  # by whether weights acted

    def gave(self, order: Order, now: float) -> None:
        """Queue an order that was given."""
        if not self.orders and self._idle_since is not None:
            self.idle_s += now - self._idle_since
            self._idle_since = None
        self.orders.append(order)

    def answered(self, order: Order, now: float) -> None:
        """Remove an order that was answered: the next one begins."""
        self.orders.remove(order)
        self._taken_s = now - order.begun
        if order.method != "greet":
            self._has_answered = True
        if self.orders:
            self.orders[0].begun = max(self.orders[0].begun, now)
        else:
            self._idle_since = now

    @property
    def unanswered(self) -> list[Order]:
        """The orders, without the greeting of a worker that waits for room."""
        return [order for order in self.orders if order.method != "greet"]

    @property
    def waits_for_place(self) -> bool:
        """Whether the worker was greeted and, as far as is known, its process has not started."""
        return bool(self.orders) and self.orders[0].method == "greet" and not self._has_started

    def started(self, now: float) -> None:
        """Record that the worker's process runs: from now on its greeting has to be answered in time."""
        self._has_started = True
        self.orders[0].begun = now

    def acted(self, by_weights: bool) -> None:
        """Record whether weights chose the actions of the order that was just answered."""
        self._slowest_s[by_weights] = max(self._slowest_s.get(by_weights, 0.0), self._taken_s)

    def succeeded(self) -> None:
        """Record that the worker was of use: earlier failures no longer count."""
        self.failures = 0
        self._completed += 1
        if self._completed >= USEFUL_ORDERS:
            self.short_incarnations = 0

    def lost(self, now: float, cause: str, stored: int = 0) -> int:
        """Empty the slot after its worker failed.

        Args:
            stored: steps of the actor's incarnation that are stored.

        Returns:
            The environment steps of its unanswered orders.
        """
        unanswered = sum(order.steps for order in self.orders)
        self.idle_s = self.idle_until(now)
        self.orders.clear()
        self.worker = None
        self.is_placed = self._has_started = self._has_answered = False
        self.node = ""
        self.version = -1
        self._completed = 0
        self.last_cause = cause
        if stored >= USEFUL_STEPS:
            self.failures = self.short_incarnations = 0
        else:
            self.failures += 1
            self.short_incarnations += 1
        self.given_up = self.failures >= FAILURES_IN_A_ROW or self.short_incarnations >= SHORT_INCARNATIONS_IN_A_ROW
        pause_s = 2.0 ** max(0, max(self.failures, self.short_incarnations) - 1) - 1.0  # none, then 1 s, then 3 s
        self.restart_at = now + min(pause_s, LONGEST_PAUSE_S)
        self._idle_since = now
        return unanswered

    def idle_until(self, now: float) -> float:
        """Return the seconds without an order so far."""
        return self.idle_s + (now - self._idle_since if self._idle_since is not None and not self.orders else 0.0)

    def is_late(self, now: float) -> bool:
        """Whether the order at the head of the queue has taken too long; waiting for room may take any time."""
        return bool(self.orders) and not self.waits_for_place and now - self.orders[0].begun > self.allowed_s

    @property
    def allowed_s(self) -> float:
        """How long the order at the head of the queue may take."""
        if not self._has_answered:
            return self.timeout_s + START_S
        slowest_s = self._slowest_s.get(self.orders[0].version >= 0)
        if not self.patience_s or slowest_s is None:
            return self.timeout_s
        return min(self.timeout_s, max(self.patience_s, PATIENCE_FACTOR * slowest_s))
