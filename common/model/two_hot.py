"""Numbers of any size as a distribution over bins (Dreamer V3): rewards and values."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamfleet.common.model.distributions import symexp
from dreamfleet.common.model.precision import full_precision

BINS = 255
"""Bins of V3's reward and value."""


def symexp_bins(count: int = BINS, reach: float = 20.0) -> Tensor:
    """Return symexp(linspace(−reach, reach)) (count,), float32, mirrored exactly about 0.

    Computed for one side and negated for the other, since neither linspace nor exp keeps the two sides equal bit for
    bit. A head keeps them as a buffer on its device.

    Args:
        count: odd, so that 0 is a bin.
        reach: of the outermost bins in symlog space; 20 is ±4.85e8.
    """
    assert count % 2 == 1, f"{count} bins have no middle one"
    positive = symexp(torch.linspace(0.0, reach, count // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([-positive[1:].flip(0), positive])


class TwoHot:
    """A distribution over bins, read as one number by its mean and fitted by cross-entropy to two neighbouring bins.

    Args:
        logits: (…, N bins), of any floating type.
        bins: (N,), ascending, mirrored about 0, on the same device (`symexp_bins`).
        log_normaliser: (…), the logits' logsumexp where it is known already.
    """

    def __init__(self, logits: Tensor, bins: Tensor, log_normaliser: Tensor | None = None) -> None:
        self.logits = full_precision(logits)
        self.bins = bins.to(self.logits.dtype)
        # A pass over all bins that the mean and every target share. Made here and not when first asked for: that may
        # be within `no_grad`, and a loss that used it later would have lost half of its gradient.
        self._log_normaliser = self.logits.logsumexp(-1) if log_normaliser is None else log_normaliser

    @property
    def mean(self) -> Tensor:
        """The expected value (…): Σ (p₊ₖ − p₋ₖ)·binₖ over the bins right of 0.

        Paired thus, equal probabilities give exactly 0; added from left to right, bins of 5e8 would leave a rest.
        """
        middle = len(self.bins) // 2
        probabilities = torch.exp(self.logits - self._log_normaliser[..., None])
        difference = probabilities[..., middle + 1 :] - probabilities[..., :middle].flip(-1)
        return (difference * self.bins[middle + 1 :]).sum(-1)

    def log_prob(self, target: Tensor) -> Tensor:
        """Return minus the cross-entropy (…) to a target's two-hot weights.

        The weights lie on the target's two neighbouring bins, in proportion to the distances in raw (symexp) space, so
        that they have the target as their mean. A target beyond the outermost bins counts as that bin.

        Args:
            target: (…), without gradient.
        """
        target = target.detach().to(self.bins.dtype).contiguous()
        below = (torch.searchsorted(self.bins, target, right=True) - 1).clamp(0, len(self.bins) - 2)
        low, high = self.bins[below], self.bins[below + 1]
        share = ((target - low) / (high - low)).clamp(0.0, 1.0)  # of the bin above
        # Two numbers of each row are read; weights over all bins would be a tensor as large as the logits.
        near = self.logits.gather(-1, torch.stack([below, below + 1], -1))  # (…, 2)
        return torch.lerp(near[..., 0], near[..., 1], share) - self._log_normaliser

    def without_last(self) -> TwoHot:
        """Return the distributions (…, H, N) of a sequence (…, H + 1, N) without its last step."""
        return TwoHot(self.logits[..., :-1, :], self.bins, self._log_normaliser[..., :-1])
