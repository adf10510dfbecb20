"""Layers of K members that are computed at once, each with weights of its own.

Shapes: K members, N rows.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.common.model.layers import RMS_EPSILON, TRUNCATION_GAIN, Norm
from dreamfleet.common.torch_state import full_precision


class MemberLinear(nn.Module):
    """K linear layers, each with weights of its own that are drawn by themselves.

    Attributes:
        widths: one row for each member, by which adaptive clipping takes them apart.
    """

    def __init__(
        self, members: int, width_in: int, width: int, initialisation: Literal["uniform", "truncated_normal"]
    ) -> None:
        super().__init__()
        self.widths = (1,) * members
        self.weight = nn.Parameter(torch.empty(members, width_in, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))
        bound = 1.0 / math.sqrt(width_in)
        if initialisation == "uniform":
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)
        else:
            spread = TRUNCATION_GAIN * bound
            nn.init.trunc_normal_(self.weight, std=spread, a=-2 * spread, b=2 * spread)

    def forward(self, x: Tensor) -> Tensor:
        """Return (K, N, width) for the same (N, width_in) for all members, or for one of each (K, N, width_in)."""
        return torch.matmul(x, self.weight) + self.bias


class MemberNorm(nn.Module):
    """A norm over the last axis, with a scale (and a layer norm's shift) of each member's own."""

    def __init__(self, members: int, width: int, norm: Norm) -> None:
        super().__init__()
        self._norm = norm
        self.widths = (1,) * members
        self.weight = nn.Parameter(torch.ones(members, 1, width)) if norm != "none" else None
        self.bias = nn.Parameter(torch.zeros(members, 1, width)) if norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (K, N, width), float32."""
        x = full_precision(x)
        if self.weight is None:
            return x
        if self.bias is None:
            return F.rms_norm(x, x.shape[-1:], eps=RMS_EPSILON) * self.weight
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)
