"""The recurrent state-space model (PlaNet, arXiv 1811.04551, section 3): how states follow each other.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic.

One step, in the order data passes:

    h_t = recurrence(h_{t-1}, z_{t-1}, a_{t-1})     all zero where an episode begins; see `common/model/recurrence.py`
    prior     p(z_t | h_t)                          from h_t (and a_{t-1} where `prior_sees_action`): what is expected
    posterior q(z_t | h_t, e_t)                     from h_t and the embedding: what is believed once o_t has been seen

Only the recurrence and the posterior stand in the loop over time; what does not wait for them is computed for all steps
at once. What z is, real numbers or one-hots, is said in `common/model/latents.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.model.distributions import StateDistribution
from dreamfleet.common.model.latents import make_latents
from dreamfleet.common.model.layers import JointLinear, after, dense_stack, initialise
from dreamfleet.common.model.loop_layers import LoopLinear, in_loop
from dreamfleet.common.model.recurrence import Layers, make_recurrence, second_part
from dreamfleet.common.settings.model import ModelSettings


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
    """Sampled posterior states (B, T, …), and z's distributions (B, T, …) before and after seeing each observation."""

    states: State
    prior: StateDistribution
    posterior: StateDistribution


class Dynamics(nn.Module):
    """Recurrence, prior and posterior.

    Args:
        action: A.
        embedding: E.
        settings: the model's.
    """

    def __init__(self, action: int, embedding: int, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden = settings.deterministic, settings.hidden
        self._shape = (settings.gru_layers, width)
        self.latents = make_latents(settings)
        self.recurrence = make_recurrence(self.latents.width, action, settings)
        self.prior_hidden = JointLinear(width, action if settings.prior_sees_action else 0, hidden)
        self.prior_activation = after(hidden, settings)
        self.prior_deeper = dense_stack(hidden, hidden, settings.prior_layers - 1, settings)
        self.prior_output = nn.Linear(hidden, self.latents.parameters)
        self.posterior_hidden = JointLinear(width, embedding, hidden)
        self.posterior_activation = after(hidden, settings)
        self.posterior_output = LoopLinear(hidden, self.latents.parameters)
        initialise(self, settings.initialisation)

    def initial(self, batch: int) -> State:
        """Return the state before anything has been seen: zeros, for `batch` sequences."""
        some = self.prior_output.weight
        return State(some.new_zeros(batch, *self._shape), some.new_zeros(batch, self.latents.width))

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
            noise: (B, T, …) with which the posterior is sampled (`Latents.draw_noise`); drawn if None.
        """
        batch, length = is_first.shape
        state = self.initial(batch) if state is None else state
        noise = self.latents.draw_noise(batch, length, device=embedding.device) if noise is None else noise
        first = is_first.bool()[..., None]  # (B, T, 1)
        actions = previous_actions.masked_fill(first, 0.0)
        # Unbound once, not indexed step by step: the gradient is then one stack instead of T padded sums.
        prepared = self.recurrence.prepare(actions).unbind(1)  # T × (B, …)
        from_embedding = second_part(self.posterior_hidden, embedding).unbind(1)  # T × (B, hidden)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        with in_loop(self, length):
            for inputs in zip(first.unbind(1), prepared, from_embedding, noise.unbind(1), strict=True):
                layers, z, raw = self._observe_once(layers, z, *inputs)
                steps.append((layers, z, raw))
        states = _stack_states([step[0] for step in steps], [step[1] for step in steps])
        posterior = self.latents.distribution(torch.stack([step[2] for step in steps], 1))
        prior = self.prior(states.deterministic[..., -1, :], actions)
        return Rollout(states, prior, posterior)

    def observe_step(
        self,
        state: State,
        previous_action: Tensor,
        embedding: Tensor,
        is_first: Tensor,
        sample: bool = True,
        noise: Tensor | None = None,
    ) -> State:
        """Return the state after one more observation: `observe` for a single step, as acting needs it.

        Args:
            state: of the step before.
            previous_action: (B, A).
            embedding: (B, E).
            is_first: (B,).
            sample: whether z is sampled from the posterior; else it is the posterior's mode.
            noise: (B, …) for the sampling; drawn if None.
        """
        first = is_first.bool()[:, None]  # (B, 1)
        prepared = self.recurrence.prepare(previous_action.masked_fill(first, 0.0))
        from_embedding = second_part(self.posterior_hidden, embedding)
        if sample and noise is None:
            noise = self.latents.draw_noise(len(is_first), device=embedding.device)
        layers, z, _ = self._observe_once(
            state.deterministic.unbind(-2),
            state.stochastic,
            first,
            prepared,
            from_embedding,
            noise if sample else None,
        )
        return State(torch.stack(layers, -2), z)

    def imagine(self, state: State, actions: Tensor, sample: bool = True, noise: Tensor | None = None) -> State:
        """Return the states (B, H, …) that a sequence of actions leads to, none of them observed.

        Args:
            state: (B, …), where it starts; not part of the result.
            actions: (B, H, A); the first is the action taken in `state`. H may be 0.
            sample: whether z is sampled from the prior; else it is the prior's mode.
            noise: (B, H, …) for the sampling; drawn if None.
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
        return _stack_states([step[0] for step in steps], [step[1] for step in steps])

    def imagine_with(
        self, state: State, policy: Callable[[Tensor], Tensor], horizon: int, noise: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Return the states (B, H, …) that a policy leads to and its actions (B, H, A), none of it observed.

        Args:
            state: (B, …), where it starts; not part of the result.
            policy: gives actions (B, A) for features (B, D + S); the first is asked for in `state`.
            horizon: H, at least 1.
            noise: (B, H, …) with which the prior is sampled; drawn if None.
        """
        if noise is None:
            noise = self.latents.draw_noise(len(state.stochastic), horizon, device=state.stochastic.device)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        for step_noise in noise.unbind(1):
            action = policy(torch.cat([layers[-1], z], dim=-1))
            layers = self.recurrence.advance(layers, z, self.recurrence.prepare(action))
            z = _draw(self.prior(layers[-1], action), step_noise)
            steps.append((layers, z, action))
        states = _stack_states([step[0] for step in steps], [step[1] for step in steps])
        return states, torch.stack([step[2] for step in steps], 1)

    def prior(self, deterministic: Tensor, previous_actions: Tensor) -> StateDistribution:
        """Return p(z | h) for the top layer's h (…, D) and the actions (…, A) that led there."""
        hidden = self.prior_activation(self.prior_hidden(deterministic, previous_actions))
        return self.latents.distribution(self.prior_output(self.prior_deeper(hidden)))

    def _observe_once(
        self,
        layers: Layers,
        z: Tensor,
        first: Tensor,
        prepared: Tensor,
        from_embedding: Tensor,
        noise: Tensor | None,
    ) -> tuple[Layers, Tensor, Tensor]:
        """Return the next h of all layers, z, and the numbers that describe z's distribution."""
        layers = tuple(layer.masked_fill(first, 0.0) for layer in layers)
        layers = self.recurrence.advance(layers, z.masked_fill(first, 0.0), prepared)
        hidden = self.posterior_activation(self.posterior_hidden.first(layers[-1]) + from_embedding)
        raw = self.posterior_output(hidden)
        return layers, _draw(self.latents.distribution(raw), noise), raw


def _draw(distribution: StateDistribution, noise: Tensor | None) -> Tensor:
    """Return a sample made of the noise, or the mode without any."""
    return distribution.mode if noise is None else distribution.sample(noise)


def _stack_states(layers: Sequence[Layers], stochastic: Sequence[Tensor]) -> State:
    over_time = [torch.stack(layer, 1) for layer in zip(*layers, strict=True)]  # L × (B, T, D)
    return State(torch.stack(over_time, -2), torch.stack(list(stochastic), 1))
