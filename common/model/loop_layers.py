"""Linear layers in a loop over time, whose weights' gradients are one product over all steps.

Autograd would give each step a product of its own, with only as many rows as the batch has sequences, and add up T
matrices as large as the weights. Here the steps use the weights as constants, and each adds its slot of one tensor
(T, B, …) that holds the bias. In the backward pass the slots' gradients side by side are those of all steps' outputs,
and one product with all steps' inputs gives the weights' gradient.

Shapes: T time, B batch, G blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LoopLinear(nn.Linear):
    """A linear layer that may be used in a loop; see `in_loop`."""

    def __init__(self, width_in: int, width: int, bias: bool = True) -> None:
        super().__init__(width_in, width, bias)
        self._steps: Steps | OneStep | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (…, width)."""
        if self._steps is None:
            return super().forward(x)
        slot, weight = self._steps.next(self, x)
        return torch.addmm(slot, x, weight.t())


class BlockLinear(nn.Module):
    """A linear layer of G blocks, each output block reading its own input block alone.

    Weights are drawn for the whole input, not for a block's share (Dreamer V3), and for the `joint` width where another
    layer reads a part of the input.
    """

    def __init__(self, width_in: int, width: int, blocks: int, joint: int | None = None) -> None:
        super().__init__()
        self._steps: Steps | OneStep | None = None
        self.joint = joint or width_in
        self.weight = nn.Parameter(torch.empty(blocks, width_in // blocks, width // blocks))
        self.bias = nn.Parameter(torch.empty(blocks, width // blocks))
        draw_uniformly(self, self.joint)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, G, width / G) for (B, width_in), in one product for all blocks."""
        blocks = x.unflatten(-1, self.weight.shape[:2]).transpose(0, 1)  # (G, B, width_in / G)
        if self._steps is None:
            return torch.baddbmm(self.bias[:, None], blocks, self.weight).transpose(0, 1)
        slot, weight = self._steps.next(self, x)
        return torch.baddbmm(slot.transpose(0, 1), blocks, weight).transpose(0, 1)


class PartialLinear(LoopLinear):
    """A linear layer that reads a part of a wider input; its weights are drawn for the `joint` width of the whole."""

    def __init__(self, width_in: int, width: int, joint: int, bias: bool) -> None:
        self.joint = joint  # torch's constructor calls reset_parameters, which needs it
        super().__init__(width_in, width, bias)

    def reset_parameters(self) -> None:
        """Draw weights and bias as torch does for a layer of the joint width."""
        draw_uniformly(self, self.joint)


class JointLinear(nn.Module):
    """One linear layer over two inputs side by side, in two parts that can be computed at different times.

    `first(x) + second(y)` is what a single linear layer over [x, y] gives: the first part holds the bias, and weights
    are drawn for the width of both. In a loop over time the second part, whose input is known before, is computed for
    all steps at once. A second input of width 0 is left out.
    """

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__()
        self.first = PartialLinear(first, width, first + second, bias=True)
        self.second = PartialLinear(second, width, first + second, bias=False) if second else None

    def second_part(self, second: Tensor) -> Tensor:
        """Return the second input's part of the output (…, width)."""
        assert self.second is not None
        part: Tensor = self.second(second)
        return part

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the layer's output (…, width) for both inputs."""
        return self.first(first) + self.second(second) if self.second is not None else self.first(first)


Layer = LoopLinear | BlockLinear
"""A layer that may be used in a loop."""


class Steps:
    """The steps of one layer in one loop of `length` T.

    Attributes:
        inputs: of the steps so far, (B, width_in) each; complete before the backward pass.
        slots: one for each step, (B, *width).
        weight: as a constant, in the type of the layer's products.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self.inputs: list[Tensor] = []
        self.slots: tuple[Tensor, ...] = ()
        self.weight: Tensor | None = None

    def begin(self, layer: Layer, batch: int) -> None:
        """Make the slots for steps of `batch` rows."""
        kind = layer.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype
        self.weight = layer.weight.detach().to(dtype)
        slots = _Slots.apply(layer.weight, layer.bias, self.inputs, (self._length, batch), dtype)
        self.slots = slots.unbind(0)

    def next(self, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slot of the next step, which reads x (B, width_in), and the weights as a constant."""
        if self.weight is None:
            self.begin(layer, len(x))
        assert self.weight is not None
        slot = self.slots[len(self.inputs)]
        self.inputs.append(x.detach())
        return slot, self.weight


class OneStep:
    """One step of one layer, within a compiled function that is given slot and weights, and returns the input."""

    def __init__(self, slot: Tensor, weight: Tensor) -> None:
        self._slot, self._weight = slot, weight
        self._input: Tensor | None = None

    @property
    def taken(self) -> Tensor:
        """What the layer read, (B, width_in), in the weights' type."""
        assert self._input is not None, "the layer was not called"
        return self._input

    def next(self, _: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Steps.next`; to be called once."""
        assert self._input is None, "a loop layer is called once in a step"
        # A copy in any case: Inductor cannot return a detached view of another result (torch 2.13).
        self._input = x.detach().to(self._weight.dtype, copy=True)
        return self._slot, self._weight


def loop_layers(network: nn.Module) -> list[Layer]:
    """Return the network's loop layers, always in the same order."""
    return [layer for layer in network.modules() if isinstance(layer, LoopLinear | BlockLinear)]


@contextmanager
def in_loop(network: nn.Module, length: int) -> Iterator[None]:
    """Within, each of the network's loop layers is called exactly `length` times, or not at all.

    Nothing changes where no gradient is needed.
    """
    layers = loop_layers(network)
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled() or layers[0].weight.is_meta
    if plain or not all(layer.weight.requires_grad for layer in layers):
        yield
        return
    for layer in layers:
        layer._steps = Steps(length)
    try:
        yield
    finally:
        for layer in layers:
            layer._steps = None


class _Slots(torch.autograd.Function):
    """The bias once for each step; its gradient is that of all steps' outputs."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, inputs: list[Tensor], sizes: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        """Return (T, B, *width); `inputs` holds all steps' x (B, width_in) by the time of the backward pass."""
        ctx.inputs, ctx.weight_shape, ctx.dtype, ctx.has_bias = inputs, weight.shape, weight.dtype, bias is not None
        if bias is None:
            return weight.new_zeros(1, dtype=dtype).expand(*sizes, weight.shape[0])
        return bias.to(dtype, copy=True).expand(*sizes, *bias.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        gradient = gradients[0].flatten(0, 1)  # (T·B, width) or (T·B, G, width / G)
        inputs = torch.cat(ctx.inputs).to(gradient.dtype)  # (T·B, width_in)
        if gradient.dim() == 2:
            to_weight = gradient.t() @ inputs
        else:
            blocks = inputs.unflatten(-1, ctx.weight_shape[:2])  # (T·B, G, width_in / G)
            to_weight = torch.bmm(blocks.permute(1, 2, 0), gradient.transpose(0, 1))
        to_bias = gradient.sum(0, dtype=ctx.dtype) if ctx.has_bias else None
        return to_weight.to(ctx.dtype), to_bias, None, None, None


def draw_uniformly(layer: nn.Module, fan_in: int) -> None:
    """Draw a layer's weights and bias as torch does for a linear layer of `fan_in` inputs."""
    bound = 1.0 / math.sqrt(fan_in)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound)
