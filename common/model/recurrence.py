"""The deterministic path: how h goes on from z and the action.

Shapes: B batch, A action, L layers, D deterministic, S stochastic, G blocks, U hidden.

Both kinds work in two halves: `prepare` computes for all steps at once what depends on the actions alone, and `advance`
is what has to stand in the loop over time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dreamfleet.common.model.layers import GRUCell, JointLinear, NormGRUCell, PartialLinear, after, gated
from dreamfleet.common.model.loop_layers import BlockLinear, LoopLinear
from dreamfleet.common.model.precision import full_precision
from dreamfleet.common.settings.model import ModelSettings

Layers = tuple[Tensor, ...]
"""h of each layer, (B, D), bottom first."""


class Recurrence(Protocol):
    """A kind of deterministic path."""

    def prepare(self, actions: Tensor) -> Tensor:
        """Return what the actions (…, A) that lead to the steps contribute, for `advance`."""
        ...

    def advance(self, layers: Layers, z: Tensor, prepared: Tensor) -> Layers:
        """Return the next h of all layers for the last h, z (B, S) and what `prepare` gave for this step."""
        ...


class StackedGRU(nn.Module):
    """x = act(W [z, a]), then one or more GRU cells, each reading the one below (PlaNet, Dreamer V1 and V2).

    Args:
        stochastic: S.
        action: A.
        settings: the model's.
    """

    def __init__(self, stochastic: int, action: int, settings: ModelSettings) -> None:
        super().__init__()
        hidden, width = settings.hidden, settings.deterministic
        cell = NormGRUCell if settings.recurrence == "norm_gru" else GRUCell
        self.transition = JointLinear(stochastic, action, hidden)
        self.activation = after(hidden, settings)
        self.cells = nn.ModuleList(cell(width if layer else hidden, width) for layer in range(settings.gru_layers))

    def prepare(self, actions: Tensor) -> Tensor:
        """Return W_a a (…, U)."""
        return second_part(self.transition, actions)

    def advance(self, layers: Layers, z: Tensor, prepared: Tensor) -> Layers:
        """Return the next h of all layers."""
        x = self.activation(self.transition.first(z) + prepared)  # (B, U)
        risen = []
        for cell, layer in zip(self.cells, layers, strict=True):
            x = cell(x, layer)  # (B, D)
            risen.append(x)
        return tuple(risen)


class BlockGRU(nn.Module):
    """Dreamer V3's cell: G blocks of h that each see themselves and all of z, a and h projected.

    With x0, x1, x2 = act(norm(W h)), act(norm(W z)), act(norm(W a)), each of U:

        y = act(norm(block-linear [h's block, x0, x1, x2]))      the norm over all of D
        reset, candidate, update = block-linear y                 cut up within each block
        h' = u·tanh(σ(reset)·candidate) + (1 − u)·h,  u = σ(update − 1)

    The first block-linear reads x0, x1 and x2 in every block: for these it is one dense layer, of which x2's share is
    known before the loop. Actions beyond ±1 are brought to ±1.

    Args:
        stochastic: S.
        action: A.
        settings: the model's.
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
        """Return what x2 contributes to y before its norm (…, D)."""
        bounded = actions / actions.detach().abs().clamp(min=1.0)
        shared: Tensor = self.hidden_action(self.action_activation(self.from_action(bounded)))
        return shared

    def advance(self, layers: Layers, z: Tensor, prepared: Tensor) -> Layers:
        """Return the next h, the only layer."""
        (h,) = layers
        x0 = self.state_activation(self.from_state(h))
        x1 = self.latent_activation(self.from_latent(z))
        y = self.hidden_blocks(h).flatten(-2) + self.hidden_known(torch.cat([x0, x1], dim=-1)) + prepared  # (B, D)
        gates = full_precision(self.gates(self.hidden_activation(y)))  # (B, G, 3·D / G)
        return (gated(gates, h.unflatten(-1, (self._blocks, -1))).flatten(-2),)


def make_recurrence(stochastic: int, action: int, settings: ModelSettings) -> StackedGRU | BlockGRU:
    """Return the kind of deterministic path that the settings name."""
    kind = BlockGRU if settings.recurrence == "block_gru" else StackedGRU
    return kind(stochastic, action, settings)


def second_part(layer: JointLinear, known: Tensor) -> Tensor:
    """Return what the input that is known beforehand contributes to a joint layer."""
    assert layer.second is not None
    part: Tensor = layer.second(known)
    return part
