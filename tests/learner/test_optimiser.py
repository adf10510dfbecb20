"""LaProp against loops over single numbers in float64, and TensorFlow's Adam as torch's with another epsilon."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.clipping import ParameterGroup
from dreamfleet.learner.optimiser import LaProp, TensorFlowAdam, load_moments, make_optimiser

pytestmark = pytest.mark.numeric

RATE, EPSILON = 0.1, 1e-2


def make_parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return parameters of several shapes, a scalar among them, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(3, 4), (5,), ()]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def set_gradients(parameters: list[Tensor], step: int, scale: float = 1.0) -> None:
    """Give each parameter the gradient of a step."""
    for parameter, gradient in zip(parameters, make_parameters(100 + step, parameters[0].dtype), strict=True):
        parameter.grad = scale * gradient.detach()


def test_a_step_is_laprops_step_by_step() -> None:
    """Normalised first, then averaged, both corrected for their start at zero, the learning rate warmed up."""
    parameters = make_parameters()
    optimiser = LaProp(parameters, 0.01, betas=(0.9, 0.99), epsilon=1e-3, warmup_steps=4)
    expected = [parameter.detach().numpy().copy() for parameter in parameters]
    momentum, square = [[np.zeros_like(w) for w in expected] for _ in range(2)]
    for t in range(1, 8):
        set_gradients(parameters, t)
        optimiser.step()
        for i, parameter in enumerate(parameters):
            assert parameter.grad is not None
            g = parameter.grad.numpy()
            square[i] = 0.99 * square[i] + 0.01 * g**2
            momentum[i] = 0.9 * momentum[i] + 0.1 * g / (np.sqrt(square[i] / (1 - 0.99**t)) + 1e-3)
            expected[i] = expected[i] - 0.01 * min(1.0, t / 4) * momentum[i] / (1 - 0.9**t)
            assert np.allclose(parameter.detach().numpy(), expected[i], atol=1e-7), (t, i)


def test_it_is_not_adam() -> None:
    """After a change of the gradient's size the two orders differ; on constant gradients each step is the rate."""
    parameters = [torch.zeros(2, dtype=torch.float64, requires_grad=True)]
    optimiser = LaProp(parameters, 0.1)
    for _ in range(5):
        before = parameters[0].detach().clone()
        parameters[0].grad = torch.tensor([2.0, -300.0], dtype=torch.float64)
        optimiser.step()
        moved = parameters[0].detach() - before
        assert moved.tolist() == pytest.approx([-0.1, 0.1], rel=1e-5)
    adam = torch.optim.Adam([torch.zeros(1, dtype=torch.float64, requires_grad=True)], 0.1, eps=1e-20)
    laprop = LaProp([torch.zeros(1, dtype=torch.float64, requires_grad=True)], 0.1)
    for size in (1.0, 1.0, 50.0):
        for optimiser_of in (adam, laprop):
            optimiser_of.param_groups[0]["params"][0].grad = torch.tensor([size], dtype=torch.float64)
            optimiser_of.step()
    assert adam.param_groups[0]["params"][0].item() != pytest.approx(laprop.param_groups[0]["params"][0].item(), 1e-2)


def test_steps_do_not_depend_on_the_losss_scale() -> None:
    """In float32, from gradients of 1e-12 to 1e12; gradients of exactly zero do nothing."""
    results = []
    for scale in (1e-12, 1.0, 1e12):
        parameters = make_parameters(dtype=torch.float32)
        optimiser = LaProp(parameters, 0.01)
        for t in range(5):
            set_gradients(parameters, t, scale)
            optimiser.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[2], results[1], atol=1e-5)
    parameters = make_parameters(dtype=torch.float32)
    optimiser = LaProp(parameters, 0.01)
    set_gradients(parameters, 0, 0.0)
    optimiser.step()
    for parameter, before in zip(parameters, make_parameters(dtype=torch.float32), strict=True):
        assert torch.equal(parameter, before)


def test_the_first_step_of_float32_is_exact() -> None:
    """1 − 0.999 is not taken from rounded numbers: the first step is the learning rate to six digits."""
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.tensor([1e-3, -7.0, 1e4])
    LaProp([parameter], 1.0).step()
    assert parameter.tolist() == pytest.approx([-1.0, 1.0, -1.0], rel=1e-6)


def test_a_run_goes_on_from_its_state() -> None:
    """Saved, read with `weights_only` and loaded into a new optimiser, the next steps are those of one run."""
    whole, parts = make_parameters(dtype=torch.float32), make_parameters(dtype=torch.float32)
    one, first = LaProp(whole, 0.01, warmup_steps=6), LaProp(parts, 0.01, warmup_steps=6)
    for t in range(3):
        for parameters, optimiser in ((whole, one), (parts, first)):
            set_gradients(parameters, t)
            optimiser.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = LaProp(parts, 0.01, warmup_steps=6)
    second.load_state_dict(torch.load(file, weights_only=True))
    for t in range(3, 6):
        for parameters, optimiser in ((whole, one), (parts, second)):
            set_gradients(parameters, t)
            optimiser.step()
    for left, right in zip(whole, parts, strict=True):
        assert torch.equal(left, right)


