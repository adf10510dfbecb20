"""Actions as the networks take them, and back: choices are one-hots, boxes lie in [-1, 1]; and who came before whom."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.precision import as_input, full_precision
from dreamfleet.common.spaces import ActionSpec


def encode_actions(spec: ActionSpec, stored: Tensor) -> Tensor:
    """Return the network's actions (…, A), float32, for stored ones (…, *stored_shape).

    Args:
        spec: what an action is; A is `spec.width`.
        stored: integers for "discrete" () and "multi_discrete" (parts,), which become one-hots side by side; reals for
            "box" (A,), of which each bounded dimension is brought from its bounds to [-1, 1]; one without bounds
            stays in the environment's own units.
    """
    if spec.kind == "box":
        numbers = as_input(stored)
        middle, half = _scale(spec, stored.device, numbers.dtype)
        return (numbers - middle) / half
    if spec.kind == "discrete":
        return as_input(F.one_hot(stored.long(), spec.sizes[0]))
    parts = [F.one_hot(part.long(), size) for part, size in zip(stored.unbind(-1), spec.sizes, strict=True)]
    return as_input(torch.cat(parts, dim=-1))


def decode_actions(spec: ActionSpec, encoded: Tensor) -> Tensor:
    """Return the stored actions (…, *stored_shape) for the network's (…, A): `encode_actions` backwards.

    Choices are the places of the greatest numbers, as int32; a bounded dimension of a box is clipped to its bounds.
    """
    if spec.kind == "box":
        encoded = full_precision(encoded)
        middle, half = _scale(spec, encoded.device, encoded.dtype)
        bounded = torch.tensor(_is_bounded(spec), device=encoded.device)
        return torch.where(bounded, encoded.clamp(-1.0, 1.0), encoded) * half + middle
    choices = [part.argmax(-1) for part in encoded.split(list(spec.sizes), dim=-1)]
    return (choices[0] if spec.kind == "discrete" else torch.stack(choices, -1)).to(torch.int32)


@cache
def _scale(spec: ActionSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a box's middle and half width by dimension; 0 and 1 where it has no bounds."""
    bounds = [
        (low, high) if bounded else (-1.0, 1.0)
        for low, high, bounded in zip(spec.low, spec.high, _is_bounded(spec), strict=True)
    ]
    middle, half = [(high + low) / 2 for low, high in bounds], [(high - low) / 2 for low, high in bounds]
    return _on_device(middle, device, dtype), _on_device(half, device, dtype)


def _on_device(numbers: list[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the numbers, made on the device: a compiled update would copy a list's there again and again."""
    return torch.stack([torch.full((), number, dtype=dtype, device=device) for number in numbers])


def _is_bounded(spec: ActionSpec) -> list[bool]:
    return [
        math.isfinite(low) and math.isfinite(high) and low < high for low, high in zip(spec.low, spec.high, strict=True)
    ]


def previous_actions(encoded: Tensor, is_first: Tensor) -> Tensor:
    """Return for every step the action before it; see `common/steps.py` for the time alignment.

    Args:
        encoded: (B, T, A), at t the action taken after observation t.
        is_first: (B, T), whether an episode begins at t.

    Returns:
        (B, T, A), at t the action at t - 1; zero at t = 0 and where an episode begins.
    """
    shifted = F.pad(encoded[:, :-1], (0, 0, 1, 0))
    return shifted.masked_fill(is_first.bool()[..., None], 0.0)
