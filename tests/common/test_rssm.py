"""How states follow each other."""

from __future__ import annotations

import pytest
import torch
from rounding import agree
from small_rssm import GAUSSIAN_GRU, KINDS, A, B, D, E, Inputs, S, T, joint, make, make_with_inputs, parameters, same
from torch import Tensor, nn

from dreamfleet.common.model.distributions import Gaussian
from dreamfleet.common.model.rssm import State

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("changes", KINDS)
def test_shapes(changes: dict[str, object]) -> None:
    """States, features and both distributions have the announced shapes."""
    dynamics, inputs = make_with_inputs(**changes)
    rollout = inputs.observe(dynamics)
    layers, categorical = changes.get("gru_layers", 1), changes.get("latent") == "categorical"
    width = 3 * S if categorical else S
    assert rollout.states.deterministic.shape == (B, T, layers, D)
    assert rollout.states.stochastic.shape == (B, T, width)
    assert rollout.states.feature.shape == (B, T, D + width)
    expected = (B, T, S, 3) if categorical else (B, T, S)
    assert {part.shape for part in (*rollout.prior, *rollout.posterior)} == {expected}
    assert dynamics.initial(B).feature.shape == (B, D + width)


@pytest.mark.parametrize("changes", [*GAUSSIAN_GRU, {"gru_layers": 2, "prior_sees_action": True, "activation": "elu"}])
def test_observing_follows_the_published_equations(changes: dict[str, object]) -> None:
    """Transition, GRU layers, prior and posterior equal the equations written out plainly, one step after the other."""
    dynamics, inputs = make_with_inputs(**changes)
    rollout = inputs.observe(dynamics)
    activation = nn.functional.elu if changes.get("activation") == "elu" else torch.relu
    layers, z = [torch.zeros(B, D)] * len(dynamics.recurrence.cells), torch.zeros(B, S)
    for t in range(T):
        keep = 1.0 - inputs.is_first[:, t, None].float()
        layers, z, action = [keep * h for h in layers], keep * z, keep * inputs.actions[:, t]
        fed = activation(joint(dynamics.recurrence.transition, z, action))
        for number, cell in enumerate(dynamics.recurrence.cells):
            fed = layers[number] = cell(fed, layers[number])
        if dynamics.prior_hidden.second is None:
            expected = dynamics.prior_output(activation(dynamics.prior_hidden.first(fed)))
        else:
            expected = dynamics.prior_output(activation(joint(dynamics.prior_hidden, fed, action)))
        believed = dynamics.posterior_output(activation(joint(dynamics.posterior_hidden, fed, inputs.embedding[:, t])))
        for gaussian, raw in ((rollout.prior, expected), (rollout.posterior, believed)):
            mean, spread = raw.chunk(2, -1)
            logarithmic = changes.get("std") == "log_variance"
            bounded = (3 * (spread / 6).tanh()).exp().clamp(min=0.1)
            std = bounded if logarithmic else nn.functional.softplus(spread) + 0.1
            assert agree(gaussian.mean[:, t], mean)
            assert agree(gaussian.std[:, t], std)
        z = mean + std * inputs.noise[:, t]
        assert agree(rollout.states.feature[:, t], torch.cat([fed, z], -1))


@pytest.mark.parametrize("changes", KINDS)
def test_an_episode_begins_afresh_whatever_came_before(changes: dict[str, object]) -> None:
    """From is_first on, states and prior equal those of a sequence that begins there: all h, z and a are reset."""
    dynamics, inputs = make_with_inputs(**changes)
    whole = inputs.observe(dynamics)
    rest = dynamics.observe(
        inputs.embedding[1:2, 4:], inputs.actions[1:2, 4:], inputs.is_first[1:2, 4:], noise=inputs.noise[1:2, 4:]
    )
    assert same(whole.states.map(lambda part: part[1:2, 4:]), rest.states)
    assert agree(parameters(whole.prior)[1:2, 4:], parameters(rest.prior))
    inputs.is_first[1, 4] = False
    assert not same(inputs.observe(dynamics).states.map(lambda part: part[1:2, 4:]), rest.states)


def test_the_first_state_is_inferred_from_its_observation() -> None:
    """The posterior at t = 0 changes with the first observation."""
    dynamics, inputs = make_with_inputs()
    before = parameters(inputs.observe(dynamics).posterior)[:, 0]
    inputs.embedding[:, 0] += 1.0
    assert not torch.allclose(before, parameters(inputs.observe(dynamics).posterior)[:, 0])


