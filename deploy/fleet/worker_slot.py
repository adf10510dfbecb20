"""A worker's place in the fleet: who fills it, its orders, and how often it failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.deploy.fleet.failures import Failures
from dreamfleet.deploy.workers.pool import Worker

USEFUL_STEPS = CHUNK_STEPS
"""An actor incarnation with this many steps stored was of use, whatever ended it: a simulator that dies now and then is
started again at once."""
START_S = 60.0
"""How long a worker's process may take until it answers its greeting, on a machine that may be busy; the learner, which
is not greeted, has as much more for its first order."""
PREPARING_S = 600.0
"""Added to the limit of the order in which a learner compiles its updates: a minute on a quick machine."""
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
        failures: of the workers that it has had.
        restart_at: when to fill it again, by the loop's clock.
        idle_s: time without an order.
        version: of the weights that it last got.
        node: the machine that it runs on, once it is placed.
    """

    name: str
    timeout_s: float
    failures: Failures
    patience_s: float = 0.0
    number: int = -1
    incarnation: int = -1
    worker: Worker | None = None
    is_placed: bool = False
    orders: deque[Order] = field(default_factory=deque)
    restart_at: float = 0.0
    idle_s: float = 0.0
    version: int = -1
    node: str = ""
    _idle_since: float | None = None
    _has_answered: bool = False
    _has_started: bool = False  # its process, as far as is known
    _was_useful: bool = False  # other than by the steps of it that are stored
    _taken_s: float = 0.0  # by the last order answered
    _slowest_s: dict[bool, float] = field(default_factory=dict)  # by whether weights acted

    def gave(self, order: Order, now: float) -> None:
        """Queue an order that was given."""
        if not self.orders and self._idle_since is not None:
            self.idle_s += now - self._idle_since
            self._idle_since = None
        self.orders.append(order)

    def answered(self, order: Order, now: float) -> None:
        """Remove an order that was answered: if it was at the head, the next one begins."""
        was_head = self.orders[0] is order  # not always so of a process that carries orders out side by side
        self.orders.remove(order)
        self._taken_s = now - order.begun
        if order.method != "greet":
            self._has_answered = True
        if self.orders and was_head:
            self.orders[0].begun = max(self.orders[0].begun, now)
        if not self.orders:
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

    @property
    def given_up(self) -> bool:
        """Whether nothing is expected of the slot any more; it is still filled now and then."""
        return self.failures.given_up

    def made_progress(self, is_useful: bool) -> None:
        """Record that the worker did what had not been done before.

        Args:
            is_useful: whether that alone makes it worth starting another at once, should this one be lost.
        """
        self._was_useful |= is_useful
        self.failures.made_progress()
        if self._was_useful:
            self.failures.in_a_row = 0

    def lost(self, now: float, cause: str, stored: int = 0) -> int:
        """Empty the slot after its worker failed.

        Args:
            stored: steps of the actor's incarnation that are stored.

        Returns:
            The environment steps of its unanswered orders.
        """
        unanswered = sum(order.steps for order in self.orders)
        was_useful = self._was_useful or stored >= USEFUL_STEPS
        pause_s = self.failures.add(now, cause, was_useful, was_at_work=bool(self.orders))
        self.restart_at = now + pause_s
        self.idle_s = self.idle_until(now)
        self.orders.clear()
        self.worker = None
        self.is_placed = self._has_started = self._has_answered = self._was_useful = False
        self.node = ""
        self.version = -1
        self._idle_since = now
        return unanswered

    def preparing_s(self, now: float) -> float | None:
        """Return for how long this slot's worker, a learner, has been preparing its updates; None if it does not."""
        return now - self.orders[0].begun if self.orders and self.orders[0].method == "prepare" else None

    def idle_until(self, now: float) -> float:
        """Return the seconds without an order so far."""
        return self.idle_s + (now - self._idle_since if self._idle_since is not None and not self.orders else 0.0)

    def is_late(self, now: float) -> bool:
        """Whether the order at the head of the queue has taken too long; waiting for room may take any time."""
        return bool(self.orders) and not self.waits_for_place and now - self.orders[0].begun > self.allowed_s

    @property
    def allowed_s(self) -> float:
        """How long the order at the head of the queue may take."""
        if self.orders[0].method == "greet":
            return START_S
        if self.orders[0].method == "prepare":
            return self.timeout_s + PREPARING_S
        if not self._has_answered:
            return self.timeout_s if self.is_placed else self.timeout_s + START_S
        slowest_s = self._slowest_s.get(self.orders[0].version >= 0)
        if not self.patience_s or slowest_s is None or self.orders[0].method == "adopt":  # which waits for a batch
            return self.timeout_s
        return min(self.timeout_s, max(self.patience_s, PATIENCE_FACTOR * slowest_s))
