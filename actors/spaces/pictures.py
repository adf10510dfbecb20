"""Pictures: which Box is one, and how it is converted.

The rule, which docs/environments.md states in words:

                    dtype      bounds            shape
    a picture       uint8      0, 255            (H, W), (H, W, C)     H, W >= 16 and C <= 16, C < H, W
                    reals      0, 1 or 0, 255    (H, W, C)             likewise
    a vector        any        any               (), (D,)
                    reals      any               two or more axes, of which at most one is 16 or longer, and not three
                                                 axes with the bounds of a picture
                    integers   over 256 values   two or more axes, of which at most one is 16 or longer
    ambiguous        everything else

What is ambiguous is refused until the settings name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entries import Entry, Path, bounds_in_words, shape_in_words
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.process_log import warn_once

LEAST_SIDE = 16
"""Least height and width of a picture: nothing is seen in a smaller one, and no encoder takes it."""
MOST_CHANNELS = 16
"""A longer last axis is hardly one of channels."""
MOST_SYMBOLS = 256
"""Integers with at most this many values may be symbols, as in a board, rather than quantities."""
UNBOUNDED = 1e30
"""A bound beyond this is none: some environments write the greatest float32 for infinity."""
ROUNDED_AWAY = 0.5
"""A value this far outside 0-255 still becomes the right byte."""
CLIPPED = 25.5
"""Up to this far outside, a tenth of the range, a value is clipped with one warning, as interpolation overshoots;
further outside, the picture contradicts its space."""
CV2_CHANNELS = 4
"""Most channels for which `cv2.resize` averages areas in one call."""


def is_picture(space: spaces.Box) -> bool:
    """Return whether a Box is certainly a picture."""
    axes = len(space.shape)
    if not ((_is_bytes(space) and axes in (2, 3)) or (axes == 3 and _is_unit_real(space))):
        return False
    height, width, channels = (*space.shape, 1)[:3]
    return min(height, width) >= LEAST_SIDE and channels <= MOST_CHANNELS and channels < min(height, width)


def why_ambiguous(space: spaces.Box) -> str:
    """Return why a Box may or may not be a picture; an empty string if it is certain."""
    axes = len(space.shape)
    if axes < 2 or is_picture(space):
        return ""
    if sum(length >= LEAST_SIDE for length in space.shape) < 2:
        if is_real(space) and not (axes == 3 and _is_unit_real(space)):
            return ""
        if not is_real(space) and int(space.high.max()) - int(space.low.min()) + 1 > MOST_SYMBOLS:
            return ""
    if axes > 3:
        return "a picture has (H, W) or (H, W, C); a stack becomes one by joining its channels in a wrapper of your own"
    if is_real(space) and not _is_unit_real(space):
        return "a picture's reals are from 0 to 1 or from 0 to 255"
    if is_real(space) and axes == 2:
        return "reals with two axes may be a matrix"
    if not is_real(space) and not _is_bytes(space):
        return "whole numbers other than bytes from 0 to 255 may be quantities or symbols"
    height, width, channels = picture_shape(space.shape)
    if min(height, width) < LEAST_SIDE:
        return f"it is less than {LEAST_SIDE} high or wide, as boards and grids of symbols are"
    if _is_channels_first(space.shape):
        return "its channels seem to come first, and pictures are (H, W, C)"
    return f"{channels} channels are many for a picture of {height}×{width}"


def can_be_picture(space: spaces.Box) -> bool:
    """Return whether a Box can be read as a picture where the settings say so: it has finite bounds."""
    bounds = np.abs(np.stack([space.low, space.high]).astype(np.float64))
    return len(space.shape) in (2, 3) and bool((bounds < UNBOUNDED).all())


def is_real(space: spaces.Box) -> bool:
    """Return whether a Box is of floating-point numbers."""
    return bool(np.issubdtype(space.dtype, np.floating))


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a picture's shape as (H, W, C)."""
    if len(shape) == 2:
        return (*shape, 1)
    first, middle, last = shape
    return (middle, last, first) if _is_channels_first(shape) else (first, middle, last)


