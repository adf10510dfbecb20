"""Weights as they travel, and when they are published."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import square_format

from dreamfleet.common.acting.agent_networks import flatten, load_flat
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.learner.learner import TrainReport
from dreamfleet.learner.publishing_learner import PublishingLearner

SMALL = ModelSettings(encoder="strided", batch_norm=True, depth=2, embedding=8, deterministic=6, stochastic=3, hidden=5)


def small_model(seed: int) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(square_format().spaces, SMALL)


def test_weights_arrive_bit_for_bit() -> None:
    """What one model acts by, another acts by after the way through a flat array that nobody may write to."""
    sent, received = small_model(0), small_model(1)
    flat = flatten(sent.acting_parameters())
    flat.flags.writeable = False  # as Ray hands it out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_flat(received.acting_parameters(), flat)
    assert flat.dtype == np.float32
    assert flat.shape == (sum(tensor.numel() for tensor in sent.acting_parameters().values()),)
    for name, tensor in sent.acting_parameters().items():
        assert torch.equal(tensor, received.acting_parameters()[name]), name
    image = torch.randint(0, 255, (1, 2, 16, 16, 1), dtype=torch.uint8)
    assert torch.equal(sent.eval().encode({"image": image}), received.eval().encode({"image": image}))


@pytest.mark.parametrize("names", [["a", "b"], ["a"]])
def test_published_weights_do_not_change_with_the_model(names: list[str]) -> None:
    """Neither the array that was published nor the parameters that took it over share memory with the other side."""
    parameters = {name: torch.ones(3) for name in names}
    flat = flatten(parameters)
    parameters["a"].zero_()
    assert flat[0] == 1.0
    load_flat(parameters, flat)
    flat[:] = 7.0
    assert parameters["a"][0] == 1.0


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2)])
def test_weights_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    """Too few or too many values are an error, and nothing is written."""
    parameters = {"a": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="weights have shape"):
        load_flat(parameters, np.ones(shape, np.float32))
    assert not parameters["a"].any()


class FakeLearner:
    """Counts updates; its weights tell the count. See `Learner` for the methods."""

    def __init__(self, updates: int = 0) -> None:
        self.updates = updates
        self.decisions = ["start: from the beginning"]

    def restore(self) -> dict[str, Any] | None:
        """Go on from a checkpoint if any update was made."""
        return {"updates": self.updates} if self.updates else None

    def train(self, updates: int) -> TrainReport:
        """Count."""
        self.updates += updates
        return TrainReport(self.updates, {}, {"wait": 1.0})

    def weights(self) -> tuple[int, np.ndarray]:
        """Return the count as a version and as weights."""
        return self.updates, np.full(2, self.updates, np.float32)


def publishing(learner: FakeLearner, every: int) -> tuple[PublishingLearner, SimpleNamespace]:
    seen = SimpleNamespace(put=[])

    def put(flat: np.ndarray) -> str:
        seen.put.append(float(flat[0]))
        return f"object {len(seen.put)}"

    return PublishingLearner(learner, every, put), seen  # type: ignore[arg-type]


def test_the_first_weights_are_published_at_the_start() -> None:
    """Actors have something to act by before the first update, and after a restart what was restored."""
    assert publishing(FakeLearner(), 16)[0].restore()[:2] == (0, PublishedWeights(0, "object 1"))
    assert publishing(FakeLearner(40), 16)[0].restore()[:2] == (40, PublishedWeights(40, "object 1"))


def test_weights_are_published_once_per_so_many_updates() -> None:
    """An order that passes a multiple of `publish_every` publishes once, at its end; the others publish nothing."""
    learner, seen = publishing(FakeLearner(), 16)
    learner.restore()
    published = [learner.train(8).published for _ in range(5)]
    assert [weights and weights.version for weights in published] == [None, 16, None, 32, None]
    last = learner.train(40).published
    assert last
    assert last.version == 80
    assert seen.put == [0, 16, 32, 80]


def test_publishing_is_timed() -> None:
    """The report tells what publishing took, beside the learner's own timings."""
    report = publishing(FakeLearner(), 4)[0].train(4)
    assert report.published
    assert report.timings["wait"] == 1.0
    assert report.timings["publish"] >= 0.0
