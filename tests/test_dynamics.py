"""How states follow each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dreamfleet.common.dynamics import Dynamics, Rollout, State
from dreamfleet.common.layers import GRUCell, JointLinear
from dreamfleet.common.settings import ModelSettings

B, T, A, E, D, S = 3, 7, 4, 9, 10, 5

KINDS = [
    {},
    {"gru_layers": 3},
    {"prior_sees_action": True, "std": "log_variance"},
]


def make(**changes: object) -> Dynamics:
    """Return small dynamics, the same at every call."""
    torch.manual_seed(1)
    sizes = {"deterministic": D, "stochastic": S, "hidden": 12}
    return Dynamics(A, E, ModelSettings.model_validate({**sizes, **changes}))


class Inputs:
    """Sequences with an episode that begins at t = 4 of the second."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.embedding = torch.randn(B, T, E)
        self.actions = torch.randn(B, T, A)
        self.noise = torch.randn(B, T, S)
        self.is_first = torch.zeros(B, T, dtype=torch.bool)
        self.is_first[:, 0] = True
        self.is_first[1, 4] = True

    def observe(self, dynamics: Dynamics) -> Rollout:
        """Return the rollout over the sequences."""
        return dynamics.observe(self.embedding, self.actions, self.is_first, noise=self.noise)


def joint(layer: JointLinear, first: Tensor, second: Tensor) -> Tensor:
    """Return what one linear layer over both inputs side by side gives."""
    assert layer.second is not None
    weight = torch.cat([layer.first.weight, layer.second.weight], 1)
    return nn.functional.linear(torch.cat([first, second], -1), weight, layer.first.bias)


