"""TensorFlow's Adam as torch's with another epsilon."""

from __future__ import annotations

import math

import pytest
import torch

from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.optimiser import ParameterGroup, correct_epsilon, make_optimiser

pytestmark = pytest.mark.numeric

RATE, EPSILON = 0.1, 1e-2


def test_adam_steps_as_in_tensorflow() -> None:
    """Its documented formula by hand: lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε), with gradients about as great as ε."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4).double()
    weight = layer.weight.detach().clone()
    settings = LearnerSettings(optimiser="tensorflow_adam", epsilon=EPSILON)
    optimiser = make_optimiser([ParameterGroup("norm", layer, RATE, 1.0)], settings)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for t in range(1, 8):
        gradient = torch.randn_like(weight) * EPSILON
        layer.weight.grad = gradient.clone()
        correct_epsilon(optimiser, EPSILON, t)
        optimiser.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square()
        weight -= RATE * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + EPSILON)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-9, atol=1e-12)


def test_its_epsilon_falls_to_the_settings() -> None:
    """32 times as great at the first update, equal in the end."""
    optimiser = torch.optim.Adam([torch.zeros(1)], eps=EPSILON)
    factors = []
    for number in (1, 100, 1000, 100_000):
        correct_epsilon(optimiser, EPSILON, number)
        factors.append(optimiser.param_groups[0]["eps"] / EPSILON)
    assert factors == pytest.approx([31.6, 3.24, 1.26, 1.0], rel=2e-3)
