"""An action that came from a page, as it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError, shown
from dreamfleet.common.experience.spaces import ActionSpec


def checked_action(spec: ActionSpec, action: Any) -> np.ndarray:
    """Return an action as it is stored; reals beyond their bounds are clipped.

    Raises:
        UserError: if it is not one of the space's.
    """
    try:
        array = np.asarray(action, np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.shape != spec.stored_shape or not np.isfinite(array).all():
        raise UserError(f"{shown(action)} is no action of this environment, which acts by {spec.in_words}")
    flat = array.reshape(-1)
    chosen, reals = flat[: len(spec.choices)], flat[len(spec.choices) :]
    for number, (choice, options) in enumerate(zip(chosen, spec.choices, strict=True)):
        if choice != int(choice) or not 0 <= choice < options:
            raise UserError(f"choice {number} of the action is {choice:g}, but must be one of 0 to {options - 1}")
    clipped = np.clip(reals, spec.low, spec.high) if len(reals) else reals
    return np.concatenate([chosen, clipped]).reshape(spec.stored_shape).astype(spec.stored_dtype)
