"""How large returns are, so that one entropy scale fits all rewards (Dreamer V3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def percentiles(values: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Return the values below which these shares lie, interpolated linearly as by `torch.quantile`.

    torch.quantile refuses more than 2**24 numbers and copies the shares to the device at every call.

    Args:
        values: of any shape, at least one number; float32 or float64.
        shares: within [0, 1].
    """
    ordered = values.flatten().sort().values
    found = []
    for share in shares:
        position = share * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        found.append(torch.lerp(ordered[below], ordered[above], position - below))
    return found


class ReturnNormaliser(nn.Module):
    """The spread of the returns: max(limit, hi − lo) of two percentiles' moving averages.

    The averages begin at 0 and are not corrected for it: while they rise the scale is the limit, and sparse rewards
    are not blown up. Smaller returns are never scaled up. The averages are buffers: part of a checkpoint.

    Attributes:
        low: moving average of the low percentile, a scalar.
        high: of the high one.

    Args:
        rate: of the moving averages.
        shares: which percentiles, of 1.
        limit: smallest scale.
    """

    low: Tensor
    high: Tensor

    def __init__(self, rate: float = 0.01, shares: tuple[float, float] = (0.05, 0.95), limit: float = 1.0) -> None:
        super().__init__()
        self._rate, self._shares, self._limit = rate, shares, limit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Take the returns of a batch, of any shape, into the averages; before they are scaled, as V3 does."""
        low, high = percentiles(returns.to(self.low.dtype), self._shares)
        self.low.lerp_(low, self._rate)
        self.high.lerp_(high, self._rate)

    @property
    def scale(self) -> Tensor:
        """What returns and advantages are divided by: a scalar on the device, at least `limit`."""
        return (self.high - self.low).clamp(min=self._limit)
