"""Action spaces: what of them is stored, and how a stored action becomes the environment's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.action_parts import Options, Part, Space, list_parts
from dreamfleet.common.acting.policy import RandomPolicy
from dreamfleet.common.experience.spaces import ActionKind, ActionSpec

__all__ = ["action_converter", "describe_action", "null_action", "random_actions"]

Converter = Callable[[np.ndarray], Any]


def describe_action(space: Space) -> ActionSpec:
    """Return what is stored of an action of this space: of the simplest kind that holds all its parts.

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
        return _composed(space, iter([lambda stored: stored]), iter(parts))
    return _composed(space, (_taken(part) for part in parts), iter(parts))


def random_actions(space: Space, seed: int) -> Iterator[Any]:
    """Give actions by chance for ever, as a run's first ones are.

    A space's own `sample` fails where a bound is a type's largest number.
    """
    convert, policy = action_converter(space), RandomPolicy(describe_action(space), 1, seed)
    while True:
        yield convert(policy.act({}, np.zeros(1, bool))[0])


def null_action(space: Space) -> Any:
    """Return the action that does nothing: the first option of a choice, zeros of a Box, or its nearest bound.

    A Dict or Tuple has that of each part.
    """
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


def _composed(space: Space, take: Iterator[Converter], parts: Iterator[Part]) -> Converter:
    """Return what makes a whole action of a stored row.

    Args:
        space: of the whole, or of a part of it.
        take: for each part what takes its numbers out of the row.
        parts: in their order.
    """
    if isinstance(space, spaces.Dict):
        named = {key: _composed(inner, take, parts) for key, inner in space.spaces.items()}
        return lambda stored: {key: convert(stored) for key, convert in named.items()}
    if isinstance(space, spaces.Tuple):
        inside = [_composed(inner, take, parts) for inner in space.spaces]
        return lambda stored: tuple(convert(stored) for convert in inside)
    numbers, convert = next(take), _part_converter(next(parts))
    return lambda stored: convert(numbers(stored))


def _taken(part: Part) -> Converter:
    first, last = part.first, part.first + part.width
    if isinstance(part.space, spaces.Discrete):
        return lambda stored: stored[first]
    return lambda stored: stored[first:last]


def _part_converter(part: Part) -> Converter:
    """Return the function that turns a part's stored numbers into its own form."""
    if isinstance(part.space, spaces.Discrete):
        start = int(part.space.start)
        return lambda stored: int(stored) + start
    if part.options:
        return _choice_converter(part.options)
    assert isinstance(part.space, spaces.Box)
    low, high = part.space.low, part.space.high
    return lambda stored: np.asarray(np.minimum(np.maximum(stored.reshape(low.shape).astype(low.dtype), low), high))


def _choice_converter(options: Options) -> Converter:
    """Return what counts choices from their starts, in 64 bits: in few, a sum might not fit on its way."""
    starts, shape, dtype = options.starts.astype(np.int64), options.starts.shape, options.starts.dtype
    return lambda stored: np.asarray(stored.reshape(shape).astype(np.int64) + starts).astype(dtype)
