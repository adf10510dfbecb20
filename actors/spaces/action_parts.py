"""The parts of an action space: the spaces in a Dict or Tuple that are neither, and where each lies in a stored row.

A row holds the choices of all parts, then the reals of all parts, each in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dreamfleet.common.errors import UserError

Space = spaces.Space[Any]

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box, or a Dict or Tuple of these"
MOST_OPTIONS = 2**24
"""Of one choice: float32, as which choices beside reals are stored, holds whole numbers exactly up to here."""


class Options(NamedTuple):
    """What the choices of a part are: option i of a choice is `starts + i`.

    Attributes:
        starts: in the part's shape and type.
        sizes: number of options of each choice, flat.
    """

    starts: np.ndarray
    sizes: tuple[int, ...]


class Part(NamedTuple):
    """One part of an action space.

    Attributes:
        name: its keys and numbers, joined by underscores; empty for a space that has no parts.
        space: Discrete, MultiDiscrete, MultiBinary or Box.
        options: of its choices; None if it is made of reals.
        first: where it begins in a stored row.
        width: numbers it takes there.
    """

    name: str
    space: Space
    options: Options | None
    first: int
    width: int

    @property
    def names(self) -> list[str]:
        """The name of each of its numbers."""
        if self.space.shape in ((), None):
            return [self.name]
        return [f"{self.name}[{i}]" for i in range(self.width)]


def list_parts(space: Space) -> list[Part]:
    """Return the parts of an action space, in the order in which it has them.

    Raises:
        UserError: naming the first that is not supported.
    """
    found = [(name, part, _options(name, part)) for name, part in _leaves(space, "")]
    if not found:
        raise _refusal("", space)
    next_choice, next_real = 0, sum(len(options.sizes) for _, _, options in found if options)
    parts = []
    for name, part, options in found:
        if options:
            parts.append(Part(name, part, options, next_choice, len(options.sizes)))
            next_choice += len(options.sizes)
        else:
            width = int(np.prod(part.shape or ()))
            parts.append(Part(name, part, None, next_real, width))
            next_real += width
    return parts


def values_of(space: Space, action: Any) -> Iterator[Any]:
    """Yield what an action, or a batch of them, has for each part of its space, in `list_parts`' order."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from values_of(inner, action[key])
    elif isinstance(space, spaces.Tuple):
        for inner, value in zip(space.spaces, action, strict=True):
            yield from values_of(inner, value)
    else:
        yield action


def _leaves(space: Space, name: str) -> Iterator[tuple[str, Space]]:
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield name, space
        return
    inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in inner:
        yield from _leaves(part, f"{name}_{key}" if name else str(key))


def _options(name: str, space: Space) -> Options | None:
    """Return the options of a part; None if it is made of reals.

    Raises:
        UserError: if it is not supported.
    """
    if isinstance(space, spaces.Discrete):
        options = Options(np.asarray(space.start), (int(space.n),))
    elif isinstance(space, spaces.MultiDiscrete):
        options = Options(space.start, tuple(int(size) for size in space.nvec.reshape(-1)))
    elif isinstance(space, spaces.MultiBinary):
        options = Options(np.zeros(space.shape, space.dtype), (2,) * int(np.prod(space.shape)))
    elif isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "iub":
        bounds = zip(space.low.reshape(-1), space.high.reshape(-1), strict=True)
        options = Options(space.low, tuple(int(high) - int(low) + 1 for low, high in bounds))
    elif isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f" and 0 not in space.shape:
        if np.isnan(space.low).any() or np.isnan(space.high).any():
            raise UserError(f"{_called(name, space)} has a bound that is no number.")
        return None
    else:
        raise _refusal(name, space)
    most = max(options.sizes, default=0)
    if not most:
        raise _refusal(name, space)
    if most > MOST_OPTIONS:
        raise UserError(
            f"{_called(name, space)} has a choice of {most:,} options, each of which would be an input of the model: "
            f"at most {MOST_OPTIONS:,} are possible, so make it a Box of reals with a wrapper."
        )
    return options


def _refusal(name: str, space: Space) -> UserError:
    return UserError(f"{_called(name, space)} is not supported: it would have to be {SUPPORTED_ACTIONS}.")


def _called(name: str, space: Space) -> str:
    return f"The part '{name}' of the environment's action, {space}," if name else (
        f"The environment's action space {space}")  # fmt: skip
