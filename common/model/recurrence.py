"""The RSSM's recurrences: the next h from the last h, z and the action.

Shapes: B batch, D deterministic, S stochastic, U hidden, G blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamfleet.common.model.layers import GRUCell, NormGRUCell, after, gated
from dreamfleet.common.model.loop_layers import BlockLinear, JointLinear, Layer, LoopLinear, PartialLinear, loop_layers
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import full_precision

Layers = tuple[Tensor, ...]
"""h of each GRU layer, (B, D), bottom first."""


class StackedGRU(nn.Module):
    """x = act(W [z, a]), then one or more GRU cells, each reading the one below (PlaNet, Dreamer V1 and V2)."""

    def __init__(self, stochastic: int, action: int, settings: ModelSettings) -> None:
        super().__init__()
        hidden, width = settings.hidden, settings.deterministic
        cell = NormGRUCell if settings.recurrence == "norm_gru" else GRUCell
        self.transition = JointLinear(stochastic, action, hidden)
        self.activation = after(hidden, settings)
        self.cells = nn.ModuleList(cell(width if layer else hidden, width) for layer in range(settings.gru_layers))

    @property
    def step_layers(self) -> list[Layer]:
        """The loop layers that `advance` calls, each once."""
        return [self.transition.first, *loop_layers(self.cells)]

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

    @property
    def step_layers(self) -> list[Layer]:
        """The loop layers that `advance` calls, each once."""
        return [self.from_state, self.from_latent, self.hidden_blocks, self.hidden_known, self.gates]

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