def same(one: State, other: State) -> bool:
    """Whether two states agree but for rounding."""
    return all(torch.allclose(x, y, atol=1e-6) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("changes", KINDS)
def test_shapes(changes: dict[str, object]) -> None:
    """States, features and both distributions have the announced shapes."""
    dynamics = make(**changes)
    rollout = Inputs().observe(dynamics)
    layers = changes.get("gru_layers", 1)
    assert rollout.states.deterministic.shape == (B, T, layers, D)
    assert rollout.states.stochastic.shape == (B, T, S)
    assert rollout.states.feature.shape == (B, T, D + S)
    assert {part.shape for part in (*rollout.prior, *rollout.posterior)} == {(B, T, S)}
    assert dynamics.initial(B).feature.shape == (B, D + S)


@pytest.mark.parametrize("changes", [*KINDS, {"gru_layers": 2, "prior_sees_action": True, "activation": "elu"}])
def test_observing_follows_the_published_equations(changes: dict[str, object]) -> None:
    """Transition, GRU layers, prior and posterior equal the equations written out plainly, one step after the other."""
    dynamics, inputs = make(**changes), Inputs()
    rollout = inputs.observe(dynamics)
    activation = nn.functional.elu if changes.get("activation") == "elu" else torch.relu
    layers, z = [torch.zeros(B, D)] * len(dynamics.cells), torch.zeros(B, S)
    for t in range(T):
        keep = 1.0 - inputs.is_first[:, t, None].float()
        layers, z, action = [keep * h for h in layers], keep * z, keep * inputs.actions[:, t]
        fed = activation(joint(dynamics.transition, z, action))
        for number, cell in enumerate(dynamics.cells):
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
            assert torch.allclose(gaussian.mean[:, t], mean, atol=1e-6)
            assert torch.allclose(gaussian.std[:, t], std, atol=1e-6)
        z = mean + std * inputs.noise[:, t]
        assert torch.allclose(rollout.states.feature[:, t], torch.cat([fed, z], -1), atol=1e-6)


@pytest.mark.parametrize("changes", KINDS)
def test_an_episode_begins_afresh_whatever_came_before(changes: dict[str, object]) -> None:
    """From is_first on, states and prior equal those of a sequence that begins there: all h, z and a are reset."""
    dynamics, inputs = make(**changes), Inputs()
    whole = inputs.observe(dynamics)
    rest = dynamics.observe(
        inputs.embedding[1:2, 4:], inputs.actions[1:2, 4:], inputs.is_first[1:2, 4:], noise=inputs.noise[1:2, 4:]
    )
    assert same(whole.states.map(lambda part: part[1:2, 4:]), rest.states)
    assert torch.allclose(whole.prior.mean[1:2, 4:], rest.prior.mean, atol=1e-6)
    inputs.is_first[1, 4] = False
    assert not same(inputs.observe(dynamics).states.map(lambda part: part[1:2, 4:]), rest.states)


def test_the_first_state_is_inferred_from_its_observation() -> None:
    """The posterior at t = 0 changes with the first observation."""
    dynamics, inputs = make(), Inputs()
    before = inputs.observe(dynamics).posterior.mean[:, 0]
    inputs.embedding[:, 0] += 1.0
    assert not torch.allclose(before, inputs.observe(dynamics).posterior.mean[:, 0])


@pytest.mark.parametrize("changes", KINDS)
def test_the_prior_knows_nothing_of_the_observation_it_expects(changes: dict[str, object]) -> None:
    """The observation at t changes the posterior at t and the prior after it, but no prior up to t."""
    dynamics, inputs, t = make(**changes), Inputs(), 3
    before = inputs.observe(dynamics)
    inputs.embedding[:, t] += 1.0
    after = inputs.observe(dynamics)
    assert torch.equal(before.prior.mean[:, : t + 1], after.prior.mean[:, : t + 1])
    assert torch.equal(before.prior.std[:, : t + 1], after.prior.std[:, : t + 1])
    assert torch.equal(before.posterior.mean[:, :t], after.posterior.mean[:, :t])
    assert not torch.allclose(before.posterior.mean[:, t], after.posterior.mean[:, t])
    assert not torch.allclose(before.prior.mean[0, t + 1], after.prior.mean[0, t + 1])


def test_the_action_that_led_to_a_step_changes_it() -> None:
    """The previous action at t changes the states from t on, and none before."""
    dynamics, inputs, t = make(), Inputs(), 2
    before = inputs.observe(dynamics)
    inputs.actions[:, t] += 1.0
    after = inputs.observe(dynamics)
    assert torch.equal(before.states.stochastic[:, :t], after.states.stochastic[:, :t])
    assert not torch.allclose(before.prior.mean[:, t], after.prior.mean[:, t])


@pytest.mark.parametrize("sees", [True, False])
def test_the_prior_reads_the_action_only_if_told(sees: bool) -> None:
    """With `prior_sees_action` the prior depends on the action at equal h; without it does not."""
    dynamics = make(prior_sees_action=sees)
    h = torch.randn(2, D)
    one, other = dynamics.prior(h, torch.zeros(2, A)), dynamics.prior(h, torch.ones(2, A))
    assert torch.equal(one.mean, other.mean) != sees


@pytest.mark.parametrize("changes", KINDS)
def test_single_steps_chained_equal_a_whole_sequence(changes: dict[str, object]) -> None:
    """What an actor computes step by step is what the learner computes at once."""
    dynamics, inputs = make(**changes), Inputs()
    whole = inputs.observe(dynamics)
    state = dynamics.initial(B)
    for t in range(T):
        state = dynamics.observe_step(
            state, inputs.actions[:, t], inputs.embedding[:, t], inputs.is_first[:, t], inputs.noise[:, t]
        )
        assert same(state, whole.states.map(lambda part, t=t: part[:, t]))


def test_a_sequence_goes_on_from_a_given_state() -> None:
    """Two halves, the second from the first's last state, equal the whole."""
    dynamics, inputs = make(gru_layers=2), Inputs()
    whole = inputs.observe(dynamics)
    first, second = slice(0, 3), slice(3, T)
    state = None
    for part in (first, second):
        rollout = dynamics.observe(
            inputs.embedding[:, part], inputs.actions[:, part], inputs.is_first[:, part], state, inputs.noise[:, part]
        )
        assert same(rollout.states, whole.states.map(lambda x, part=part: x[:, part]))
        state = rollout.states.map(lambda x: x[:, -1])


def test_stacked_cells_equal_torchs_gru() -> None:
    """Each layer is fed by the one below: three cells give what `torch.nn.GRU` of three layers gives."""
    torch.manual_seed(0)
    gru = nn.GRU(6, D, num_layers=3, batch_first=True)
    cells = [GRUCell(6 if layer == 0 else D, D) for layer in range(3)]
    for layer, cell in enumerate(cells):
        for ours, theirs in ((cell.input, "ih"), (cell.carried, "hh")):
            ours.weight.data = getattr(gru, f"weight_{theirs}_l{layer}").data
            ours.bias.data = getattr(gru, f"bias_{theirs}_l{layer}").data
    x, h = torch.randn(B, T, 6), torch.randn(3, B, D)
    expected, last = gru(x, h)
    states, outputs = list(h), []
    for t in range(T):
        fed = x[:, t]
        for layer, cell in enumerate(cells):
            fed = states[layer] = cell(fed, states[layer])
        outputs.append(fed)
    assert torch.allclose(torch.stack(outputs, 1), expected, atol=1e-6)
    assert torch.allclose(torch.stack(states), last, atol=1e-6)


def test_layers_of_the_dynamics_are_fed_by_the_layer_below() -> None:
    """The carried h of the lower layer reaches the upper one, not the other way, and the feature holds the upper."""
    dynamics = make(gru_layers=2)
    state = State(torch.randn(1, 2, D), torch.randn(1, S))
    inputs = (torch.randn(1, A), torch.randn(1, E), torch.tensor([False]), torch.zeros(1, S))
    before = dynamics.observe_step(state, *inputs)
    for changed, expected in ((0, [True, True]), (1, [False, True])):
        layers = state.deterministic.clone()
        layers[:, changed] += 1.0
        after = dynamics.observe_step(State(layers, state.stochastic), *inputs)
        differs = [not torch.equal(before.deterministic[:, i], after.deterministic[:, i]) for i in range(2)]
        assert differs == expected
    assert torch.equal(before.feature[:, :D], before.deterministic[:, 1])


@pytest.mark.parametrize("changes", KINDS)
def test_imagination_follows_the_prior(changes: dict[str, object]) -> None:
    """With the prior's noise replayed through `observe`'s transition, imagined h and z are those of the recurrence."""
    dynamics, inputs, horizon = make(**changes), Inputs(), 4
    start = inputs.observe(dynamics).states.map(lambda part: part[:, 2])
    actions, noise = torch.randn(B, horizon, A), torch.randn(B, horizon, S)
    imagined = dynamics.imagine(start, actions, noise=noise)
    state = start
    for t in range(horizon):
        h = dynamics.observe_step(
            state, actions[:, t], torch.zeros(B, E), torch.zeros(B, dtype=torch.bool)
        ).deterministic
        prior = dynamics.prior(h[:, -1], actions[:, t])
        state = State(h, prior.mean + prior.std * noise[:, t])
        assert same(state, imagined.map(lambda part, t=t: part[:, t]))


def test_imagination_without_sampling_is_the_priors_mean() -> None:
    """With `sample` off nothing is random, and z is what the prior expects."""
    dynamics, inputs = make(), Inputs()
    start, actions = dynamics.initial(B), inputs.actions
    once, twice = (dynamics.imagine(start, actions, sample=False) for _ in range(2))
    assert torch.equal(once.stochastic, twice.stochastic)
    assert torch.allclose(once.stochastic, dynamics.prior(once.deterministic[..., -1, :], actions).mean, atol=1e-6)
    assert not torch.equal(dynamics.imagine(start, actions).stochastic, once.stochastic)


def test_imagining_nothing_gives_no_states() -> None:
    """A horizon of zero is an empty sequence of the usual shape."""
    dynamics = make(gru_layers=2)
    imagined = dynamics.imagine(dynamics.initial(B), torch.zeros(B, 0, A))
    assert imagined.deterministic.shape == (B, 0, 2, D)
    assert imagined.feature.shape == (B, 0, D + S)


def test_the_same_seed_gives_the_same_states() -> None:
    """All randomness comes from torch's global generator."""
    dynamics, inputs = make(), Inputs()
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
    assert Inputs().observe(dynamics).posterior.std.min() >= 0.3


@pytest.mark.parametrize("changes", KINDS)
def test_imagining_with_a_policy_equals_imagining_its_actions(changes: dict[str, object]) -> None:
    """A policy sees the feature of the state it acts in, and its actions lead where the same actions given lead."""
    dynamics, inputs = make(**changes), Inputs()
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
