"""The recurrent state-space model (PlaNet, arXiv 1811.04551, section 3): how states follow each other.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic, U hidden,
V categorical variables, C classes, G blocks.

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
from dreamfleet.common.model.layers import GRUCell, NormGRUCell, after, dense_stack, gated, initialise
from dreamfleet.common.model.loop_layers import BlockLinear, JointLinear, LoopLinear, PartialLinear, in_loop
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import full_precision

Layers = tuple[Tensor, ...]
"""h of each GRU layer, (B, D), bottom first."""


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


class StackedGRU(nn.Module):
    """x = act(W [z, a]), then one or more GRU cells, each reading the one below (PlaNet, Dreamer V1 and V2)."""

    def __init__(self, stochastic: int, action: int, settings: ModelSettings) -> None:
        super().__init__()
        hidden, width = settings.hidden, settings.deterministic
        cell = NormGRUCell if settings.recurrence == "norm_gru" else GRUCell
        self.transition = JointLinear(stochastic, action, hidden)
        self.activation = after(hidden, settings)
        self.cells = nn.ModuleList(cell(width if layer else hidden, width) for layer in range(settings.gru_layers))

    def prepare(self, actions: Tensor) -> Tensor:
        """Return the actions' part of x before the activation, W_a a (…, U)."""
        return self.transition.second_part(actions)

    def advance(self, layers: Layers, z: Tensor, prepared: Tensor) -> Layers:
        """Return the next h of all layers from the last h, z (B, S) and what `prepare` gave for this step."""
        x = self.activation(self.transition.first(z) + prepared)  # (B, U)
        advanced = []
        for cell, layer in zip(self.cells, layers, strict=True):
            x = cell(x, layer)  # (B, D)
            advanced.append(x)
        return tuple(advanced)


class BlockGRU(nn.Module):
    """Dreamer V3's cell: each of G blocks of h reads itself and projections of all of z, a and h.

    With x0, x1, x2 = act(norm(W h)), act(norm(W z)), act(norm(W a)), each of width U:

        y = act(norm(block-linear [h's block, x0, x1, x2]))      the norm is over all of D
        reset, candidate, update = block-linear y                 split within each block
        h' = u·tanh(σ(reset)·candidate) + (1 − u)·h,  u = σ(update − 1)

    The first block-linear reads x0, x1 and x2 in every block: for these it is one dense layer, and x2's part of it is
    known before the loop. Each number of an action beyond ±1 is cut to ±1.
    """

    def __init__(self, stochastic: int, action: int, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden, blocks = settings.deterministic, settings.hidden, settings.blocks
        joint = width + blocks * 3 * hidden  # what a block-linear over all inputs of all blocks would read
        self._blocks = blocks
        self.from_state = LoopLinear(width, hidden)
        self.from_latent = LoopLinear(stochastic, hidden)
        self.from_action = nn.Linear(action, hidden)
        self.state_activation = after(hidden, settings)
        self.latent_activation = after(hidden, settings)
        self.action_activation = after(hidden, settings)
        self.hidden_blocks = BlockLinear(width, width, blocks, joint)
        self.hidden_known = PartialLinear(2 * hidden, width, joint, bias=False)
        self.hidden_action = PartialLinear(hidden, width, joint, bias=False)
        self.hidden_activation = after(width, settings)
        self.gates = BlockLinear(width, 3 * width, blocks)

    def prepare(self, actions: Tensor) -> Tensor:
        """Return x2's part of y before its norm (…, D)."""
        bounded = actions / actions.detach().abs().clamp(min=1.0)
        return self.hidden_action(self.action_activation(self.from_action(bounded)))

    def advance(self, layers: Layers, z: Tensor, prepared: Tensor) -> Layers:
        """Return the next h, the only layer; see `StackedGRU.advance`."""
        (h,) = layers
        x0 = self.state_activation(self.from_state(h))
        x1 = self.latent_activation(self.from_latent(z))
        y = self.hidden_blocks(h).flatten(-2) + self.hidden_known(torch.cat([x0, x1], dim=-1)) + prepared  # (B, D)
        gates = full_precision(self.gates(self.hidden_activation(y)))  # (B, G, 3·D / G)
        return (gated(gates, h.unflatten(-1, (self._blocks, -1))).flatten(-2),)


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
        batch, length = is_first.shape
        state = self.initial(batch) if state is None else state
        noise = self.latents.draw_noise(batch, length, device=embedding.device) if noise is None else noise
        first = is_first.bool()[..., None]  # (B, T, 1)
        actions = previous_actions.masked_fill(first, 0.0)
        # Unbound once, not indexed step by step: the gradient is then one stack instead of T padded sums.
        prepared = self.recurrence.prepare(actions).unbind(1)  # T × (B, …)
        from_embedding = self.posterior_hidden.second_part(embedding).unbind(1)  # T × (B, U)
        layers, z = state.deterministic.unbind(-2), state.stochastic
        steps: list[tuple[Layers, Tensor, Tensor]] = []
        with in_loop(self, length):
            for inputs in zip(first.unbind(1), prepared, from_embedding, noise.unbind(1), strict=True):
                layers, z, raw = self._observe_once(layers, z, *inputs)
                steps.append((layers, z, raw))
        all_layers, latents, raws = zip(*steps, strict=True)
        states = _stack_states(all_layers, latents)
        prior = self.prior(states.deterministic[..., -1, :], actions)
        return Rollout(states, prior, self.latents.distribution(torch.stack(raws, 1)))

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
        layers, z, _ = self._observe_once(layers, z, first, prepared, from_embedding, noise if sample else None)
        return State(torch.stack(layers, -2), z)

    def _observe_once(
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
        for step_noise in noise.unbind(1):
            action = policy(torch.cat([layers[-1], z], dim=-1))
            layers = self.recurrence.advance(layers, z, self.recurrence.prepare(action))
            z = _draw(self.prior(layers[-1], action), step_noise)
            steps.append((layers, z, action))
        all_layers, latents, actions = zip(*steps, strict=True)
        return _stack_states(all_layers, latents), torch.stack(actions, 1)


def _draw(distribution: StateDistribution, noise: Tensor | None) -> Tensor:
    return distribution.mode if noise is None else distribution.sample(noise)


def _stack_states(layers: Sequence[Layers], stochastic: Sequence[Tensor]) -> State:
    over_time = [torch.stack(layer, 1) for layer in zip(*layers, strict=True)]  # L × (B, T, D)
    return State(torch.stack(over_time, -2), torch.stack(list(stochastic), 1))