def test_groups_have_their_own_rates_and_missing_gradients_are_passed_over() -> None:
    """A group of rate 0 stays, and so does a parameter without a gradient, even the group's first."""
    moved, still, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimiser = LaProp([{"params": [unused, moved]}, {"params": [still], "lr": 0.0}], 0.1)
    for _ in range(2):
        moved.grad, still.grad = torch.ones(2), torch.ones(2)
        optimiser.step()
    assert moved.tolist() == pytest.approx([0.8, 0.8])
    assert still.tolist() == unused.tolist() == [1.0, 1.0]
    optimiser.zero_grad(set_to_none=True)
    optimiser.step()
    assert moved.tolist() == pytest.approx([0.8, 0.8])


def test_it_finds_a_minimum() -> None:
    """Of a quadratic with curvatures of 1 and 1e6, which both take equally long; a closure gives the loss."""
    parameter = torch.tensor([3.0, -2.0], requires_grad=True)
    optimiser = LaProp([parameter], 0.02)

    def closure() -> float:
        optimiser.zero_grad()
        loss = (torch.tensor([1.0, 1e6]) * parameter.square()).sum()
        loss.backward()
        return loss.item()

    first = optimiser.step(closure)
    for _ in range(600):
        optimiser.step(closure)
    assert first == pytest.approx(9 + 4e6)
    assert parameter.detach().abs().max() < 0.1


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
        optimiser.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square()
        weight -= RATE * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + EPSILON)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-9, atol=1e-12)


def test_both_adams_resume_each_other() -> None:
    """The state has the same layout; where ε hardly counts they are the same."""
    of_torch, of_tensorflow = make_parameters(), make_parameters()
    one = torch.optim.Adam(of_torch, lr=RATE, eps=1e-12, fused=True)
    other = TensorFlowAdam(of_tensorflow, RATE, epsilon=1e-12)
    for t in range(4):
        for parameters, optimiser in ((of_torch, one), (of_tensorflow, other)):
            set_gradients(parameters, t)
            optimiser.step()
        if t == 1:
            states = one.state_dict(), other.state_dict()
            load_moments(one, states[1])
            load_moments(other, states[0])
    for left, right in zip(of_torch, of_tensorflow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["adam", "tensorflow_adam", "laprop"])
def test_the_first_step_is_by_the_settings_rate_and_epsilon(kind: Any) -> None:
    """Of a gradient as large as ε half the rate; TensorFlow's ε counts 1/√(1 − β₂) times as much."""
    layer = torch.nn.Linear(1, 1, bias=False)
    before = layer.weight.item()
    settings = LearnerSettings(optimiser=kind, epsilon=EPSILON, learning_rate=9.0)
    optimiser: Any = make_optimiser([ParameterGroup("norm", layer, RATE, 1.0)], settings)
    layer.weight.grad = torch.full_like(layer.weight, EPSILON)
    optimiser.step()
    share = 1 / (1 + 1 / math.sqrt(0.001)) if kind == "tensorflow_adam" else 0.5
    assert before - layer.weight.item() == pytest.approx(RATE * share, rel=1e-6)


@pytest.mark.parametrize("kind", ["adam", "tensorflow_adam", "laprop"])
def test_a_checkpoints_moments_come_without_its_rate_and_epsilon(kind: Any) -> None:
    """A run that goes on by other settings steps by these, with the moments that were saved."""
    made = []
    for rate, epsilon in ((0.1, 1e-3), (0.3, 1e-4)):
        layer = torch.nn.Linear(3, 4)
        settings = LearnerSettings(optimiser=kind, epsilon=epsilon)
        made.append((layer, make_optimiser([ParameterGroup("norm", layer, rate, 1.0)], settings)))
    (layer, first), (_, second) = made
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.step()
    load_moments(second, first.state_dict())
    assert (second.param_groups[0]["lr"], second.param_groups[0]["eps"]) == (0.3, 1e-4)
    for mine, others in zip(second.state.values(), first.state.values(), strict=True):
        assert all(torch.equal(mine[name], value) for name, value in others.items())


@pytest.mark.parametrize("kind", ["adam", "tensorflow_adam", "laprop"])
def test_a_step_whose_gradients_were_not_finite_changes_nothing(kind: Any) -> None:
    """Neither parameters nor moments nor counts: what follows is as if it had not been."""
    settings = LearnerSettings(optimiser=kind, warm_up=3)
    results = []
    for bad in ((), (0, 2, 3)):
        layer = torch.nn.Linear(3, 4)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.linspace(-1.0, 1.0, parameter.numel()).view_as(parameter))
        optimiser: Any = make_optimiser([ParameterGroup("norm", layer, RATE, 1.0)], settings)
        made = 0
        for t in range(6):
            skipped = t in bad
            if skipped or made < 3:
                for parameter in layer.parameters():
                    parameter.grad = torch.zeros_like(parameter) if skipped else torch.full_like(parameter, made + 1.0)
                optimiser.found_inf = torch.tensor(float(skipped), dtype=torch.float32)
                optimiser.step()
                made += not skipped
        results.append(([p.detach().clone() for p in layer.parameters()], optimiser.state_dict()["state"]))
    for left, right in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(left, right)
    for index, state in results[0][1].items():
        for name, value in state.items():
            assert torch.equal(value, results[1][1][index][name]), name
