"""Adaptive clipping of layers that are computed as one: each is clipped as if it stood alone."""

from __future__ import annotations

import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from dreamfleet.actors.spaces.action_spaces import describe_action
from dreamfleet.common.acting.action_distributions import parameter_count, policy_outputs
from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.layers import ForkedLinear
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.clipping import Gradients, clip_adaptively, find_parts
from dreamfleet.learner.optimiser import LaProp

pytestmark = pytest.mark.numeric

BOX = ActionSpec("box", (2,), (-1.0, -2.0), (1.0, 2.0), (2,))


def clipped_alone(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient after clipping a tensor that stands alone, by the formula."""
    limit = 0.3 * max(1e-3, weight.norm().item())
    return gradient * min(1.0, limit / gradient.norm().item())


def test_each_part_of_a_forked_layer_is_clipped_by_its_own_size() -> None:
    """Parts whose weights and gradients differ by orders of magnitude come out as layers of their own would."""
    torch.manual_seed(0)
    layer, beside = ForkedLinear(5, (2, 3, 1)).double(), torch.nn.Linear(5, 4).double()
    scales = torch.tensor([1e-2, 1e-2, 1.0, 1.0, 1.0, 30.0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(scales[:, None])
        layer.bias.mul_(scales)
    for parameter in [*layer.parameters(), *beside.parameters()]:
        parameter.grad = torch.randn_like(parameter) * 0.5
    expected = [
        torch.cat([
            clipped_alone(weight, gradient)
            for weight, gradient in zip(parameter.split((2, 3, 1)), parameter.grad.split((2, 3, 1)), strict=True)
        ])
        for parameter in layer.parameters()
        if parameter.grad is not None
    ]  # fmt: skip
    alone = [
        clipped_alone(parameter, parameter.grad) for parameter in beside.parameters() if parameter.grad is not None
    ]
    joined = clipped_alone(layer.weight, layer.weight.grad)  # type: ignore[arg-type]
    found = clip_adaptively(Gradients([*layer.parameters(), *beside.parameters()]), parts=find_parts([layer, beside]))
    for parameter, gradient in zip([*layer.parameters(), *beside.parameters()], [*expected, *alone], strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=0)
    assert not torch.allclose(joined, expected[0])
    assert 0 < found.share.item() < 1


def test_a_forked_layer_is_trained_as_layers_of_their_own() -> None:
    """Three updates with clipping and LaProp: the same numbers as of two separate layers with the same input."""
    torch.manual_seed(0)
    forked = ForkedLinear(4, (2, 3)).double()
    alone = [torch.nn.Linear(4, width).double() for width in (2, 3)]
    with torch.no_grad():
        for name in ("weight", "bias"):
            for layer, part in zip(alone, getattr(forked, name).split((2, 3)), strict=True):
                getattr(layer, name).copy_(part)
    parameters = [parameter for layer in alone for parameter in layer.parameters()]
    optimisers = LaProp(forked.parameters(), 0.1), LaProp(parameters, 0.1)
    for _ in range(3):
        x, target = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
        for optimiser, output in zip(
            optimisers, (forked(x), torch.cat([layer(x) for layer in alone], -1)), strict=True
        ):
            optimiser.zero_grad()
            (100 * torch.tensor([1.0, 1.0, 9.0, 9.0, 9.0]) * (output - target).square()).sum().backward()
        clip_adaptively(Gradients(forked.parameters()), parts=find_parts([forked]))
        clip_adaptively(Gradients(parameters))
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(forked.weight, torch.cat([layer.weight for layer in alone]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(forked.bias, torch.cat([layer.bias for layer in alone]), rtol=1e-10, atol=1e-12)


def test_the_agents_parts_are_those_that_the_release_keeps_apart() -> None:
    """Mean and deviation of a box, and one decoder's output for each vector; a head of one output is no fork."""
    sizes = {"deterministic": 12, "stochastic": 4, "hidden": 8, "vector_units": 8, "reward_units": 8}
    settings = Settings.model_validate({"model": sizes, "behaviour": {"kind": "actor_critic", "units": 8}})
    vectors = tuple(ObservationSpec(name, (width,), "float32") for name, width in (("arm", 3), ("ball", 1)))
    agent = AgentNetworks(Spaces(vectors, BOX), settings)
    parts = find_parts([agent])
    named = {name: parts[tensor] for name, tensor in agent.named_parameters() if tensor in parts}
    outputs = {name.rpartition(".")[0]: widths for name, widths in named.items()}
    assert outputs.pop("actor.output") == (2, 2)
    assert list(outputs.values()) == [(3, 1)]
    assert all(name.startswith("world_model.decoder.vector.") for name in outputs)
    assert len(named) == 4


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (BOX, (2, 2)),
        (ActionSpec("discrete", (4,)), (4,)),
        (ActionSpec("multi_discrete", (3, 2)), (5,)),
        (ActionSpec("mixed", (3, 2), (-1.0,), (1.0,)), (5, 1, 1)),
    ],
)
def test_a_policys_parts_are_all_of_its_numbers(spec: ActionSpec, parts: tuple[int, ...]) -> None:
    """Choices, means and deviations are layers of their own, and together what the distribution is made of."""
    assert policy_outputs(spec) == parts
    assert sum(parts) == parameter_count(spec)


