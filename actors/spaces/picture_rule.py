"""The rule that says what a Box is; docs/environments.md states it in words.

                    dtype      bounds            shape
    a picture       uint8      0, 255            (H, W), (H, W, C)     H, W >= 16 and C <= 16, C < H, W
                    reals      0, 1 or 0, 255    (H, W, C)             likewise
    a vector        any        any               (), (D,)
                    reals      any               two or more axes, of which at most one is 16 or longer, and not three
                                                 axes with the bounds of a picture
                    integers   over 256 values   two or more axes, of which at most one is 16 or longer
    doubtful        everything else

What is doubtful is refused until the settings name it.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.picture_entry import channels_first, has_bounds, is_bytes, picture_shape

LEAST_SIDE = 16
"""A picture's sides are at least so long: nothing is seen in a smaller one, and no encoder takes it."""
MOST_CHANNELS = 16
"""A longer last axis is hardly one of channels."""
MOST_SYMBOLS = 256
"""Integers with at most so many values may stand for things, as in a board, and not for amounts."""


def is_picture(space: spaces.Box) -> bool:
    """Return whether a Box is a picture without any doubt."""
    axes = len(space.shape)
    return ((is_bytes(space) and axes in (2, 3)) or (axes == 3 and _is_unit_real(space))) and _fits(space.shape)


def why_doubtful(space: spaces.Box) -> str:
    """Return why it cannot be told what a Box is, or an empty string if it is a picture or a vector without doubt."""
    axes = len(space.shape)
    if axes < 2 or is_picture(space):
        return ""
    has_sides = sum(length >= LEAST_SIDE for length in space.shape) >= 2
    if _is_real(space):
        if not has_sides and not (axes == 3 and _is_unit_real(space)):
            return ""
    elif not has_sides and _values(space) > MOST_SYMBOLS:
        return ""
    return _stack(space) or _numbers(space) or _shape(space.shape)


def can_be_picture(space: spaces.Box) -> bool:
    """Return whether a Box can be read as a picture where the settings say so."""
    return len(space.shape) in (2, 3) and has_bounds(space)


def can_be_one_hot(space: spaces.Space[object]) -> bool:
    """Return whether the numbers of a space can be read as one-hots where the settings say so."""
    return not (isinstance(space, spaces.Box) and _is_real(space))


def _fits(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is (H, W) or (H, W, C) of a picture."""
    height, width, channels = (*shape, 1)[:3]
    return min(height, width) >= LEAST_SIDE and channels <= MOST_CHANNELS and channels < min(height, width)


def _is_real(space: spaces.Box) -> bool:
    return bool(np.issubdtype(space.dtype, np.floating))


def _is_unit_real(space: spaces.Box) -> bool:
    """Return whether the values are reals from 0 to 1 or from 0 to 255."""
    full = np.all(space.high == 1) or np.all(space.high == 255)
    return _is_real(space) and bool(np.all(space.low == 0) and full)


def _values(space: spaces.Box) -> int:
    return int(space.high.max()) - int(space.low.min()) + 1


def _stack(space: spaces.Box) -> str:
    if len(space.shape) <= 3:
        return ""
    return "a picture has (H, W) or (H, W, C), and a stack becomes one by joining its channels in a wrapper of your own"


def _numbers(space: spaces.Box) -> str:
    """Return what speaks against a picture in a space's numbers, or an empty string."""
    if _is_real(space):
        if not _is_unit_real(space):
            return "a picture's reals are from 0 to 1 or from 0 to 255"
        return "reals with two axes may be a matrix" if len(space.shape) == 2 else ""
    if not is_bytes(space):
        return "whole numbers other than bytes from 0 to 255 may be amounts or symbols"
    return ""


def _shape(shape: tuple[int, ...]) -> str:
    """Return what speaks against a picture in a shape."""
    height, width, channels = picture_shape(shape)
    if min(height, width) < LEAST_SIDE:
        return f"it is less than {LEAST_SIDE} high or wide, as boards and grids of symbols are"
    if channels_first(shape):
        return "its channels seem to come first, and pictures are (H, W, C)"
    return f"{channels} channels are many for a picture of {height}×{width}"
