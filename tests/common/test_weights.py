"""Weights as they travel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from moving_square import square_format

from dreamfleet.common.acting.agent_networks import flatten, load_flat
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import ModelSettings

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