@pytest.mark.parametrize("changes", KINDS)
def test_the_prior_knows_nothing_of_the_observation_it_expects(changes: dict[str, object]) -> None:
    """The observation at t changes the posterior at t and the prior after it, but no prior up to t."""
    dynamics, inputs = make_with_inputs(**changes)
    t = 3
    before = inputs.observe(dynamics)
    inputs.embedding[:, t] += 3.0
    after = inputs.observe(dynamics)
    assert torch.equal(parameters(before.prior)[:, : t + 1], parameters(after.prior)[:, : t + 1])
    assert torch.equal(parameters(before.posterior)[:, :t], parameters(after.posterior)[:, :t])
    assert not torch.allclose(parameters(before.posterior)[:, t], parameters(after.posterior)[:, t])
    assert not torch.allclose(parameters(before.prior)[:, t + 1], parameters(after.prior)[:, t + 1])


def test_the_action_that_led_to_a_step_changes_it() -> None:
    """The previous action at t changes the states from t on, and none before."""
    dynamics, inputs = make_with_inputs()
    t = 2
    before = inputs.observe(dynamics)
    inputs.actions[:, t] += 1.0
    after = inputs.observe(dynamics)
    assert torch.equal(before.states.stochastic[:, :t], after.states.stochastic[:, :t])
    assert not torch.allclose(parameters(before.prior)[:, t], parameters(after.prior)[:, t])


@pytest.mark.parametrize("sees", [True, False])
def test_the_prior_reads_the_action_only_if_told(sees: bool) -> None:
    """With `prior_sees_action` the prior depends on the action at equal h; without it does not."""
    dynamics = make(prior_sees_action=sees)
    h = torch.randn(2, D)
    one, other = dynamics.prior(h, torch.zeros(2, A)), dynamics.prior(h, torch.ones(2, A))
    assert torch.equal(one.mode, other.mode) != sees


@pytest.mark.parametrize("changes", KINDS)
def test_single_steps_chained_equal_a_whole_sequence(changes: dict[str, object]) -> None:
    """What an actor computes step by step is what the learner computes at once."""
    dynamics, inputs = make_with_inputs(**changes)
    whole = inputs.observe(dynamics)
    state = dynamics.initial(B)
    for t in range(T):
        state = dynamics.observe_step(
            state, inputs.actions[:, t], inputs.embedding[:, t], inputs.is_first[:, t], noise=inputs.noise[:, t]
        )
        assert same(state, whole.states.map(lambda part, t=t: part[:, t]))


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("samples", [True, False])
def test_single_imagined_steps_equal_a_whole_dream(changes: dict[str, object], samples: bool) -> None:
    """With the same noise, and as modes; the prior that comes with a step is that of its state."""
    dynamics, inputs = make_with_inputs(**changes)
    begin = inputs.observe(dynamics).states.map(lambda part: part[:, 0])
    whole = dynamics.imagine(begin, inputs.actions, samples, inputs.noise)
    state = begin
    for t in range(T):
        action = inputs.actions[:, t]
        state, prior = dynamics.imagine_step(state, action, inputs.noise[:, t] if samples else None)
        assert same(state, whole.map(lambda part, t=t: part[:, t]))
        assert agree(prior.mode, dynamics.prior(state.deterministic[:, -1], action).mode)


def test_a_sequence_goes_on_from_a_given_state() -> None:
    """Two halves, the second from the first's last state, equal the whole."""
    dynamics, inputs = make_with_inputs(gru_layers=2)
    whole = inputs.observe(dynamics)
    first, second = slice(0, 3), slice(3, T)
    state = None
    for part in (first, second):
        rollout = dynamics.observe(
            inputs.embedding[:, part], inputs.actions[:, part], inputs.is_first[:, part], state, inputs.noise[:, part]
        )
        assert same(rollout.states, whole.states.map(lambda x, part=part: x[:, part]))
        state = rollout.states.map(lambda x: x[:, -1])


def test_layers_of_the_dynamics_are_fed_by_the_layer_below() -> None:
    """The carried h of the lower layer reaches the upper one, not the other way, and the feature holds the upper."""
    dynamics = make(gru_layers=2)
    state = State(torch.randn(1, 2, D), torch.randn(1, S))
    inputs = (torch.randn(1, A), torch.randn(1, E), torch.tensor([False]), False)
    before = dynamics.observe_step(state, *inputs)
    for changed, expected in ((0, [True, True]), (1, [False, True])):
        layers = state.deterministic.clone()
        layers[:, changed] += 1.0
        after = dynamics.observe_step(State(layers, state.stochastic), *inputs)
        differs = [not torch.equal(before.deterministic[:, i], after.deterministic[:, i]) for i in range(2)]
        assert differs == expected
    assert torch.equal(before.feature[:, :D], before.deterministic[:, 1])


