"""A learner's answers, with and without the weights that they bring."""

from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.learner.reports import Answer, Restored, TrainReport, WeightsOutbox, change_weights, part_weights
from dreamfleet.learner.saving import SavedCheckpoint


def weights(version: int) -> PublishedWeights:
    """Return weights of three numbers."""
    return PublishedWeights(version, np.full(3, version, np.float32))


SAVED = SavedCheckpoint({"updates": 2}, weights(2))
ANSWERS = [
    (Restored(0, weights(0), ["a decision"], None), [0]),
    (TrainReport(5, {"loss": 1.0}, {}, published=weights(4), saved=[SAVED]), [2, 4]),
    (TrainReport(2, {}, {}, published=weights(2), saved=[SAVED]), [2]),
    (TrainReport(5, {}, {}), []),
    (SAVED, [2]),
    ([SAVED, SavedCheckpoint({"updates": 3}, weights(3))], [2, 3]),
    (None, []),
    (Restored(0, PublishedWeights(0, None), [], None), []),  # of another rank than the first
]


@pytest.mark.parametrize(("answer", "versions"), ANSWERS)
def test_an_answer_and_its_weights_are_parted_and_joined(answer: Answer, versions: list[int]) -> None:
    """What is left has versions but no arrays; with the arrays put back it says what it said."""
    left, parted = part_weights(answer)
    assert sorted(parted) == versions
    assert all(np.array_equal(flat, np.full(3, version)) for version, flat in parted.items())
    assert "array" in repr(answer) or not versions
    assert "array" not in repr(left)
    joined = change_weights(left, lambda found: PublishedWeights(found.version, parted.get(found.version)))
    assert repr(joined) == repr(answer)


def test_each_answer_has_its_weights_fetched_in_its_turn() -> None:
    """An order that raises, and an answer without weights, have none; the calls stay in step with the orders."""
    outbox = WeightsOutbox()
    assert outbox.part(lambda: SAVED).weights == PublishedWeights(2, None)
    with pytest.raises(ZeroDivisionError):
        outbox.part(lambda: TrainReport(1 // 0, {}, {}))
    assert outbox.part(lambda: TrainReport(3, {}, {})).updates == 3
    outbox.part(lambda: Restored(4, weights(4), [], None))
    assert [list(outbox.fetch()) for _ in range(4)] == [[2], [], [], [4]]
