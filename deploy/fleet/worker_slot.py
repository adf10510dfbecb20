"""A worker's place in the fleet: who fills it, its orders, and how often it failed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.deploy.workers.pool import Worker

FAILURES_IN_A_ROW = 3
"""After so many failures without an order done in between, a worker is given up."""
SHORT_LIVES_IN_A_ROW = 10
"""And after so many lives in a row that ended before they had done `SHORT_LIFE_ORDERS`."""
SHORT_LIFE_ORDERS = 10
"""A worker that did so many orders was of use, whatever it died of."""
USEFUL_STEPS = CHUNK_STEPS
"""So was an actor of whose life so many steps are stored: a simulator that dies now and then is started at once."""
LONGEST_PAUSE_S = 60.0
"""A slot waits so long at most before it is filled again."""
START_S = 60.0
"""Until its first answer a worker may take so much longer: its process has to start, on a machine that may be busy."""


@dataclass
class Order:
    """Something that a worker was asked to do.

    Attributes:
        future: what its pool gave for it.
        kind: the worker's method: "greet", "collect", "restore", "train", "save",
            "draw_pictures", "evaluate", "record_evaluation" or "finish".
        amount: environment steps or updates.
        begun: when it came to the head of its worker's queue, by the loop's clock; a greeting begins once its worker
            has a place.
        version: of a collect order: the weights that are to act; -1 is chance, and every other kind.
        taken_s: how long it took, once it is answered.
    """

    future: Any
    kind: str
    amount: int
    begun: float
    version: int = -1
    taken_s: float = 0.0


@dataclass
class Slot:
    """A worker's place: it outlives the workers that fill it.

    Attributes:
        name: for the log.
        timeout_s: an order may take so long at most.
        patience_s: once orders have been answered, the next may take ten times as long as the slowest, and at least
            this long; so a hung environment is found soon, and a slow one is not taken for hung. What chance did says
            nothing of weights, which may plan at every step. 0: always `timeout_s`.
        number: the actor's; -1 for the learner.
        incarnation: which of the actor's lives fills it.
        worker: who fills it; None while it waits to be filled again.
        is_placed: whether the worker has its place and has answered from there; on a cluster it may wait for room.
        orders: given and not answered, oldest first.
        failures: in a row, without an order done in between.
        short_lives: in a row, each ended before it was of much use.
        restart_at: when to fill it again, by the loop's clock.
        given_up: whether it failed too often.
        last_cause: what its worker last failed of.
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
    short_lives: int = 0
    restart_at: float = 0.0
    given_up: bool = False
    last_cause: str = ""
    idle_s: float = 0.0
    version: int = -1
    node: str = ""
    _idle_since: float | None = None
    _has_answered: bool = False
    _done: int = 0
    _has_place: bool = False
    _slowest_s: dict[bool, float] = field(default_factory=dict)  # by whether weights acted

    def gave(self, order: Order, now: float) -> None:
        """Note an order that was given."""
        if not self.orders and self._idle_since is not None:
            self.idle_s += now - self._idle_since
            self._idle_since = None
        self.orders.append(order)

    def answered(self, order: Order, now: float) -> None:
        """Note that an order was answered: the next one begins."""
        self.orders.remove(order)
        order.taken_s = now - order.begun
        if order.kind != "greet":
            self._has_answered = True
        if self.orders:
            self.orders[0].begun = max(self.orders[0].begun, now)
        else:
            self._idle_since = now

    @property
    def unanswered(self) -> list[Order]:
        """Its orders, but for the greeting of a worker that waits for its place."""
        return [order for order in self.orders if order.kind != "greet"]

    @property
    def waits_for_place(self) -> bool:
        """Whether its worker was greeted and, for all that is known, has no place yet."""
        return bool(self.orders) and self.orders[0].kind == "greet" and not self._has_place

    def got_place(self, now: float) -> None:
        """Note that the worker has its place: from now on its greeting has to be answered in time."""
        self._has_place = True
        self.orders[0].begun = now

    def acted(self, order: Order, lost_weights: bool) -> None:
        """Note by what an actor acted in an answered order: weights that it could not have were not what took long."""
        by_weights = order.version >= 0 and not lost_weights
        self._slowest_s[by_weights] = max(self._slowest_s.get(by_weights, 0.0), order.taken_s)

    def succeeded(self) -> None:
        """Note that the worker did what it is there for: earlier failures no longer count."""
        self.failures = 0
        self._done += 1
        if self._done >= SHORT_LIFE_ORDERS:
            self.short_lives = 0

    def lost(self, now: float, cause: str, stored: int = 0) -> int:
        """Empty the slot after its worker failed; return the amount of its unanswered orders.

        Args:
            now: by the loop's clock.
            cause: what it failed of.
            stored: steps of an actor's life that are stored.
        """
        unanswered = sum(order.amount for order in self.orders if order.kind == "collect")
        self.idle_s = self.idle_until(now)
        self.orders.clear()
        self.worker = None
        self.is_placed = self._has_place = False
        self.node = ""
        self.version = -1
        self._has_answered = False
        self._done = 0
        self.last_cause = cause
        if stored >= USEFUL_STEPS:
            self.failures = self.short_lives = 0
        else:
            self.failures += 1
            self.short_lives += 1
        self.given_up = self.failures >= FAILURES_IN_A_ROW or self.short_lives >= SHORT_LIVES_IN_A_ROW
        pause = 2.0 ** max(0, max(self.failures, self.short_lives) - 1) - 1.0  # at once, after 1 s, after 3 s
        self.restart_at = now + min(pause, LONGEST_PAUSE_S)
        self._idle_since = now
        return unanswered

    def idle_until(self, now: float) -> float:
        """Return the seconds without an order so far."""
        return self.idle_s + (now - self._idle_since if self._idle_since is not None and not self.orders else 0.0)

    def is_late(self, now: float) -> bool:
        """Whether the order at the head of the queue has taken too long; waiting for a place may take any time."""
        return bool(self.orders) and not self.waits_for_place and now - self.orders[0].begun > self.allowed_s

    @property
    def allowed_s(self) -> float:
        """How long the order at the head of the queue may take."""
        if not self._has_answered:
            return self.timeout_s + START_S
        slowest_s = self._slowest_s.get(self.orders[0].version >= 0)
        if not self.patience_s or slowest_s is None:
            return self.timeout_s
        return min(self.timeout_s, max(self.patience_s, 10.0 * slowest_s))