def picture_entry(space: spaces.Box, name: str, path: Path, image_size: int, grey: bool) -> Entry:
    """Return the entry of a picture of the shape (H, W), (H, W, C) or (C, H, W).

    Channels are the shorter one of the first and the last axis, and the last if both are alike. Values other than bytes
    from 0 to 255 are scaled to them from the declared bounds, and rounded.

    Raises:
        UserError: if it should become grey and has neither 1 nor 3 channels.
    """
    first = _is_channels_first(space.shape)
    full = picture_shape(space.shape)
    height, width, channels = full
    if grey and channels not in (1, 3):
        raise UserError(f"env.grey true needs pictures of 3 channels (or 1); '{name}' has {channels}.")
    side = (image_size, image_size) if image_size else (height, width)
    resize, to_grey = side != (height, width), grey and channels == 3
    to_bytes = None if _is_bytes(space) else _byte_converter(space, name)
    declared, dtype = space.shape, space.dtype

    def convert(value: Any) -> np.ndarray:
        picture = np.asarray(value)
        if picture.shape != declared or picture.dtype != dtype:
            raise ValueError(
                f"the observation '{name}' is {picture.dtype} {picture.shape}, but the space says {dtype} {declared}"
            )
        if to_bytes is not None:
            picture = to_bytes(picture)
        picture = np.ascontiguousarray(np.moveaxis(picture, 0, -1)) if first else picture.reshape(full)
        if resize:
            picture = resize_picture(picture, side)
        return make_grey(picture) if to_grey else picture

    source = f"{space.dtype} {shape_in_words(space.shape)}{', channels first' if first else ''}"
    if to_bytes is not None:
        source += f" from {bounds_in_words(space)}, brought to 0-255"
    spec = ObservationSpec(name, (*side, 1 if grey else channels), "uint8")
    return Entry(spec, path, convert, "picture", source, np.array(0), np.array(255))


def resize_picture(picture: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """Return the picture (H, W, C) resized by area interpolation to (side[0], side[1], C), any C."""
    parts = [picture[..., first : first + CV2_CHANNELS] for first in range(0, picture.shape[-1], CV2_CHANNELS)]
    resized = [cv2.resize(part, side[::-1], interpolation=cv2.INTER_AREA).reshape(*side, -1) for part in parts]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=-1)


def make_grey(picture: np.ndarray) -> np.ndarray:
    """Return the picture (H, W, 3) as (H, W, 1)."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] < shape[2]


def _is_bytes(space: spaces.Box) -> bool:
    """Return whether these are bytes from 0 to 255, which are stored unchanged."""
    return space.dtype == np.uint8 and bool(np.all(space.low == 0) and np.all(space.high == 255))


def _is_unit_real(space: spaces.Box) -> bool:
    """Return whether these are reals from 0 to 1 or from 0 to 255."""
    full = np.all(space.high == 1) or np.all(space.high == 255)
    return is_real(space) and bool(np.all(space.low == 0) and full)


def _byte_converter(space: spaces.Box, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scales a picture's values to bytes; it refuses NaN and values far outside the bounds."""
    if space.dtype == bool:
        return lambda picture: picture.view(np.uint8) * np.uint8(255)
    exact: Any = np.float64 if space.dtype == np.float64 else np.float32
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if np.ptp(low) == np.ptp(high) == 0:  # subtracting a scalar is faster than subtracting an array
        low, high = low.reshape(-1)[0:1], high.reshape(-1)[0:1]
    scale = (255 / np.where(high > low, high - low, 1.0)).astype(exact)
    low = low.astype(exact)
    has_offset = low.any()

    def to_bytes(picture: np.ndarray) -> np.ndarray:
        values = picture.astype(exact, copy=False)
        scaled = (values - low if has_offset else values) * scale
        if not (scaled.min() >= -ROUNDED_AWAY and scaled.max() < 255 + ROUNDED_AWAY):  # negated: NaN is found too
            _report_outside(space, name, picture, scaled)
            scaled = scaled.clip(0, 255)
        return np.rint(scaled, out=scaled).astype(np.uint8)

    return to_bytes


def _report_outside(space: spaces.Box, name: str, picture: np.ndarray, scaled: np.ndarray) -> None:
    """Warn once that a picture's values lie a little outside their bounds; ValueError if one is NaN or far outside."""
    distance = np.nan_to_num(np.abs(scaled - 127.5), nan=np.inf)
    worst = np.unravel_index(np.argmax(distance), picture.shape)
    at = tuple(int(index) for index in worst)
    what = f"the observation '{name}' is {picture[worst]:g} at {at}, but its space says {bounds_in_words(space)}"
    if distance[worst] > 127.5 + CLIPPED:
        raise ValueError(what)
    warn_once(("outside", name), f"{what}: such values are clipped")
