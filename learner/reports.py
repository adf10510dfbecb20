"""What a learner answers: the report of a train order, what it was restored to, and the weights in either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.process_log import LogRecord
from dreamfleet.learner.saving import SavedCheckpoint

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class TrainReport:
    """The result of a train order.

    Attributes:
        updates: made so far, by all incarnations of the run's learner.
        metrics: means over the order's updates; and how old the replayed actions were, see `staleness`.
        timings: seconds of the order by what they went into: wait (for a batch), transfer, forward_backward, optimiser,
            confirm (reading whether the update before was finite), publish. A GPU is only told what to do, so that the
            host's waiting for it is within confirm.
        hidden: seconds of what was done meanwhile, beside that: fetch (all threads together), and with a GPU transfer,
            device, publish and save.
        published: the newest weights, if a version was published since the last report.
        saved: the checkpoints written since the last report, of those that were begun.
    """

    updates: int
    metrics: dict[str, float]
    timings: dict[str, float]
    log_records: list[LogRecord] = field(default_factory=list)
    published: PublishedWeights | None = None
    hidden: dict[str, float] = field(default_factory=dict)
    saved: list[SavedCheckpoint] = field(default_factory=list)


class Restored(NamedTuple):
    """A learner that is ready.

    Attributes:
        decisions: one sentence for each automatic choice.
        facts: of the checkpoint that it continues; None if there is none.
        is_prepared: whether it can train at once; else it is to be prepared first (`Learner.prepare`).
    """

    updates: int
    published: PublishedWeights
    decisions: list[str]
    facts: dict[str, Any] | None
    is_prepared: bool = True


def change_weights(answer: Any, change: Callable[[PublishedWeights], PublishedWeights]) -> Any:
    """Return a learner's answer with other published weights in place of those in it, if there are any."""
    if isinstance(answer, PublishedWeights):
        return change(answer)
    if isinstance(answer, SavedCheckpoint):
        return answer._replace(weights=change(answer.weights))
    if isinstance(answer, list):
        return [change_weights(each, change) for each in answer]
    if isinstance(answer, Restored):
        return answer._replace(published=change(answer.published))
    if isinstance(answer, TrainReport):
        published, saved = change_weights(answer.published, change), change_weights(answer.saved, change)
        return replace(answer, published=published, saved=saved)
    return answer


def part_weights(answer: Answer) -> tuple[Answer, dict[int, np.ndarray]]:
    """Return an answer whose weights have no handle, and the flat weights themselves by version."""
    parted: dict[int, np.ndarray] = {}

    def part(weights: PublishedWeights) -> PublishedWeights:
        if weights.handle is not None:  # as other ranks than the first have it
            parted[weights.version] = weights.handle
        return replace(weights, handle=None)

    return change_weights(answer, part), parted


class WeightsOutbox:
    """Where the weights of a process's answers wait for the calls that fetch them: one for each answer, in its order.

    On Ray they are the value of a call of their own. So a thread copies them into the object store during the next
    order; they are owned by who gave the order, and outlive the learner; and the answer itself is small. (Of an object
    that a process puts there itself, and names in an answer, Ray keeps a record for good.)
    """

    def __init__(self) -> None:
        self._parted: SimpleQueue[dict[int, np.ndarray]] = SimpleQueue()

    def part(self, order: Callable[[], Answer]) -> Answer:
        """Carry out an order, and return its answer without the weights; what it raises comes without any."""
        parted: dict[int, np.ndarray] = {}
        try:
            answer, parted = part_weights(order())
        finally:
            self._parted.put(parted)
        return answer

    def fetch(self) -> dict[int, np.ndarray]:
        """Return the flat weights of the next answer by version, once it is there."""
        return self._parted.get()
