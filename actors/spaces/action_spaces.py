"""Action spaces: what is stored of an action, and how a stored action becomes the environment's.

The parts of a space are the spaces inside its Dicts and Tuples, or the space itself. A stored action is a vector of the
choices of all parts, then the reals of all parts, each in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entries import leaf_name, leaf_spaces
from dreamfleet.common.acting.policy import RandomPolicy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionKind, ActionSpec

Space = spaces.Space[Any]
Converter = Callable[[np.ndarray], Any]

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box, or a Dict or Tuple of these"
MOST_OPTIONS = 2**24
"""Of one choice: float32, in which choices beside reals are stored, holds whole numbers exactly up to here."""


class Options(NamedTuple):
    """The choices of a part: option i is `starts + i`, in the part's shape and type; `sizes` counts them, flat."""

    starts: np.ndarray
    sizes: tuple[int, ...]


class Part(NamedTuple):
    """One part of an action space: a Discrete, MultiDiscrete, MultiBinary or Box.

    Attributes:
        name: its keys and indices, joined by underscores; empty for a space without parts.
        options: of its choices; None if it consists of reals.
        first: its first index in a stored action; `width` its length there.
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
    found = [(leaf_name(path), part, _options(leaf_name(path), part)) for path, part in leaf_spaces(space)]
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
    """Yield what an action, or a batch of them, has for each part of its space, in the order of `list_parts`."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from values_of(inner, action[key])
    elif isinstance(space, spaces.Tuple):
        for inner, value in zip(space.spaces, action, strict=True):
            yield from values_of(inner, value)
    else:
        yield action


def describe_action(space: Space) -> ActionSpec:
    """Return what is stored of an action of this space: the simplest kind that holds all its parts.

    Raises:
        UserError: if the space or a part of it is none of `SUPPORTED_ACTIONS`.
    """
    parts = sorted(list_parts(space), key=lambda part: part.first)
    choices = tuple(size for part in parts if part.options for size in part.options.sizes)
    boxes = [part.space for part in parts if isinstance(part.space, spaces.Box) and not part.options]
    low = tuple(bound for box in boxes for bound in box.low.reshape(-1))
    high = tuple(bound for box in boxes for bound in box.high.reshape(-1))
    names = tuple(name for part in parts if part.name for name in part.names)
    if not boxes:
        kind: ActionKind = "discrete" if [type(part.space) for part in parts] == [spaces.Discrete] else "multi_discrete"
        return ActionSpec(kind, choices, names=names)
    if choices:
        return ActionSpec("mixed", choices, low, high, names=names)
    return ActionSpec("box", (len(low),), low, high, boxes[0].shape if len(boxes) == 1 else (len(low),), names)


def action_converter(space: Space) -> Converter:
    """Return the function that turns one stored action into one that the environment takes.

    A single choice becomes a plain int counted from the space's start; choices and boxes get the space's shape and
    type, a Dict or Tuple its parts. A box is clipped to its bounds: float32 may round a stored bound of float64 to just
    beyond it.
    """
    parts = list_parts(space)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return _part_converter(parts[0])
    if describe_action(space).kind == "discrete":
        return _composite_converter(space, iter([_part_converter(parts[0])]))
    return _composite_converter(space, map(_slice_converter, parts))


def random_actions(space: Space, seed: int) -> Iterator[Any]:
    """Yield random actions without end, as a run's first ones are.

    A space's own `sample` fails where a bound is a type's largest number.
    """
    convert, policy = action_converter(space), RandomPolicy(describe_action(space), 1, seed)
    while True:
        yield convert(policy.act({}, np.zeros(1, bool))[0])


def null_action(space: Space) -> Any:
    """Return the action that does nothing: the first option of a choice, zeros of a Box, or its nearest bound."""
    if isinstance(space, spaces.Dict):
        return {key: null_action(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(null_action(part) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.copy()
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    assert isinstance(space, spaces.Box)
    return np.asarray(np.minimum(np.maximum(np.zeros(space.shape, space.dtype), space.low), space.high))


def _options(name: str, space: Space) -> Options | None:
    """Return the options of a part; None if it consists of reals."""
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
            raise UserError(f"{_part_in_words(name, space)} has a bound that is no number.")
        return None
    else:
        raise _refusal(name, space)
    most = max(options.sizes, default=0)
    if not most:
        raise _refusal(name, space)
    if most > MOST_OPTIONS:
        raise UserError(
            f"{_part_in_words(name, space)} has a choice of {most:,} options, each of which would be an input of the "
            f"model: at most {MOST_OPTIONS:,} are possible, so make it a Box of reals with a wrapper."
        )
    return options


def _refusal(name: str, space: Space) -> UserError:
    return UserError(f"{_part_in_words(name, space)} is not supported: it would have to be {SUPPORTED_ACTIONS}.")


def _part_in_words(name: str, space: Space) -> str:
    if name:
        return f"The part '{name}' of the environment's action, {space},"
    return f"The environment's action space {space}"


def _composite_converter(space: Space, converters: Iterator[Converter]) -> Converter:
    """Return the converter of a Dict or Tuple, given the converters of its parts in their order."""
    if isinstance(space, spaces.Dict):
        named = {key: _composite_converter(inner, converters) for key, inner in space.spaces.items()}
        return lambda stored: {key: convert(stored) for key, convert in named.items()}
    if isinstance(space, spaces.Tuple):
        inside = [_composite_converter(inner, converters) for inner in space.spaces]
        return lambda stored: tuple(convert(stored) for convert in inside)
    return next(converters)


def _slice_converter(part: Part) -> Converter:
    """Return the function that takes a part's numbers out of a stored action and converts them."""
    convert, first, last = _part_converter(part), part.first, part.first + part.width
    if isinstance(part.space, spaces.Discrete):
        return lambda stored: convert(stored[first])
    return lambda stored: convert(stored[first:last])


def _part_converter(part: Part) -> Converter:
    if isinstance(part.space, spaces.Discrete):
        start = int(part.space.start)
        return lambda stored: int(stored) + start
    if part.options:
        starts, shape, dtype = (
            part.options.starts.astype(np.int64),
            part.options.starts.shape,
            part.options.starts.dtype,
        )
        # In int64, since a smaller type might overflow before the start is added.
        return lambda stored: np.asarray(stored.reshape(shape).astype(np.int64) + starts).astype(dtype)
    assert isinstance(part.space, spaces.Box)
    low, high = part.space.low, part.space.high
    return lambda stored: np.asarray(np.minimum(np.maximum(stored.reshape(low.shape).astype(low.dtype), low), high))
