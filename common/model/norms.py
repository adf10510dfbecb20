"""Norms over the last axis, in float32 whatever the networks compute in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.common.model.precision import full_precision

RMS_EPSILON = 1e-4
"""Added to the mean square (Dreamer V3)."""


class RMSNorm(nn.Module):
    """Scale numbers to a mean square of 1: `x·rsqrt(mean(x²) + 1e-4)·weight` over the last axis, in float32.

    Args:
        width: of the last axis.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled numbers (…, width), float32."""
        x = full_precision(x)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            scaled: Tensor = _QuickRMSNorm.apply(x, self.weight)
            return scaled
        return F.rms_norm(x, self.weight.shape, self.weight, RMS_EPSILON)


class LayerNorm(nn.LayerNorm):
    """Shift and scale numbers to a mean of 0 and a variance of 1 over the last axis, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised numbers (…, width), float32."""
        return super().forward(full_precision(x))


class _QuickRMSNorm(torch.autograd.Function):
    """RMS norm on a CPU, where torch has it in single operations, each a pass over memory: these are half as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return the scaled numbers."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(RMS_EPSILON).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and weight.

        Layer norm's own backward, told that the mean is 0, gives both but for the mean's own gradient, which it takes
        from that of x and which is given back here.
        """
        x, weight, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, list(weight.shape), torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        taken = (gradient @ weight)[..., None].div_(x.shape[-1]).mul_(scale)
        return to_x.add_(taken), to_weight