@pytest.mark.parametrize("changes", KINDS)
def test_gradients_flow_from_the_last_state_to_the_first_inputs(changes: dict[str, object]) -> None:
    """Through time, and through the samples: reparametrised, or straight through the one-hots."""
    dynamics, inputs = make_with_inputs(**changes)
    inputs.embedding.requires_grad_()
    inputs.actions.requires_grad_()
    # Of the first sequence, which does not begin anew in the middle, the last prior alone.
    prior = parameters(inputs.observe(dynamics).prior)
    weights = torch.randn(prior.shape[-1])
    (prior[0, -1] * weights).sum().backward()
    assert inputs.embedding.grad is not None
    assert inputs.actions.grad is not None
    assert inputs.embedding.grad[0, 0].abs().sum() > 0  # by z alone: h_1 knows the first embedding only so
    assert inputs.actions.grad[0, 1].abs().sum() > 0
    assert not inputs.embedding.grad[0, -1].any()
    assert not inputs.embedding.grad[1:].any()


@pytest.mark.parametrize("changes", KINDS)
def test_the_gradients_of_a_sequence_are_those_of_its_steps(changes: dict[str, object]) -> None:
    """Weights' gradients taken as one product over all steps equal the sum over single steps."""
    dynamics, inputs = make_with_inputs(**changes)
    weights = torch.randn(B, T, D + dynamics.latents.width)
    gradients = []
    for whole in (True, False):
        dynamics.zero_grad()
        if whole:
            features = inputs.observe(dynamics).states.feature
        else:
            state, states = dynamics.initial(B), []
            for t in range(T):
                step = (inputs.actions[:, t], inputs.embedding[:, t], inputs.is_first[:, t])
                state = dynamics.observe_step(state, *step, noise=inputs.noise[:, t])
                states.append(state.feature)
            features = torch.stack(states, 1)
        (features * weights).sum().backward()
        gradients.append({name: p.grad for name, p in dynamics.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 5
    for name, gradient in gradients[0].items():
        assert agree(gradient, gradients[1][name]), name


@pytest.mark.parametrize("changes", KINDS)
def test_observing_is_the_plain_loop(changes: dict[str, object]) -> None:
    """Zeroed at first steps, recurrence, posterior and prior one after the other give what `observe` gives."""
    dynamics, inputs = make_with_inputs(**changes)
    rollout = inputs.observe(dynamics)
    layers = tuple(torch.zeros(B, D) for _ in range(int(str(changes.get("gru_layers", 1)))))
    z = torch.zeros(B, dynamics.latents.width)
    for t in range(T):
        keep = 1.0 - inputs.is_first[:, t, None].float()
        action = keep * inputs.actions[:, t]
        prepared = dynamics.recurrence.prepare(action)
        layers = dynamics.recurrence.advance(tuple(keep * h for h in layers), keep * z, prepared)
        read = joint(dynamics.posterior_hidden, layers[-1], inputs.embedding[:, t])
        raw = dynamics.posterior_output(dynamics.posterior_activation(read))
        posterior, prior = dynamics.latents.distribution(raw), dynamics.prior(layers[-1], action)
        z = posterior.sample(inputs.noise[:, t])
        for whole, single in ((rollout.posterior, posterior), (rollout.prior, prior)):
            assert all(agree(x[:, t], y) for x, y in zip(whole, single, strict=True))
        assert agree(rollout.states.feature[:, t], torch.cat([layers[-1], z], -1))


def test_the_same_seed_gives_the_same_states() -> None:
    """All randomness comes from torch's global generator."""
    dynamics, inputs = make_with_inputs()
    states: list[Tensor] = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(dynamics.observe(inputs.embedding, inputs.actions, inputs.is_first).states.stochastic)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("kind", ["softplus", "log_variance"])
def test_a_deviation_never_falls_below_its_minimum(kind: str) -> None:
    """Whatever the network gives out, min_std holds."""
    dynamics = make(std=kind, min_std=0.3)
    nn.init.constant_(dynamics.posterior_output.bias, -50.0)
    posterior = Inputs(dynamics).observe(dynamics).posterior
    assert isinstance(posterior, Gaussian)
    assert posterior.std.min() >= 0.3
