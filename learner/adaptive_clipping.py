"""Adaptive gradient clipping (arXiv 2102.06171), per tensor as in Dreamer V3: no step beyond a tensor's own size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Clipped(NamedTuple):
    """What clipping found: scalars on the device.

    Attributes:
        norm: of all gradients together, before clipping.
        share: of the tensors that were scaled down.
    """

    norm: Tensor
    share: Tensor


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], clip: float = 0.3, floor: float = 1e-3) -> Clipped:
    """Scale every tensor's gradient in place so that ‖g‖ ≤ clip·max(floor, ‖w‖), with Euclidean norms.

    Nothing comes back from the device. A gradient that is not finite stays so and shows in the norm.

    Args:
        parameters: on one device, at least one with a gradient; those without are passed over.
        clip: largest size of a gradient beside its tensor's.
        floor: size that a tensor counts as at least: one of zeros could otherwise never leave them.
    """
    weights = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    assert weights, "no parameter has a gradient"
    norms = torch.stack(torch._foreach_norm(gradients))
    limits = clip * torch.stack(torch._foreach_norm(weights)).clamp(min=floor)
    factors = (limits / norms).clamp(max=1.0)  # a norm of 0 gives infinity, which is clamped to 1
    torch._foreach_mul_(gradients, factors.unbind())
    return Clipped(torch.linalg.vector_norm(norms), (factors < 1.0).float().mean())