def test_each_key_of_a_dict_has_layers_of_its_own() -> None:
    """Named as `describe_action` names them; what follows one another under one key is one layer."""
    inside = {
        "aim": spaces.Box(-1, 1, (2,)),
        "gear": spaces.Discrete(4),
        "lamps": spaces.MultiDiscrete([2, 3]),
        "speed": spaces.Box(-1, 1, ()),
    }
    spec = describe_action(spaces.Dict(inside))
    assert policy_outputs(spec) == (4, 5, 2, 1, 2, 1)  # gear, lamps; means of aim, speed; deviations of aim, speed
    assert sum(policy_outputs(spec)) == parameter_count(spec)


def test_gradients_are_clipped_to_their_own_tensors_size() -> None:
    """By hand: ‖w‖ 5 allows 1.5, a gradient of 10 is scaled to it, one of 1 stays; small tensors count as 1e-3."""
    large = torch.tensor([3.0, 4.0], requires_grad=True)
    fine = torch.tensor([3.0, -4.0], requires_grad=True)
    zeros = torch.zeros(2, 2, requires_grad=True)
    unused = torch.ones(3, requires_grad=True)
    large.grad, fine.grad = torch.tensor([6.0, 8.0]), torch.tensor([0.6, 0.8])
    zeros.grad = torch.full((2, 2), 0.5)
    found = clip_adaptively(Gradients([large, fine, zeros, unused]))
    assert large.grad.tolist() == pytest.approx([0.9, 1.2])
    assert fine.grad.tolist() == pytest.approx([0.6, 0.8])
    assert zeros.grad.norm().item() == pytest.approx(3e-4)
    assert found.norm.item() == pytest.approx(math.sqrt(100 + 1 + 1))
    assert found.share.item() == pytest.approx(2 / 3)
    assert unused.grad is None


def test_clipping_leaves_zeros_and_shows_what_is_not_finite() -> None:
    """A gradient of zeros is not divided by; a NaN comes through in the norm, and only its own tensor is spoilt."""
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    first.grad, second.grad = torch.zeros(2), torch.tensor([0.1, 0.1])
    found = clip_adaptively(Gradients([first, second]))
    assert first.grad.tolist() == [0.0, 0.0]
    assert found.share.item() == 0.0
    first.grad[0] = math.nan
    assert not torch.isfinite(clip_adaptively(Gradients([first, second])).norm)
    assert second.grad.tolist() == pytest.approx([0.1, 0.1])
