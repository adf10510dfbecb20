"""The arithmetic outside the networks' products: float32, also under autocast.

Where torch's default type is float64 everything is in that, from the bytes of a picture to the loss. Nobody trains so;
tests do, where numbers worked out in two ways are compared: float32 rounds differently on every processor.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Return a network's numbers as float32 where they are shorter than that; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def as_input(x: Tensor) -> Tensor:
    """Return stored numbers, bytes or truth values in the type networks begin with: torch's default one, float32."""
    return x.to(torch.get_default_dtype())
