"""Gathering the questions of many actors into batches, within a bounded wait."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from dreamfleet.common.acting.remote_policy import Answer, Question

MOST_WAIT_S = 0.05
"""The longest that a question waits for others to be answered with it."""
WAIT_SHARE = 0.5
"""It waits for no longer than this share of the time that a batch takes: waiting is to save time, not to cost it."""
EXPECTED_S = 0.25
"""Who was answered longer ago is not waited for: it has completed its order, its environment is slow, or it is lost."""


class Client(NamedTuple):
    """Who asks: one incarnation of an actor."""

    actor: int
    incarnation: int


class Waiting(NamedTuple):
    """A question, when it came, and where its answer goes."""

    question: Question
    since: float
    answer: Future[Answer]

    @property
    def client(self) -> Client:
        """Who asks."""
        return Client(self.question.actor, self.question.incarnation)


class Gathering:
    """Says when the questions that wait are answered: once nobody is expected any more, or the oldest waited enough.

    Args:
        most: environments in one batch.

    Attributes:
        limit_s: how long the oldest question waits at most; follows the time that batches take.
    """

    def __init__(self, most: int) -> None:
        self.limit_s = 0.0
        self._most = most
        self._waiting: dict[Client, Waiting] = {}  # the oldest first
        self._expected: dict[Client, float] = {}  # when each was answered that has not asked since, the latest last
        self._environments = 0  # of all that waits
        self._took_s: float | None = None

    def add(self, waiting: Waiting) -> Waiting | None:
        """Have a question wait; return an older one of the same client, which nobody waits for any more."""
        older = self.forget(waiting.client)
        self._waiting[waiting.client] = waiting
        self._environments += len(waiting.question.is_first)
        return older

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a batch is due, 0 if it is now, None if nobody asks."""
        if not self._waiting:
            return None
        latest = next(reversed(self._expected.values()), -EXPECTED_S)
        if now - latest >= EXPECTED_S or self._environments >= self._most:
            return 0.0
        return max(0.0, next(iter(self._waiting.values())).since + self.limit_s - now)

    def take(self) -> list[Waiting]:
        """Return the questions of the next batch, the oldest first, and no longer hold them."""
        batch: list[Waiting] = []
        environments = 0
        for waiting in list(self._waiting.values()):
            environments += len(waiting.question.is_first)
            if batch and environments > self._most:
                break
            batch.append(waiting)
            self.forget(waiting.client)
        return batch

    def answered(self, batch: Sequence[Waiting], now: float, took_s: float) -> None:
        """Record that a batch was answered, which took this long."""
        for waiting in batch:
            self._expected.pop(waiting.client, None)
            self._expected[waiting.client] = now
        for client in [client for client, since in self._expected.items() if now - since >= EXPECTED_S]:
            del self._expected[client]
        self._took_s = took_s if self._took_s is None else 0.9 * self._took_s + 0.1 * took_s
        self.limit_s = min(MOST_WAIT_S, WAIT_SHARE * self._took_s)

    def forget(self, client: Client) -> Waiting | None:
        """Neither expect a client nor hold its question, which is returned if there is one."""
        self._expected.pop(client, None)
        waiting = self._waiting.pop(client, None)
        if waiting:
            self._environments -= len(waiting.question.is_first)
        return waiting
