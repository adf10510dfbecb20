"""Adaptive gradient clipping (arXiv 2102.06171), per tensor as in Dreamer V3: no step beyond a tensor's own size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.model.layers import ForkedLinear

Parts = Mapping[Tensor, tuple[int, ...]]
"""For parameters that hold several tensors: how many rows each of these has."""


class Clipped(NamedTuple):
    """What clipping found: scalars on the device.

    Attributes:
        norm: of all gradients together, before clipping.
        share: of the tensors that were scaled down.
    """

    norm: Tensor
    share: Tensor


def find_parts(networks: Iterable[nn.Module]) -> Parts:
    """Return the parameters of the networks that are several tensors in one."""
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, ForkedLinear)]
    return {parameter: layer.widths for layer in layers if len(layer.widths) > 1 for parameter in layer.parameters()}


@torch.no_grad()
def clip_adaptively(
    parameters: Iterable[Tensor], clip: float = 0.3, floor: float = 1e-3, parts: Parts | None = None
) -> Clipped:
    """Scale every tensor's gradient in place so that ‖g‖ ≤ clip·max(floor, ‖w‖), with Euclidean norms.

    Nothing comes back from the device. A gradient that is not finite stays so and shows in the norm.

    Args:
        parameters: on one device, at least one with a gradient; those without are passed over.
        clip: largest size of a gradient beside its tensor's.
        floor: size that a tensor counts as at least: one of zeros could otherwise never leave them.
        parts: which parameters are several tensors, each to be clipped by itself.
    """
    pairs = [pair for parameter in parameters for pair in _tensors(parameter, (parts or {}).get(parameter))]
    weights, gradients = [weight for weight, _ in pairs], [gradient for _, gradient in pairs]
    assert weights, "no parameter has a gradient"
    norms = torch.stack(torch._foreach_norm(gradients))
    limits = clip * torch.stack(torch._foreach_norm(weights)).clamp(min=floor)
    factors = (limits / norms).clamp(max=1.0)  # a norm of 0 gives infinity, which is clamped to 1
    torch._foreach_mul_(gradients, factors.unbind())
    return Clipped(torch.linalg.vector_norm(norms), (factors < 1.0).float().mean())


def _tensors(parameter: Tensor, rows: tuple[int, ...] | None) -> list[tuple[Tensor, Tensor]]:
    """Return a parameter's tensors, each with its gradient; none without a gradient."""
    if parameter.grad is None:
        return []
    if rows is None:
        return [(parameter, parameter.grad)]
    return list(zip(parameter.split(rows), parameter.grad.split(rows), strict=True))
