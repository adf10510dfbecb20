"""Actions as the networks take them: stored choices become one-hots, and each step gets the action before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.spaces import ActionSpec


def encode_actions(spec: ActionSpec, stored: Tensor) -> Tensor:
    """Return the network's actions (…, A), float32, for stored ones (…, *stored_shape).

    Args:
        spec: what an action is; A is `spec.width`.
        stored: integers for "discrete" () and "multi_discrete" (parts,), which become one-hots side by side; reals for
            "box" (A,), which stay as they are, in the environment's own units.
    """
    if spec.kind == "box":
        return stored.float()
    if spec.kind == "discrete":
        return F.one_hot(stored.long(), spec.sizes[0]).float()
    parts = [F.one_hot(part.long(), size) for part, size in zip(stored.unbind(-1), spec.sizes, strict=True)]
    return torch.cat(parts, dim=-1).float()


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
