"""Layers that several networks share: norms, activations, dense layers, GRU cells, and how weights are drawn.

Norms compute in float32 whatever the networks compute in. Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.common.model.loop_layers import BlockLinear, LoopLinear, draw_uniformly
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import full_precision

Activation = Literal["relu", "elu", "silu"]
Norm = Literal["none", "layer", "rms"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}
"""Activations by the name they have in the settings."""

TRUNCATION_GAIN = 1.1368
"""Factor that restores deviation σ to a normal distribution cut off at ±2σ (Dreamer V3)."""


RMS_EPSILON = 1e-4
"""Added to the mean square (Dreamer V3)."""


class RMSNorm(nn.Module):
    """`x·rsqrt(mean(x²) + 1e-4)·weight` over the last axis: a mean square of 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised numbers (…, width), float32."""
        x = full_precision(x)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            scaled: Tensor = _QuickRMSNorm.apply(x, self.weight)
            return scaled
        return F.rms_norm(x, self.weight.shape, self.weight, RMS_EPSILON)


class LayerNorm(nn.LayerNorm):
    """A mean of 0 and a variance of 1 over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised numbers (…, width), float32."""
        return super().forward(full_precision(x))


class AllRanks(Protocol):
    """What batch norm asks of the learner's ranks, where several share a batch."""

    count: int

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all ranks, with its gradient."""


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with statistics of the whole batch where several ranks share it: those of a part would differ.

    torch's own SyncBatchNorm does not work on a CPU.

    Attributes:
        ranks: that share a batch in training; None or one alone: torch's code.
    """

    ranks: AllRanks | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (N, C, H, W)."""
        if self.ranks is None or self.ranks.count == 1 or not self.training:
            return super().forward(x)
        wide = full_precision(x)
        mean = self.ranks.mean(wide.mean((0, 2, 3)))  # (C,)
        centred = wide - mean[:, None, None]
        variance = self.ranks.mean(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            numbers = self.ranks.count * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * numbers / (numbers - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scaled = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scaled[:, None, None]).to(x.dtype)


class _QuickRMSNorm(torch.autograd.Function):
    """RMS norm on a CPU with half as many passes over memory as torch's own, which is made of single operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(RMS_EPSILON).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and weight.

        Layer norm's backward with a mean of 0 gives both, except that it takes the mean's own gradient from that of x;
        this is added back here.
        """
        x, weight, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, list(weight.shape), torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        taken = (gradient @ weight)[..., None].div_(x.shape[-1]).mul_(scale)
        return to_x.add_(taken), to_weight


NORMS: dict[str, type[nn.Module]] = {"none": nn.Identity, "layer": LayerNorm, "rms": RMSNorm}
"""Norms by the name they have in the settings."""


class NormActivation(nn.Module):
    """What follows a linear layer: a norm over the last axis, of `width`, and an activation."""

    def __init__(self, width: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.norm = NORMS[norm](width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations, of the same shape."""
        activated: Tensor = self.activation(self.norm(x))
        return activated


def after(width: int, settings: ModelSettings) -> NormActivation:
    """Return what follows a dense layer of a model with these settings."""
    return NormActivation(width, settings.norm, settings.activation)


def dense_stack(width_in: int, units: int, layers: int, settings: ModelSettings) -> nn.Sequential:
    """Return `layers` linear layers of `units`, each followed by norm and activation: (…, width_in) -> (…, units)."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(units if layer else width_in, units), after(units, settings)]
    return nn.Sequential(*modules)


class ForkedLinear(nn.Linear):
    """Several linear layers that read the same input, computed as one; their outputs, of `widths`, are side by side.

    Adaptive clipping treats each part as a tensor of its own.
    """

    def __init__(self, width_in: int, widths: Sequence[int]) -> None:
        super().__init__(width_in, sum(widths))
        self.widths = tuple(widths)


class GRUCell(nn.Module):
    """A gated recurrent unit with torch's formula and parameters, whose carried state stays float32 under autocast.

    `r = σ(W_r x + V_r h)`, `u = σ(W_u x + V_u h)`, `n = tanh(W_n x + r·(V_n h))`, `h' = (1 − u)·n + u·h`, without the
    biases. The reset gate acts after the matrix product, as in cuDNN and in V1's release (Keras's `reset_after`);
    PlaNet's release applies it before.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.input = LoopLinear(width_in, 3 * width)
        self.carried = LoopLinear(width, 3 * width)
        self._gates = (2 * width, width)
        for layer in (self.input, self.carried):
            draw_uniformly(layer, width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return h' (B, width), float32, for x (B, width_in) and h (B, width)."""
        from_input, candidate_input = full_precision(self.input(x)).split(self._gates, dim=-1)
        from_carried, candidate_carried = full_precision(self.carried(h)).split(self._gates, dim=-1)
        reset, update = torch.sigmoid(from_input + from_carried).chunk(2, dim=-1)
        candidate = torch.tanh(torch.addcmul(candidate_input, reset, candidate_carried))
        return torch.lerp(candidate, h, update)


class NormGRUCell(nn.Module):
    """Dreamer V2's gated recurrent unit: one layer norm over all gates, and a bias towards keeping what was.

    `r, c, u = LayerNorm(W [x, h])`, `h' = σ(u − 1)·tanh(σ(r)·c) + (1 − σ(u − 1))·h`.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.gates = LoopLinear(width_in + width, 3 * width, bias=False)
        self.norm = LayerNorm(3 * width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return h' (B, width), float32, for x (B, width_in) and h (B, width)."""
        gates = self.norm(self.gates(torch.cat([x, h.to(x.dtype)], dim=-1)))
        return gated(gates, h)


def gated(gates: Tensor, h: Tensor) -> Tensor:
    """Return V2's and V3's h' = u·tanh(σ(reset)·candidate) + (1 − u)·h (…, width) with u = σ(update − 1).

    `gates` (…, 3·width) are reset, candidate and update.
    """
    reset, candidate, update = gates.chunk(3, dim=-1)
    return torch.lerp(h, torch.tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1.0))


def initialise(network: nn.Module, kind: Literal["uniform", "truncated_normal"]) -> None:
    """Draw a network's weights as Dreamer V3 does; `uniform` leaves them as torch drew them.

    `truncated_normal`: deviation sqrt(1 / fan-in), cut off at two deviations of the normal before truncation; biases 0;
    norms untouched. A partial layer's fan-in is the width of the whole input.
    """
    if kind == "uniform":
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | BlockLinear):
            joint = getattr(module, "joint", None)
            spread = TRUNCATION_GAIN / math.sqrt(joint or _fan_in(module))
            nn.init.trunc_normal_(module.weight, std=spread, a=-2 * spread, b=2 * spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _fan_in(module: nn.Module) -> int:
    weight = module.get_parameter("weight")
    axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1  # the input's channels
    return weight.shape[axis] * math.prod(weight.shape[2:])
