"""Small layers that several networks share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU}
"""Activations of the dense layers by the name they have in the settings."""


def dense_stack(width_in: int, units: int, layers: int, activation: Literal["relu", "elu"]) -> nn.Sequential:
    """Return `layers` linear layers of `units`, each followed by the activation: (…, width_in) -> (…, units)."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(units if layer else width_in, units), ACTIVATIONS[activation]()]
    return nn.Sequential(*modules)


class JointLinear(nn.Module):
    """One linear layer over two inputs side by side, in two parts that can be computed at different times.

    `first(x) + second(y)` is what a single linear layer over [x, y] gives: one bias, and weights drawn for the width of
    both. In a recurrence the part whose input is known beforehand is computed for all steps at once.

    Args:
        first: width of the first input, whose part holds the bias.
        second: width of the second input; 0 leaves it out.
        width: of the output.
    """

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(first, width)
        self.second = nn.Linear(second, width, bias=False) if second else None
        bound = 1.0 / math.sqrt(first + second)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the layer's output (…, width) for both inputs."""
        return self.first(first) + self.second(second) if self.second is not None else self.first(first)


class GRUCell(nn.Module):
    """A gated recurrent unit with torch's formula and parameters, whose carried state stays float32 under autocast.

    `r = σ(W_r x + V_r h)`, `u = σ(W_u x + V_u h)`, `n = tanh(W_n x + r·(V_n h))`, `h' = (1 − u)·n + u·h`, biases left
    out here. The reset gate acts after the matrix product, as in cuDNN; PlaNet's and V1's releases apply it before.

    Args:
        width_in: width of x.
        width: width of h.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width_in, 3 * width)
        self.carried = nn.Linear(width, 3 * width)
        self._gates = (2 * width, width)
        bound = 1.0 / math.sqrt(width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return h' (B, width), float32, for x (B, width_in) and h (B, width)."""
        from_input, candidate_input = self.input(x).float().split(self._gates, dim=-1)
        from_carried, candidate_carried = self.carried(h).float().split(self._gates, dim=-1)
        reset, update = torch.sigmoid(from_input + from_carried).chunk(2, dim=-1)
        candidate = torch.tanh(torch.addcmul(candidate_input, reset, candidate_carried))
        return torch.lerp(candidate, h, update)
