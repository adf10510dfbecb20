"""The entry: one array of an observation, and how it is made of what the environment shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from dreamfleet.common.experience.spaces import ObservationSpec

Convert = Callable[[Any], np.ndarray]
Kind = Literal["picture", "vector", "one_hot"]
"""What an entry is taken for; a one-hot is stored as a vector of 0 and 1."""


@dataclass(frozen=True)
class Entry:
    """One entry of an observation.

    Attributes:
        spec: what it is called and what is stored of it.
        path: the keys and indices that lead to it in nested Dicts and Tuples, as the environment has them; empty if the
            observation is the entry itself.
        convert: makes of the environment's value the picture (H, W, C) in uint8 or the vector (D,) in float32.
        kind: what it is taken for.
        source: type, shape and what else tells how it was read, for people.
        low: lower bounds of what is stored, a number for all or an array of the spec's shape; `high` likewise.
        high: see `low`.
    """

    spec: ObservationSpec
    path: tuple[Any, ...]
    convert: Convert
    kind: Kind
    source: str
    low: np.ndarray
    high: np.ndarray

    def __str__(self) -> str:
        """Return it in words: "image 64×64×3 (picture: uint8 96×96×3)"."""
        kind = {"picture": "picture", "vector": "vector", "one_hot": "one-hot"}[self.kind]
        name = self.spec.name if self.spec.name.isidentifier() else f"'{self.spec.name}'"
        return f"{name} {sizes(self.spec.shape)} ({kind}: {self.source})"


def sizes(shape: tuple[int, ...]) -> str:
    """Return a shape in words: "96×96×3"."""
    return "×".join(map(str, shape))


def shown_bounds(space: spaces.Box) -> str:
    """Return the bounds of a space in words: "-1 to 1"."""
    return f"{space.low.min():g} to {space.high.max():g}"


def shown_array(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what an environment shows as an array.

    Raises:
        ValueError: if it is none, or one of another shape; the sentence names the entry.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the observation '{name}' is {value!r:.80}, which is no array of numbers")
    if array.shape != shape:
        raise ValueError(f"the observation '{name}' has the shape {array.shape}, but the space says {shape}")
    return array
