"""The recurrent state-space model (PlaNet, arXiv 1811.04551, section 3): how states follow each other.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic, U hidden,
V categorical variables, C classes.

One step, in the order data passes:

    h_t = recurrence(h_{t-1}, z_{t-1}, a_{t-1})     all inputs zero where an episode begins
    prior     p(z_t | h_t)                          from h_t (and a_{t-1} with `prior_sees_action`), before seeing o_t
    posterior q(z_t | h_t, e_t)                     from h_t and the embedding of o_t

Only the recurrence and the posterior are in the loop over time. Everything else is computed for all steps at once:
the actions' part of the recurrence (`prepare`), the embedding's part of the posterior, and the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.model.distributions import StateDistribution, state_gaussian, state_one_hot
from dreamfleet.common.model.layers import after, dense_stack, initialise
from dreamfleet.common.model.loop_layers import JointLinear, Layer, LoopLinear, in_loop
from dreamfleet.common.model.recurrence import BlockGRU, Layers, StackedGRU
from dreamfleet.common.settings.model import ModelSettings


class State(NamedTuple):
    """The model's state: `deterministic` h of all GRU layers (…, L, D) and `stochastic` z (…, S), float32."""

    deterministic: Tensor
    stochastic: Tensor

    @property
    def feature(self) -> Tensor:
        """The input of decoder and heads: the top layer's h beside z, (…, D + S)."""
        return torch.cat([self.deterministic[..., -1, :], self.stochastic], dim=-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Return the state with `function` applied to both parts, such as `lambda part: part[:, t]`."""
        return State(function(self.deterministic), function(self.stochastic))


class Rollout(NamedTuple):
    """Sampled posterior states, and z's distributions before and after seeing each observation, all (B, T, …)."""

    states: State
    prior: StateDistribution
    posterior: StateDistribution


class LoopInputs(NamedTuple):
    """What the loop over observations reads, all (B, T, …): `first` (B, T, 1), and what is known before the loop."""

    first: Tensor
    prepared: Tensor
    from_embedding: Tensor
    noise: Tensor


class Latents:
    """The kind of z: S independent Normals (PlaNet, Dreamer V1), or V one-hots side by side, S = V·C (V2, V3).

    `width` is S, `parameters` is how many numbers the network gives for z's distribution.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._is_gaussian = settings.latent == "gaussian"
        self.width = settings.stochastic * (1 if self._is_gaussian else settings.classes)
        self.parameters = 2 * self.width if self._is_gaussian else self.width

    def distribution(self, raw: Tensor) -> StateDistribution:
        """Return Normals (…, S) for (…, 2·S), or one-hots (…, V, C) for (…, V·C)."""
        if self._is_gaussian:
            return state_gaussian(raw, self._settings.std, self._settings.min_std)
        return state_one_hot(raw, self._settings.classes, self._settings.unimix)

    def draw_noise(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the noise of the distribution's `sample`: (*leading, S) of N(0, 1), or (*leading, V) in [0, 1)."""
        draw = torch.randn if self._is_gaussian else torch.rand
        return draw(*leading, self._settings.stochastic, device=device, generator=generator)


class RSSM(nn.Module):
    """Recurrence, prior and posterior, for actions of width A and embeddings of width E."""

    def __init__(self, action: int, embedding: int, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden = settings.deterministic, settings.hidden
        self._shape = (settings.gru_layers, width)
        self.latents = Latents(settings)
        recurrence = BlockGRU if settings.recurrence == "block_gru" else StackedGRU
        self.recurrence: StackedGRU | BlockGRU = recurrence(self.latents.width, action, settings)
        self.prior_hidden = JointLinear(width, action if settings.prior_sees_action else 0, hidden)
        self.prior_activation = after(hidden, settings)
        self.prior_deeper = dense_stack(hidden, hidden, settings.prior_layers - 1, settings)
        self.prior_output = nn.Linear(hidden, self.latents.parameters)
        self.posterior_hidden = JointLinear(width, embedding, hidden)
        self.posterior_activation = after(hidden, settings)
        self.posterior_output = LoopLinear(hidden, self.latents.parameters)
        initialise(self, settings.initialisation)

    @property
    def step_layers(self) -> list[Layer]:
        """The loop layers that a step of `loop` calls, each once."""
        return [*self.recurrence.step_layers, self.posterior_hidden.first, self.posterior_output]

    def initial(self, batch: int) -> State:
        """Return the state before anything has been seen, all zeros, for `batch` sequences."""
        some = self.prior_output.weight
        return State(some.new_zeros(batch, *self._shape), some.new_zeros(batch, self.latents.width))

    def prior(self, deterministic: Tensor, previous_actions: Tensor) -> StateDistribution:
        """Return p(z | h) for the top layer's h (…, D) and the actions (…, A) that led there."""
        hidden = self.prior_activation(self.prior_hidden(deterministic, previous_actions))
        return self.latents.distribution(self.prior_output(self.prior_deeper(hidden)))

    def observe(
        self,
        embedding: Tensor,
        previous_actions: Tensor,
        is_first: Tensor,
        state: State | None = None,
        noise: Tensor | None = None,
    ) -> Rollout:
        """Return the states inferred from sequences of observations.

        Args:
            embedding: (B, T, E).
            previous_actions: (B, T, A), at t the action that led to observation t.
            is_first: (B, T); where true, state and previous action are zeroed before the transition.
            state: (B, …), before t = 0; zeros if None.
            noise: (B, T, …) with which the posterior is sampled (`draw_noise`); drawn if None.
        """
        inputs, actions = self.before_loop(embedding, previous_actions, is_first, noise)
        states, raw = self.loop(inputs, self.initial(len(is_first)) if state is None else state)
        return self.after_loop(states, raw, actions)

    def before_loop(
        self, embedding: Tensor, previous_actions: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[LoopInputs, Tensor]:
        """Return what the loop reads, and the previous actions with those before an episode zeroed."""
        noise = self.latents.draw_noise(*is_first.shape, device=embedding.device) if noise is None else noise
        first = is_first.bool()[..., None]
        actions = previous_actions.masked_fill(first, 0.0)
        prepared = self.recurrence.prepare(actions)  # (B, T, …)
        return LoopInputs(first, prepared, self.posterior_hidden.second_part(embedding), noise), actions

    def loop(self, inputs: LoopInputs, state: State) -> tuple[State, Tensor]:
        """Return the states (B, T, …) after `state` (B, …), and the network's outputs for their posteriors."""
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        with in_loop(self, inputs.first.shape[1]):
            # Unbound once, not indexed step by step: the gradient is then one stack instead of T padded sums.
            for now in zip(*(part.unbind(1) for part in inputs), strict=True):
                layers, z, raw = self.observe_once(layers, z, *now)
                steps.append((layers, z, raw))
        return stack_steps(steps)

    def after_loop(self, states: State, raw: Tensor, actions: Tensor) -> Rollout:
        """Return states with prior and posterior, from the loop's results and the previous actions (B, T, …)."""
        prior = self.prior(states.deterministic[..., -1, :], actions)
        return Rollout(states, prior, self.latents.distribution(raw))

    def observe_step(
        self,
        state: State,
        previous_action: Tensor,
        embedding: Tensor,
        is_first: Tensor,
        sample: bool = True,
        noise: Tensor | None = None,
    ) -> State:
        """Return the state (B, …) after one more observation, from (B, A), (B, E) and (B,): a step of `observe`.

        z is sampled from the posterior with `noise` (B, …), which is drawn if None; or is its mode without `sample`.
        """
        first = is_first.bool()[:, None]  # (B, 1)
        prepared = self.recurrence.prepare(previous_action.masked_fill(first, 0.0))
        from_embedding = self.posterior_hidden.second_part(embedding)
        if sample and noise is None:
            noise = self.latents.draw_noise(len(is_first), device=embedding.device)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        layers, z, _ = self.observe_once(layers, z, first, prepared, from_embedding, noise if sample else None)
        return State(torch.stack(layers, -2), z)

    def observe_once(
        self, layers: Layers, z: Tensor, first: Tensor, prepared: Tensor, from_embedding: Tensor, noise: Tensor | None
    ) -> tuple[Layers, Tensor, Tensor]:
        """Return the next h of all layers, the next z, and the network's output for z's posterior."""
        layers = tuple(layer.masked_fill(first, 0.0) for layer in layers)
        layers = self.recurrence.advance(layers, z.masked_fill(first, 0.0), prepared)
        hidden = self.posterior_activation(self.posterior_hidden.first(layers[-1]) + from_embedding)
        raw = self.posterior_output(hidden)
        return layers, _draw(self.latents.distribution(raw), noise), raw

    def imagine(self, state: State, actions: Tensor, sample: bool = True, noise: Tensor | None = None) -> State:
        """Return the states (B, H, …) that actions (B, H, A) lead to from `state` (B, …), without observations.

        The first action is taken in `state`, which is not part of the result; H may be 0. z is sampled from the prior
        with `noise` (B, H, …), which is drawn if None; without `sample` it is the prior's mode.
        """
        batch, horizon = actions.shape[:2]
        if horizon == 0:
            return state.map(lambda part: part[:, None][:, :0])
        if sample and noise is None:
            noise = self.latents.draw_noise(batch, horizon, device=actions.device)
        prepared = self.recurrence.prepare(actions).unbind(1)
        noises = noise.unbind(1) if sample and noise is not None else [None] * horizon
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor]] = []
        for action, part, step_noise in zip(actions.unbind(1), prepared, noises, strict=True):
            layers = self.recurrence.advance(layers, z, part)
            z = _draw(self.prior(layers[-1], action), step_noise)
            steps.append((layers, z))
        return _stack_states(*zip(*steps, strict=True))

    def imagine_step(
        self, state: State, action: Tensor, noise: Tensor | None = None
    ) -> tuple[State, StateDistribution]:
        """Return the state (B, …) that an action (B, A) leads to, and its prior: a step of `imagine`.

        z is sampled with `noise` (B, …), or is the prior's mode without.
        """
        layers, z = state.deterministic.unbind(-2), state.stochastic
        layers = self.recurrence.advance(layers, z, self.recurrence.prepare(action))
        prior = self.prior(layers[-1], action)
        return State(torch.stack(layers, -2), _draw(prior, noise)), prior

    def imagine_with(
        self, state: State, policy: Callable[[Tensor], Tensor], horizon: int, noise: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Return the states (B, H, …) that a policy leads to from `state` and its actions (B, H, A), H at least 1.

        The policy gives actions (B, A) for features (B, D + S), the first one in `state`, which is not part of the
        result. z is sampled from the prior with `noise` (B, H, …), which is drawn if None.
        """
        if noise is None:
            noise = self.latents.draw_noise(len(state.stochastic), horizon, device=state.stochastic.device)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        for now in noise.unbind(1):
            layers, z, action = self.imagine_once(layers, z, policy, now)
            steps.append((layers, z, action))
        return stack_steps(steps)

    def imagine_once(
        self, layers: Layers, z: Tensor, policy: Callable[[Tensor], Tensor], noise: Tensor
    ) -> tuple[Layers, Tensor, Tensor]:
        """Return the next h of all layers, the next z, and the policy's action that led there."""
        action = policy(torch.cat([layers[-1], z], dim=-1))
        layers = self.recurrence.advance(layers, z, self.recurrence.prepare(action))
        return layers, _draw(self.prior(layers[-1], action), noise), action


def _draw(distribution: StateDistribution, noise: Tensor | None) -> Tensor:
    return distribution.mode if noise is None else distribution.sample(noise)


def stack_steps(steps: Sequence[tuple[Layers, Tensor, Tensor]]) -> tuple[State, Tensor]:
    """Return the states (B, T, …) of a loop's steps, and the third of what each step gave."""
    layers, stochastic, others = zip(*steps, strict=True)
    return _stack_states(layers, stochastic), torch.stack(others, 1)


def _stack_states(layers: Sequence[Layers], stochastic: Sequence[Tensor]) -> State:
    over_time = [torch.stack(layer, 1) for layer in zip(*layers, strict=True)]  # L × (B, T, D)
    return State(torch.stack(over_time, -2), torch.stack(list(stochastic), 1))
