"""What a learner answers: the report of a train order, what it was restored to, and the weights in either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.process_log import LogRecord
from dreamfleet.learner.saving import SavedCheckpoint

Answer = TypeVar("Answer")
Parted = tuple[Answer, dict[int, np.ndarray]]
"""An answer, and the flat weights that came with it, by version."""


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


def part_weights(answer: Answer) -> Parted[Answer]:
    """Return a learner's answer with weights that have no handle, and the flat weights themselves by version.

    On Ray these are two values of a call, so that the answer is small, and the weights are an object that is owned by
    who gave the order: they outlive the learner. (What a process puts into the store itself, and names in an answer, it
    keeps a record of for good.)
    """
    parted: dict[int, np.ndarray] = {}

    def part(weights: PublishedWeights) -> PublishedWeights:
        if weights.handle is not None:  # as other ranks than the first have it
            parted[weights.version] = weights.handle
        return replace(weights, handle=None)

    return change_weights(answer, part), parted
