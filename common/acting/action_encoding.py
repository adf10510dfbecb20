"""Actions in the networks' units and back: choices are one-hots side by side, then reals in [-1, 1].

Shapes: A is the action's width, `spec.width`.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.experience.spaces import ENDLESS, ActionSpec, is_bounded, reach_of
from dreamfleet.common.torch_state import as_input, full_precision


def encode_actions(spec: ActionSpec, stored: Tensor) -> Tensor:
    """Return the network's actions (…, A), float32, for stored ones (…, *stored_shape).

    Reals are scaled from the interval `reach_of` to [-1, 1].
    """
    if spec.kind == "discrete":
        return as_input(F.one_hot(stored.long(), spec.sizes[0]))
    numbers, reals = stored.split([len(spec.choices), spec.reals], dim=-1)
    pairs = zip(numbers.unbind(-1), spec.choices, strict=True)
    parts = [as_input(F.one_hot(number.long(), size)) for number, size in pairs]
    if spec.reals:
        reals = as_input(reals)
        middle, half, _, _ = _scale(spec, reals.device, reals.dtype)
        parts.append((reals - middle) / half)
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def decode_actions(spec: ActionSpec, encoded: Tensor) -> Tensor:
    """Return the stored actions (…, *stored_shape) for the network's (…, A): the inverse of `encode_actions`.

    A choice is the index of the greatest number; reals are clipped to their bounds, if they have any.
    """
    *groups, reals = full_precision(encoded).split([*spec.choices, spec.reals], dim=-1)
    choices = [group.argmax(-1).to(torch.int32) for group in groups]
    if spec.kind == "discrete":
        return choices[0]
    parts = [torch.stack(choices, -1)] if choices else []
    if spec.reals:
        middle, half, least, most = _scale(spec, reals.device, reals.dtype)
        parts.append(reals.clamp(least, most) * half + middle)
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


@cache
def _scale(spec: ActionSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for each real middle and half width of its interval, and its bounds in the network's units."""
    columns = zip(*[_scale_of(low, high) for low, high in zip(spec.low, spec.high, strict=True)], strict=True)
    middle, half, least, most = (_on_device(list(numbers), device, dtype) for numbers in columns)
    return middle, half, least, most


def _scale_of(low: float, high: float) -> tuple[float, float, float, float]:
    """Return one real's numbers for `_scale`; a fixed real is 0 for the networks."""
    first, last = reach_of(low, high)
    middle, half = (first + last) / 2, (last - first) / 2
    if is_bounded(low, high):
        return (middle, half, -1.0, 1.0) if half > 0 else (middle, 1.0, 0.0, 0.0)
    least = low - middle if low > -ENDLESS else -math.inf
    return middle, half, least, high - middle if high < ENDLESS else math.inf


def _on_device(numbers: list[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the numbers, created on the device: a compiled update would copy a list to it every time."""
    return torch.stack([torch.full((), number, dtype=dtype, device=device) for number in numbers])


def previous_actions(encoded: Tensor, is_first: Tensor) -> Tensor:
    """Return for every step the action before it (B, T, A): zero at t = 0 and where an episode begins.

    `encoded` (B, T, A) has at t the action taken after observation t; `common/experience/steps.py` draws this.
    """
    shifted = F.pad(encoded[:, :-1], (0, 0, 1, 0))
    return shifted.masked_fill(is_first.bool()[..., None], 0.0)
