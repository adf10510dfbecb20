"""The bounds that an environment declares of its vectors, and what lies outside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.common.process_log import log_once, warn_once

TOLERANCE = 1e-5
"""Beyond a bound by this share of it (or of 1) is a rounding."""
MOST_SYMBOL = 15
"""Pictures in which no byte is greater are all but black, or symbols."""
_GREATEST = f"{np.finfo(np.float32).max:.2g}"


class DeclaredBounds:
    """Looks at vectors, many steps at once.

    A vector outside its bounds is stored as it is, since any number can be: it is told of, once for each entry in each
    process. What is not finite cannot be learnt from and is a fault.

    Args:
        space: of the converted observations.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        assert isinstance(space, spaces.Dict)
        self._bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, box in space.spaces.items():
            assert isinstance(box, spaces.Box)
            if box.dtype == np.float32 and (np.isfinite(box.low).any() or np.isfinite(box.high).any()):
                slack = [TOLERANCE * np.maximum(1, np.abs(bound)) for bound in (box.low, box.high)]
                self._bounds[name] = (box.low - slack[0], box.high + slack[1])

    def fault(self, name: str, rows: np.ndarray) -> tuple[int, str] | None:
        """Return the first row (T, D) that is not finite and a clause that says so; None if all are."""
        fault = _not_finite(rows)
        if not fault and name in self._bounds:
            self._tell_outside(name, rows)
        return fault

    def _tell_outside(self, name: str, rows: np.ndarray) -> None:
        low, high = self._bounds[name]
        outside = (rows < low) | (rows > high)
        if not outside.any():
            return
        t, place = (int(index) for index in np.argwhere(outside)[0])
        bounds = f"{low[place]:.4g} to {high[place]:.4g}"
        warn_once(
            ("outside", name),
            f"the observation '{name}' is {rows[t, place]:.4g} at [{place}], but its space says {bounds}: such "
            "numbers are stored as they are",
        )
        del self._bounds[name]


def check_finite(rows: Mapping[str, np.ndarray]) -> None:
    """Refuse observations, by name (N, *shape), of which a vector is not finite.

    Raises:
        ValueError: if one is not.
    """
    for name, values in rows.items():
        fault = _not_finite(values) if values.dtype == np.float32 else None
        if fault:
            raise ValueError(f"the observation '{name}' {fault[1]}")


def _not_finite(rows: np.ndarray) -> tuple[int, str] | None:
    """Return the first of the rows (T, D) that is not finite and a clause that says so; None if all are."""
    finite = np.isfinite(rows).all(axis=1)
    if finite.all():
        return None
    t = int(np.argmin(finite))
    beyond = f" (float32 holds up to {_GREATEST})" if np.isinf(rows[t]).any() else ""
    return t, f"is not finite{beyond}: {rows[t]}"


def check_first(space: spaces.Space[Any], shown: list[dict[str, np.ndarray]], named: tuple[str, ...] = ()) -> None:
    """Look at an environment's first observations, and warn of pictures that hold next to nothing.

    Args:
        space: of the converted observations.
        shown: the observations.
        named: entries of which the settings say that they are pictures.

    Raises:
        ValueError: if a vector is not finite.
    """
    bounds = DeclaredBounds(space)
    rows = {name: np.stack([observation[name] for observation in shown]) for name in shown[0]}
    check_finite(rows)
    for name, values in rows.items():
        if values.dtype == np.float32:
            bounds.fault(name, values)
        elif 0 < values.max() <= MOST_SYMBOL and name not in named:
            log_once(
                f"the picture '{name}' holds no byte above {values.max()} at its first {len(shown)} steps, and is all "
                "but black: env.vectors or env.one_hot takes symbols",
                logging.WARNING,
            )
