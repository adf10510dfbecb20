"""The RSSM without observations: states that follow from actions or a policy."""

from __future__ import annotations

import pytest
import torch
from rounding import agree
from small_rssm import KINDS, A, B, D, E, S, T, make, make_with_inputs, parameters, same
from torch import Tensor, nn

from dreamfleet.common.model.rssm import State

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("changes", KINDS)
def test_imagination_follows_the_prior(changes: dict[str, object]) -> None:
    """With the prior's noise replayed through `observe`'s transition, imagined h and z are those of the recurrence."""
    dynamics, inputs = make_with_inputs(**changes)
    horizon = 4
    start = inputs.observe(dynamics).states.map(lambda part: part[:, 2])
    actions, noise = torch.randn(B, horizon, A), dynamics.latents.draw_noise(B, horizon, device=torch.device("cpu"))
    imagined = dynamics.imagine(start, actions, noise=noise)
    state = start
    for t in range(horizon):
        h = dynamics.observe_step(
            state, actions[:, t], torch.zeros(B, E), torch.zeros(B, dtype=torch.bool)
        ).deterministic
        prior = dynamics.prior(h[:, -1], actions[:, t])
        state = State(h, prior.sample(noise[:, t]))
        assert same(state, imagined.map(lambda part, t=t: part[:, t]))


@pytest.mark.parametrize("changes", KINDS)
def test_without_sampling_z_is_the_mode(changes: dict[str, object]) -> None:
    """With `sample` off nothing is random: z is what prior or posterior hold likeliest."""
    dynamics, inputs = make_with_inputs(**changes)
    start, actions = dynamics.initial(B), inputs.actions
    once, twice = (dynamics.imagine(start, actions, sample=False) for _ in range(2))
    assert torch.equal(once.stochastic, twice.stochastic)
    assert agree(once.stochastic, dynamics.prior(once.deterministic[..., -1, :], actions).mode)
    step = (start, inputs.actions[:, 0], inputs.embedding[:, 0], inputs.is_first[:, 0])
    expected = parameters(dynamics.observe(*(part[:, None] for part in (step[2], step[1], step[3]))).posterior)
    seen = dynamics.observe_step(*step, sample=False).stochastic
    if changes.get("latent") == "categorical":
        likeliest = expected.unflatten(-1, (S, 3)).argmax(-1)[:, 0]
        assert torch.equal(seen, nn.functional.one_hot(likeliest, 3).flatten(1).to(seen.dtype))
    else:
        assert agree(seen, expected[:, 0, :S])


def test_imagination_is_random_unless_told_otherwise() -> None:
    """Two samples of the same future differ."""
    dynamics, inputs = make_with_inputs()
    start = dynamics.initial(B)
    one, other = (dynamics.imagine(start, inputs.actions).stochastic for _ in range(2))
    assert not torch.equal(one, other)


def test_imagining_nothing_gives_no_states() -> None:
    """A horizon of zero is an empty sequence of the usual shape."""
    dynamics = make(gru_layers=2)
    imagined = dynamics.imagine(dynamics.initial(B), torch.zeros(B, 0, A))
    assert imagined.deterministic.shape == (B, 0, 2, D)
    assert imagined.feature.shape == (B, 0, D + S)


@pytest.mark.parametrize("changes", KINDS)
def test_imagining_with_a_policy_equals_imagining_its_actions(changes: dict[str, object]) -> None:
    """A policy sees the feature of the state it acts in, and its actions lead where the same actions given lead."""
    dynamics, inputs = make_with_inputs(**changes)
    start = inputs.observe(dynamics).states.map(lambda part: part[:, -1])
    seen: list[Tensor] = []

    def policy(feature: Tensor) -> Tensor:
        seen.append(feature)
        return torch.tanh(feature[:, :A])

    states, actions = dynamics.imagine_with(start, policy, T, inputs.noise)
    assert actions.shape == (B, T, A)
    assert same(states, dynamics.imagine(start, actions, noise=inputs.noise))
    assert torch.equal(seen[0], start.feature)
    assert torch.equal(torch.stack(seen[1:], 1), states.feature[:, :-1])
