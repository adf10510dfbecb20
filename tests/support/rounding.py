"""What rounding may leave between numbers that were worked out in two ways."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def agree(one: Tensor | np.ndarray, other: Tensor | np.ndarray | float, terms: float = 1000) -> bool:
    """Return whether two ways gave the same numbers but for rounding: within `terms` units of the largest's last place.

    In float64 that is 2e-13 of the largest number, in float32 1e-4 of it: a tolerance that holds on every processor,
    whatever the order it adds in.

    Args:
        one: of any shape; the type that is shorter decides.
        other: of the same shape, or a number for all of them.
        terms: for how many roundings there is room: about the number of terms that were added up one after the other.
    """
    one, other = torch.as_tensor(one).detach(), torch.as_tensor(other).detach()
    assert other.dim() == 0 or one.shape == other.shape, f"{tuple(one.shape)} and {tuple(other.shape)}"
    if one.numel() == 0:
        return True
    unit = max(torch.finfo(part.dtype).eps for part in (one, other) if part.dim())
    far = (one.double() - other.double()).abs().max().item()
    return far <= terms * unit * other.double().abs().max().item()  # never of NaNs
