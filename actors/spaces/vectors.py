"""Vectors: plain numbers and one-hots, flattened, and what is done about numbers outside their declared bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entries import Convert, Entry, Path, bounds_in_words, shape_in_words
from dreamfleet.common.errors import UserError, shown
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.process_log import warn_once

MOST_WIDTH = 1_000_000
"""A wider one-hot is refused: its first layer alone would have a weight for each number and unit."""
TOLERANCE = 1e-5
"""Beyond a bound by this share of it (or of 1) is rounding."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest number that can be stored."""


def vector_entry(space: spaces.Space[Any], name: str, path: Path) -> Entry:
    """Return the entry of plain numbers: flattened, in float32."""
    shape = space.shape or ()
    size = int(np.prod(shape))
    is_flat = len(shape) == 1

    def convert(value: Any) -> np.ndarray:
        try:
            vector = np.asarray(value, np.float32)
        except (TypeError, ValueError, OverflowError):
            vector = _number_array(value, name, shape).astype(np.float32)
        if vector.shape != shape:
            raise ValueError(f"the observation '{name}' has the shape {vector.shape}, but the space says {shape}")
        return vector if is_flat else vector.reshape(size)

    low, high = (bound.astype(np.float64).reshape(size) for bound in _bounds(space))
    with np.errstate(over="ignore"):  # a bound that float32 cannot hold becomes infinite
        low, high = low.astype(np.float32), high.astype(np.float32)
    return Entry(ObservationSpec(name, (size,), "float32"), path, convert, "vector", _source(space), low, high)


def one_hot_entry(space: spaces.Space[Any], name: str, path: Path) -> Entry:
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
    source = _source(space)
    if isinstance(space, spaces.Box):
        convert, source = _box_converter(space, name), f"{source} from {bounds_in_words(space)}"
    else:
        convert = _choice_converter(space, name)
    spec = ObservationSpec(name, (width,), "float32")
    return Entry(spec, path, convert, "one_hot", source, np.array(0), np.array(1))


def one_hot_width(space: spaces.Space[Any]) -> int:
    """Return the total width of the one-hots of a space."""
    if isinstance(space, spaces.Box):
        return sum(int(high) - int(low) + 1 for low, high in zip(space.low.flat, space.high.flat, strict=True))
    return int(spaces.flatdim(space))


class VectorBounds:
    """Checks vectors against their declared bounds, many steps at once.

    A vector outside its bounds is stored unchanged, since float32 holds any number; it is warned of once for each entry
    in each process. A number that is not finite cannot be learnt from and is a fault. `space` is that of the converted
    observations.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        assert isinstance(space, spaces.Dict)
        self._boxes = {name: box for name, box in space.spaces.items() if box.dtype == np.float32}
        self._bounds: dict[str, tuple[Any, Any]] = {name: _with_slack(box) for name, box in self._boxes.items()}

    def fault(self, name: str, vectors: np.ndarray) -> tuple[int, str] | None:
        """Return the index of the first of the vectors (T, D) that is not finite, and a clause; None if all are."""
        low, high = self._bounds[name]
        inside = (vectors >= low) & (vectors <= high)  # all at once, since it is asked for all that is collected
        if inside.all():
            return None
        fault = _not_finite(vectors)
        if not fault:
            t, place = (int(index) for index in np.argwhere(~inside)[0])
            box: Any = self._boxes[name]
            warn_once(
                ("outside", name),
                f"the observation '{name}' is {vectors[t, place]:.4g} at [{place}], but its space says "
                f"{box.low[place]:.4g} to {box.high[place]:.4g}: such numbers are stored as they are",
            )
            self._bounds[name] = -LARGEST, LARGEST
        return fault


def _with_slack(box: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return a box's bounds as far as what is stored may reach; all that is finite is within a bound that is not."""
    assert isinstance(box, spaces.Box)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (TOLERANCE * np.maximum(1, np.abs(bound)) for bound in (box.low, box.high))
        return np.maximum(box.low - low, -LARGEST), np.minimum(box.high + high, LARGEST)


def check_finite(observations: dict[str, np.ndarray]) -> None:
    """Refuse observations, by name (N, *shape), with a number that is not finite.

    Raises:
        ValueError: naming the first such vector.
    """
    for name, values in observations.items():
        fault = _not_finite(values) if values.dtype == np.float32 else None
        if fault:
            raise ValueError(f"the observation '{name}' {fault[1]}")


def _not_finite(vectors: np.ndarray) -> tuple[int, str] | None:
    finite = np.isfinite(vectors).all(axis=1)
    if finite.all():
        return None
    t = int(np.argmin(finite))
    limit = f" (float32 holds up to {LARGEST:.2g})" if np.isinf(vectors[t]).any() else ""
    return t, f"is not finite{limit}: {vectors[t]}"


def _number_array(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an environment's value as an array; ValueError if it is not an array of numbers of this shape."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the observation '{name}' is {value!r:.80}, which is no array of numbers")
    if array.shape != shape:
        raise ValueError(f"the observation '{name}' has the shape {array.shape}, but the space says {shape}")
    return array


def _bounds(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return np.array(space.start), np.array(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return np.zeros(space.shape or ()), np.ones(space.shape or ())  # MultiBinary


def _choice_converter(space: spaces.Space[Any], name: str) -> Convert:
    """Return a function that makes one-hots of choices, as Gymnasium flattens them."""

    def convert(value: Any) -> np.ndarray:
        if not space.contains(value):
            raise ValueError(f"the observation '{name}' is {shown(value)}, which is not in {space}")
        return np.asarray(spaces.flatten(space, value), np.float32)

    return convert


def _box_converter(space: spaces.Box, name: str) -> Convert:
    """Return a function that makes one-hots of the whole numbers of a Box, counted from its lower bounds."""
    low, high = space.low.astype(np.int64).reshape(-1), space.high.astype(np.int64).reshape(-1)
    counts = high - low + 1
    begins = np.cumsum(counts) - counts - low
    width, shape = int(counts.sum()), space.shape

    def convert(value: Any) -> np.ndarray:
        array = _number_array(value, name, shape)
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


def _source(space: spaces.Space[Any]) -> str:
    """Return type and shape of a space as in "int8 5×5"."""
    if isinstance(space, spaces.Discrete):
        return f"Discrete of {space.n}"
    kind = space.dtype if isinstance(space, spaces.Box) else type(space).__name__
    return f"{kind} {shape_in_words(space.shape or ())}".rstrip()
