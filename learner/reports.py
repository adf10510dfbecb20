"""What a learner answers: the report of a train order, and what it was restored to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.process_log import LogRecord
from dreamfleet.learner.saving import SavedCheckpoint


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
