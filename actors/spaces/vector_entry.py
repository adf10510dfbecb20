"""Vectors: numbers as they are, and one-hots of choices, flattened."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entry import Convert, Entry, shown_array, shown_bounds, sizes
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec

MOST_WIDTH = 1_000_000
"""A wider one-hot is refused: its first layer alone would have a weight for each number and unit."""


def vector_entry(space: spaces.Space[Any], name: str, path: tuple[Any, ...]) -> Entry:
    """Return the entry of plain numbers: flattened, in float32."""
    shape = space.shape or ()
    size = int(np.prod(shape))
    is_flat = len(shape) == 1

    def convert(value: Any) -> np.ndarray:
        try:
            vector = np.asarray(value, np.float32)
        except (TypeError, ValueError, OverflowError):
            vector = shown_array(value, name, shape).astype(np.float32)
        if vector.shape != shape:
            raise ValueError(f"the observation '{name}' has the shape {vector.shape}, but the space says {shape}")
        return vector if is_flat else vector.reshape(size)

    low, high = (bound.astype(np.float64).reshape(size) for bound in _bounds(space))
    with np.errstate(over="ignore"):  # what float32 cannot hold is no bound in it
        low, high = low.astype(np.float32), high.astype(np.float32)
    return Entry(_spec(name, size), path, convert, "vector", _source(space), low, high)


def one_hot_entry(space: spaces.Space[Any], name: str, path: tuple[Any, ...]) -> Entry:
    """Return the entry of a one-hot for each whole number of a space, side by side.

    Raises:
        UserError: if it would be too wide.
    """
    width = one_hot_width(space)
    if width > MOST_WIDTH:
        raise UserError(
            f"the observation '{name}' would be a one-hot of {width:,} numbers, and {MOST_WIDTH:,} are the most: "
            "env.vectors takes its plain numbers, and a space with closer bounds makes it narrower."
        )
    convert = _digits(space, name) if isinstance(space, spaces.Box) else _choices(space, name)
    return Entry(_spec(name, width), path, convert, "one_hot", _source(space, bounds=True), np.array(0), np.array(1))


def one_hot_width(space: spaces.Space[Any]) -> int:
    """Return how many numbers the one-hots of a space are."""
    if isinstance(space, spaces.Box):
        return sum(int(high) - int(low) + 1 for low, high in zip(space.low.flat, space.high.flat, strict=True))
    return int(spaces.flatdim(space))


def _spec(name: str, width: int) -> ObservationSpec:
    return ObservationSpec(name, (width,), "float32")


def _bounds(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest numbers of a space of numbers."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return np.array(space.start), np.array(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return np.zeros(space.shape or ()), np.ones(space.shape or ())  # MultiBinary


def _choices(space: spaces.Space[Any], name: str) -> Convert:
    """Return what makes one-hots of choices, and bits of bits, as Gymnasium flattens them."""

    def convert(value: Any) -> np.ndarray:
        if not space.contains(value):
            raise ValueError(f"the observation '{name}' is {value!r}, which is not in {space}")
        return np.asarray(spaces.flatten(space, value), np.float32)

    return convert


def _digits(space: spaces.Box, name: str) -> Convert:
    """Return what makes one-hots of the whole numbers of a Box, counted from its lower bounds."""
    low, high = space.low.astype(np.int64).reshape(-1), space.high.astype(np.int64).reshape(-1)
    counts = high - low + 1
    begins = np.cumsum(counts) - counts - low
    width, shape = int(counts.sum()), space.shape

    def convert(value: Any) -> np.ndarray:
        array = shown_array(value, name, shape)
        if array.dtype.kind == "f":
            raise ValueError(f"the observation '{name}' is {array.dtype}, but the space says {space.dtype}")
        digits = array.astype(np.int64).reshape(-1)
        outside = (digits < low) | (digits > high)
        if outside.any():
            k = int(np.argmax(outside))
            raise ValueError(f"the observation '{name}' is {digits[k]}, but its space says {low[k]} to {high[k]}")
        one_hots = np.zeros(width, np.float32)
        one_hots[begins + digits] = 1
        return one_hots

    return convert


def _source(space: spaces.Space[Any], bounds: bool = False) -> str:
    """Return type and shape of a space in words: "int8 5×5"."""
    if isinstance(space, spaces.Discrete):
        return f"Discrete of {space.n}"
    is_box = isinstance(space, spaces.Box)
    text = f"{space.dtype if is_box else type(space).__name__} {sizes(space.shape or ())}".rstrip()
    return f"{text} from {shown_bounds(space)}" if isinstance(space, spaces.Box) and bounds else text
