"""The recurrent state-space model (PlaNet, arXiv 1811.04551, section 3): how states follow each other.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic.

One step, in the order data passes:

    x_t = act(W [z_{t-1}, a_{t-1}])          z, h and a are zero where an episode begins
    h_t = GRU(x_t, h_{t-1})                  several layers: each reads the layer below
    prior     p(z_t | h_t)                   from h_t (and a_{t-1} where `prior_sees_action`): what is expected
    posterior q(z_t | h_t, e_t)              from h_t and the embedding: what is believed once o_t has been seen

Only x, h and the posterior stand in the loop over time; what does not wait for them is computed for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.distributions import Gaussian, state_gaussian
from dreamfleet.common.layers import ACTIVATIONS, GRUCell, JointLinear
from dreamfleet.common.settings import ModelSettings


class State(NamedTuple):
    """The model's state: `deterministic` h of all GRU layers (…, L, D) and `stochastic` z (…, S), float32."""

    deterministic: Tensor
    stochastic: Tensor

    @property
    def feature(self) -> Tensor:
        """What decoder and heads read: the top layer's h beside z, (…, D + S)."""
        return torch.cat([self.deterministic[..., -1, :], self.stochastic], dim=-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Return the state with `function` applied to both parts, such as `lambda part: part[:, t]`."""
        return State(function(self.deterministic), function(self.stochastic))


class Rollout(NamedTuple):
    """Sampled posterior states (B, T, …), and the distributions (B, T, S) before and after seeing each observation."""

    states: State
    prior: Gaussian
    posterior: Gaussian


Layers = tuple[Tensor, ...]
"""h of each GRU layer, (B, D), bottom first."""


class Dynamics(nn.Module):
    """Transition, prior and posterior.

    Args:
        action: A.
        embedding: E.
        settings: the model's.
    """

    def __init__(self, action: int, embedding: int, settings: ModelSettings) -> None:
        super().__init__()
        self._settings = settings
        width, hidden = settings.deterministic, settings.hidden
        self.activation = ACTIVATIONS[settings.activation]()
        self.transition = JointLinear(settings.stochastic, action, hidden)
        self.cells = nn.ModuleList(GRUCell(width if layer else hidden, width) for layer in range(settings.gru_layers))
        self.prior_hidden = JointLinear(width, action if settings.prior_sees_action else 0, hidden)
        self.prior_output = nn.Linear(hidden, 2 * settings.stochastic)
        self.posterior_hidden = JointLinear(width, embedding, hidden)
        self.posterior_output = nn.Linear(hidden, 2 * settings.stochastic)

    def initial(self, batch: int) -> State:
        """Return the state before anything has been seen: zeros, for `batch` sequences."""
        some = self.prior_output.weight
        layers = some.new_zeros(batch, self._settings.gru_layers, self._settings.deterministic)
        return State(layers, some.new_zeros(batch, self._settings.stochastic))

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
            state: what came before t = 0; zeros if None.
            noise: (B, T, S) of N(0, 1) with which the posterior is sampled; drawn if None.
        """
        batch, length = is_first.shape
        state = self.initial(batch) if state is None else state
        noise = self._draw_noise(embedding, batch, length) if noise is None else noise
        first = is_first.bool()[..., None]  # (B, T, 1)
        actions = previous_actions.masked_fill(first, 0.0)
        # Unbound once, not indexed step by step: the gradient is then one stack instead of T padded sums.
        from_action = self._part(self.transition, actions).unbind(1)  # T × (B, hidden)
        from_embedding = self._part(self.posterior_hidden, embedding).unbind(1)  # T × (B, hidden)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Gaussian]] = []
        for inputs in zip(first.unbind(1), from_action, from_embedding, noise.unbind(1), strict=True):
            layers, z, posterior = self._observe_once(layers, z, *inputs)
            steps.append((layers, z, posterior))
        states = _stack_states([step[0] for step in steps], [step[1] for step in steps])
        posterior = Gaussian(
            torch.stack([step[2].mean for step in steps], 1), torch.stack([step[2].std for step in steps], 1)
        )
        prior = self.prior(states.deterministic[..., -1, :], actions)  # (B, T, S)
        return Rollout(states, prior, posterior)

    def observe_step(
        self,
        state: State,
        previous_action: Tensor,
        embedding: Tensor,
        is_first: Tensor,
        noise: Tensor | None = None,
    ) -> State:
        """Return the state after one more observation: `observe` for a single step, as acting needs it.

        Args:
            state: of the step before.
            previous_action: (B, A).
            embedding: (B, E).
            is_first: (B,).
            noise: (B, S); drawn if None, zeros for the posterior's mean.
        """
        noise = self._draw_noise(embedding, len(is_first)) if noise is None else noise
        first = is_first.bool()[:, None]  # (B, 1)
        from_action = self._part(self.transition, previous_action.masked_fill(first, 0.0))
        from_embedding = self._part(self.posterior_hidden, embedding)
        layers, z, _ = self._observe_once(
            state.deterministic.unbind(-2), state.stochastic, first, from_action, from_embedding, noise
        )
        return State(torch.stack(layers, -2), z)

    def imagine(self, state: State, actions: Tensor, sample: bool = True, noise: Tensor | None = None) -> State:
        """Return the states (B, H, …) that a sequence of actions leads to, none of them observed.

        Args:
            state: (B, …), where it starts; not part of the result.
            actions: (B, H, A); the first is the action taken in `state`. H may be 0.
            sample: whether z is sampled from the prior; else it is the prior's mean.
            noise: (B, H, S) for the sampling; drawn if None.
        """
        batch, horizon = actions.shape[:2]
        if horizon == 0:
            return state.map(lambda part: part[:, None][:, :0])
        if not sample:
            noise = actions.new_zeros(batch, horizon, self._settings.stochastic)
        elif noise is None:
            noise = self._draw_noise(actions, batch, horizon)
        from_action = self._part(self.transition, actions).unbind(1)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor]] = []
        for action, part, step_noise in zip(actions.unbind(1), from_action, noise.unbind(1), strict=True):
            layers = self._advance(layers, z, part)
            z = self.prior(layers[-1], action).sample(step_noise)
            steps.append((layers, z))
        return _stack_states([step[0] for step in steps], [step[1] for step in steps])

    def imagine_with(
        self, state: State, policy: Callable[[Tensor], Tensor], horizon: int, noise: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Return the states (B, H, …) that a policy leads to and its actions (B, H, A), none of it observed.

        Args:
            state: (B, …), where it starts; not part of the result.
            policy: gives actions (B, A) for features (B, D + S); the first is asked for in `state`.
            horizon: H, at least 1.
            noise: (B, H, S) with which the prior is sampled; drawn if None.
        """
        noise = self._draw_noise(state.stochastic, len(state.stochastic), horizon) if noise is None else noise
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        for step_noise in noise.unbind(1):
            action = policy(torch.cat([layers[-1], z], dim=-1))
            layers = self._advance(layers, z, self._part(self.transition, action))
            z = self.prior(layers[-1], action).sample(step_noise)
            steps.append((layers, z, action))
        states = _stack_states([step[0] for step in steps], [step[1] for step in steps])
        return states, torch.stack([step[2] for step in steps], 1)

    def prior(self, deterministic: Tensor, previous_actions: Tensor) -> Gaussian:
        """Return p(z | h) (…, S) for the top layer's h (…, D) and the actions (…, A) that led there."""
        hidden = self.activation(self.prior_hidden(deterministic, previous_actions))
        return self._gaussian(self.prior_output(hidden))

    def _observe_once(
        self, layers: Layers, z: Tensor, first: Tensor, from_action: Tensor, from_embedding: Tensor, noise: Tensor
    ) -> tuple[Layers, Tensor, Gaussian]:
        layers = tuple(layer.masked_fill(first, 0.0) for layer in layers)
        layers = self._advance(layers, z.masked_fill(first, 0.0), from_action)
        hidden = self.activation(self.posterior_hidden.first(layers[-1]) + from_embedding)
        posterior = self._gaussian(self.posterior_output(hidden))
        return layers, posterior.sample(noise), posterior

    def _advance(self, layers: Layers, z: Tensor, from_action: Tensor) -> Layers:
        x = self.activation(self.transition.first(z) + from_action)  # (B, hidden)
        risen = []
        for cell, layer in zip(self.cells, layers, strict=True):
            x = cell(x, layer)  # (B, D)
            risen.append(x)
        return tuple(risen)

    def _gaussian(self, raw: Tensor) -> Gaussian:
        return state_gaussian(raw, self._settings.std, self._settings.min_std)

    def _draw_noise(self, like: Tensor, *leading: int) -> Tensor:
        return torch.randn(*leading, self._settings.stochastic, device=like.device)

    @staticmethod
    def _part(layer: JointLinear, known: Tensor) -> Tensor:
        assert layer.second is not None
        part: Tensor = layer.second(known)
        return part


def _stack_states(layers: Sequence[Layers], stochastic: Sequence[Tensor]) -> State:
    over_time = [torch.stack(layer, 1) for layer in zip(*layers, strict=True)]  # L × (B, T, D)
    return State(torch.stack(over_time, -2), torch.stack(list(stochastic), 1))
