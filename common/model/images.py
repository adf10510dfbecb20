"""Pictures as the networks see them, and back: bytes stay bytes until they are on the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dreamfleet.common.model.precision import as_input, full_precision

ImageInput = Literal["unit", "centred", "five_bit"]

FIVE_BIT_STEP = 1.0 / 32.0
"""Width of one of the 32 levels of `five_bit`."""


def normalise_image(image: Tensor, kind: ImageInput, noise: bool = False) -> Tensor:
    """Return the network's numbers for a picture's bytes.

    Args:
        image: uint8, any shape.
        kind: `unit` x/255 in [0, 1]; `centred` x/255 - 0.5; `five_bit` floor(x/8)/32 + U(0, 1/32) - 0.5, which keeps
            the highest 5 bits and fills the lower ones with noise (PlaNet).
        noise: whether `five_bit` draws its noise; without, it adds the noise's mean, 1/64. The others have none.

    Returns:
        float32 of the same shape.
    """
    if kind == "unit":
        return as_input(image) / 255.0
    if kind == "centred":
        return as_input(image) / 255.0 - 0.5
    levels = as_input(torch.div(image, 8, rounding_mode="floor")) * FIVE_BIT_STEP - 0.5
    if noise:
        return levels + torch.rand_like(levels) * FIVE_BIT_STEP
    return levels + FIVE_BIT_STEP / 2


def lowest(kind: ImageInput) -> float:
    """Return the network's number for black, which lies 1 below that for white."""
    return 0.0 if kind == "unit" else -0.5


def to_display(image: Tensor, kind: ImageInput) -> Tensor:
    """Return the uint8 picture for the network's numbers: `normalise_image` backwards, out of range values cut off."""
    unit = full_precision(image) - lowest(kind)
    if kind == "five_bit":
        # A level's middle comes back as its own middle byte: 8 * level + 4.
        return (unit * 256.0).floor().clamp(0, 255).to(torch.uint8)
    return (unit * 255.0).round().clamp(0, 255).to(torch.uint8)
