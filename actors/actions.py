"""Action spaces: what of them is stored, and how a stored action becomes the environment's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.common.errors import UserError
from dreamfleet.common.spaces import ActionSpec

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete and Box of reals"


def describe_action(space: spaces.Space[Any]) -> ActionSpec:
    """Return what is stored of an action of this space.

    Raises:
        UserError: if the space is none of `SUPPORTED_ACTIONS`.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec("multi_discrete", tuple(space.nvec.reshape(-1)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and 0 not in space.shape:
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        return ActionSpec("box", (low.size,), tuple(low), tuple(high), space.shape)
    raise UserError(
        f"The environment's action space {space} is not supported: it would have to be one of {SUPPORTED_ACTIONS}."
    )


def action_converter(space: spaces.Space[Any]) -> Callable[[np.ndarray], Any]:
    """Return the function that turns one stored action into one that the environment takes.

    A choice becomes a plain int counted from the space's start; choices and boxes get the space's shape and type. A box
    is clipped to its bounds: float32 may round a stored bound of float64 to just beyond it.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda stored: int(stored) + start
    if isinstance(space, spaces.MultiDiscrete):
        starts, shape = space.start, space.shape
        return lambda stored: stored.reshape(shape).astype(starts.dtype) + starts
    assert isinstance(space, spaces.Box)
    low, high = space.low, space.high
    return lambda stored: np.minimum(np.maximum(stored.reshape(low.shape).astype(low.dtype), low), high)


def null_action(space: spaces.Space[Any]) -> Any:
    """Return the action that does nothing: the first choice, or zeros (the nearest bound where zero is outside)."""
    if isinstance(space, spaces.Discrete):
        return int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.copy()
    assert isinstance(space, spaces.Box)
    return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
