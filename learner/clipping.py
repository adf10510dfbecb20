"""Gradients as one vector, and their clipping: by the norm of a group, or each tensor's by its own size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.model.layers import ForkedLinear
from dreamfleet.common.model.members import MemberLinear, MemberNorm

Parts = Mapping[Tensor, tuple[int, ...]]
"""For parameters that hold several tensors: how many rows each of these has."""


class ParameterGroup:
    """Parameters that share a learning rate, and are clipped together where clipping is by their norm.

    Attributes:
        metric: name of their gradient's norm among the metrics.
        parameters: those of the network that are trained.
        learning_rate: after the warm-up.
        clip: greatest norm of their gradient.

    Args:
        without: part of the network whose parameters are another group's.
    """

    def __init__(
        self, metric: str, network: nn.Module, learning_rate: float, clip: float, without: nn.Module | None = None
    ) -> None:
        self.metric = metric
        others = {id(parameter) for parameter in without.parameters()} if without is not None else set()
        trained = (parameter for parameter in network.parameters() if parameter.requires_grad)
        self.parameters = [parameter for parameter in trained if id(parameter) not in others]
        self.learning_rate = learning_rate
        self.clip = clip


class Gradients:
    """All gradients of some parameters as one vector (N,), of which each parameter's gradient becomes a view.

    What is done to all of them is then one kernel. A view has the strides of its parameter, which fused optimisers rely
    on. Parameters without a gradient are passed over.

    Attributes:
        parameters: those that have one.
        views: of the vector, one for each of them.
        vector: (N,).
        message: (N + extra,): the vector, and room behind it for what several ranks tell each other with it.
        norms: of each tensor before it was clipped by itself, None if none was.
    """

    def __init__(self, parameters: Iterable[Tensor], extra: int = 0) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.grad is not None]
        assert self.parameters, "no parameter has a gradient"
        found = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norms: Tensor | None = None
        size = sum(gradient.numel() for gradient in found)
        self.message = found[0].new_empty(size + extra)
        self.vector = self.message[:size]
        parts = self.vector.split([gradient.numel() for gradient in found])
        self.views = [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, self.parameters, strict=True)]
        torch._foreach_copy_(self.views, found)
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view


class Clipped(NamedTuple):
    """What clipping found, as scalars on the device.

    Attributes:
        norm: of all gradients together, before clipping.
        share: of the tensors that were scaled down.
    """

    norm: Tensor
    share: Tensor


def find_parts(networks: Iterable[nn.Module]) -> Parts:
    """Return the parameters of the networks that are several tensors in one."""
    kinds = ForkedLinear | MemberLinear | MemberNorm
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, kinds)]
    return {parameter: layer.widths for layer in layers if len(layer.widths) > 1 for parameter in layer.parameters()}


@torch.no_grad()
def clip_by_norm(groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """Scale each group's gradient in place to a norm of at most its `clip`; return the norms before, by metric."""
    norms = {}
    for group in groups:
        own = [parameter.grad for parameter in group.parameters if parameter.grad is not None]
        norms[group.metric] = norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(own)))
        torch._foreach_mul_(own, (group.clip / (norm + 1e-6)).clamp(max=1.0))
    return norms


@torch.no_grad()
def clip_adaptively(
    gradients: Gradients, clip: float = 0.3, floor: float = 1e-3, parts: Parts | None = None
) -> Clipped:
    """Scale every tensor's gradient in place so that ‖g‖ ≤ clip·max(floor, ‖w‖), with Euclidean norms.

    Adaptive gradient clipping (arXiv 2102.06171), per tensor as in Dreamer V3. A gradient that is not finite stays so
    and shows in the norm.

    Args:
        floor: size that a tensor counts as at least: one of zeros could otherwise never leave them.
        parts: which parameters are several tensors, each to be clipped by itself.
    """
    rows = parts or {}
    weights = [part for weight in gradients.parameters for part in _split(weight, rows.get(weight))]
    sizes = [weight.numel() for weight in weights]
    norms = gradients.norms = torch.stack(torch._foreach_norm(gradients.vector.split(sizes)))
    limits = clip * torch.stack(torch._foreach_norm(weights)).clamp(min=floor)
    factors = (limits / norms).clamp(max=1.0)  # a norm of 0 gives infinity, which is clamped to 1
    of_each = [factor.expand(size) for factor, size in zip(factors.unbind(), sizes, strict=True)]
    gradients.vector.mul_(torch.cat(of_each))
    return Clipped(torch.linalg.vector_norm(norms), (factors < 1.0).float().mean())


def _split(weight: Tensor, rows: tuple[int, ...] | None) -> Sequence[Tensor]:
    return (weight,) if rows is None else weight.split(rows)
