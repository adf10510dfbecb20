"""Returns: what lies ahead of a state, from rewards and values (Dreamers V1 to V3), and how large they are.

Time is the last axis, and index t always means state t:

    reward[t]        received on arriving at state t
    continuation[t]  how much of what follows state t counts: probability that the episode goes on there, times the
                     discount where the continue head does not carry it (V1 and V2: γ·c; V3: c)
    value[t]         of what is received after state t
    R_t = reward[t + 1] + continuation[t + 1]·((1 − λ)·value[t + 1] + λ·R_{t + 1})

so that reward and continuation of the first state do not enter any return. Values and returns are without the reward of
their own state, as in V3; in the releases of V1 and V2 they are with it, one index later, which trains the same policy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.learner.ranks import ALONE, Ranks


def lambda_returns(reward: Tensor, value: Tensor, continuation: Tensor, lambda_: float) -> Tensor:
    """Return R_0 … R_{H−1} (…, H) from tensors (…, H + 1), with gradients to all of them; R_H is the last value.

    Args:
        lambda_: 0 for one step and then the value, 1 for all rewards and then the last value.
    """
    following = continuation[..., 1:]
    certain = torch.addcmul(reward[..., 1:], following, value[..., 1:], value=1.0 - lambda_)
    return _accumulate(certain, lambda_ * following, value[..., -1])


def replay_returns(
    reward: Tensor, bootstrap: Tensor, is_last: Tensor, is_terminal: Tensor, discount: float, lambda_: float
) -> Tensor:
    """Return R_0 … R_{T−2} (…, T − 1) of replayed sequences, which may run over several episodes.

    After a terminal step nothing counts; after a last step that is not terminal the bootstrap replaces all that
    would have followed. The return of a last step itself mixes two episodes and must get no weight.

    Args:
        bootstrap: (…, T), another estimate of the return of each state; V3: the imagined R_0 from it.
        discount: per step, V3: 1 − 1/333.
        lambda_: weight of the sequence's own rewards against the bootstrap, at each step.
    """
    alive = discount * (1.0 - is_terminal[..., 1:].to(reward.dtype))
    onward = lambda_ * (1.0 - is_last[..., 1:].to(reward.dtype))
    certain = torch.addcmul(reward[..., 1:], alive * (1.0 - onward), bootstrap[..., 1:])
    return _accumulate(certain, alive * onward, bootstrap[..., -1])


def discount_weights(continuation: Tensor, with_first: bool = True) -> Tensor:
    """Return how much each imagined state counts (…, H), without gradient: the product of the continuations so far.

    Args:
        continuation: (…, H + 1).
        with_first: whether the first state's own counts too (V3: an imagined future from a terminal state weighs
            nothing); else the first weight is 1 (V1).
    """
    reached = continuation.detach()[..., :-1]
    if not with_first:
        reached = torch.cat([torch.ones_like(reached[..., :1]), reached[..., 1:]], dim=-1)
    return reached.cumprod(-1)


def _accumulate(certain: Tensor, carried: Tensor, last: Tensor) -> Tensor:
    """Return R_t = certain_t + carried_t·R_{t+1} (…, H) from R_H = last (…)."""
    returns: list[Tensor] = []
    # Unbound once, not indexed: the gradient is then one stack instead of H padded sums.
    for step, share in zip(reversed(certain.unbind(-1)), reversed(carried.unbind(-1)), strict=True):
        last = torch.addcmul(step, share, last)
        returns.append(last)
    return torch.stack(returns[::-1], dim=-1)


def percentiles(values: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Return the values below which these shares lie, interpolated linearly as by `torch.quantile`.

    torch.quantile refuses more than 2**24 numbers and copies the shares to the device at every call.

    The values are of any shape, float32 or float64.
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

    The averages begin at 0 without correction: while they rise the scale is the limit, so that sparse rewards are not
    scaled up, nor are small returns ever. They are a buffer, and so part of a checkpoint.

    Attributes:
        ranks: whose returns are one batch.
        bounds: the averages, lo and hi (2). One tensor, since torch 2.13 drops what a compiled function does to a
            scalar of float64 on a CPU, as which tests run it.
    """

    ranks: Ranks = ALONE
    bounds: Tensor

    def __init__(self, rate: float = 0.01, shares: tuple[float, float] = (0.05, 0.95), limit: float = 1.0) -> None:
        super().__init__()
        self._rate, self._shares, self._limit = rate, shares, limit
        self.register_buffer("bounds", torch.zeros(2))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Take the returns of a batch, of any shape, into the averages; before they are scaled, as V3 does."""
        found = percentiles(self.ranks.gather(returns).to(self.bounds.dtype), self._shares)
        self.bounds.lerp_(torch.stack(found), self._rate)

    @property
    def scale(self) -> Tensor:
        """What returns and advantages are divided by: a scalar on the device, at least `limit`."""
        low, high = self.bounds.unbind()
        return (high - low).clamp(min=self._limit)
