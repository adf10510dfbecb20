"""Pictures: channels brought last, values brought to bytes, resized by area, made grey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entry import Entry, shown_bounds, sizes
from dreamfleet.actors.spaces.picture_size import make_grey, resize_picture
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.process_log import warn_once

UNBOUNDED = 1e30
"""A bound beyond this is none: some environments write the greatest float32 for infinity."""
ROUNDED_AWAY = 0.5
"""So far outside 0-255 a value still becomes the right byte."""
CLIPPED = 25.5
"""So far outside, a tenth of the range, a value is clipped and told of once, as interpolation overshoots; further
outside, the picture is not what its space says."""


def picture_entry(space: spaces.Box, name: str, path: tuple[Any, ...], image_size: int, grey: bool) -> Entry:
    """Return the entry of a picture of the shape (H, W), (H, W, C) or (C, H, W).

    Channels are the shorter one of the first and the last axis, and the last if both are alike. What is not bytes from
    0 to 255 is brought to them from its declared bounds, and rounded.

    Raises:
        UserError: if it has another number of axes or no bounds, or cannot become grey.
    """
    first = channels_first(space.shape)
    full = picture_shape(space.shape)
    height, width, channels = full
    if grey and channels not in (1, 3):
        raise UserError(f"env.grey true needs pictures of 3 channels (or 1); '{name}' has {channels}.")
    side = (image_size, image_size) if image_size else (height, width)
    resize, to_grey = side != (height, width), grey and channels == 3
    to_bytes = None if is_bytes(space) else _byte_converter(space, name)
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

    source = f"{space.dtype} {sizes(space.shape)}{', channels first' if first else ''}"
    if to_bytes is not None:
        source += f" from {shown_bounds(space)}, brought to 0-255"
    spec = ObservationSpec(name, (*side, 1 if grey else channels), "uint8")
    return Entry(spec, path, convert, "picture", source, np.array(0), np.array(255))


def channels_first(shape: tuple[int, ...]) -> bool:
    """Return whether the first axis of this shape is that of the channels."""
    return len(shape) == 3 and shape[0] < shape[2]


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a picture's shape as (H, W, C)."""
    if len(shape) == 2:
        return (*shape, 1)
    first, middle, last = shape
    return (middle, last, first) if channels_first(shape) else (first, middle, last)


def is_bytes(space: spaces.Box) -> bool:
    """Return whether these are bytes from 0 to 255, which are stored as they are."""
    return space.dtype == np.uint8 and bool(np.all(space.low == 0) and np.all(space.high == 255))


def has_bounds(space: spaces.Box) -> bool:
    """Return whether all bounds are there, so that values can be brought to 0-255."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return bool((np.abs(low) < UNBOUNDED).all() and (np.abs(high) < UNBOUNDED).all())


def _byte_converter(space: spaces.Box, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes bytes of a picture's values, and refuses values that are none or far outside the bounds."""
    if space.dtype == bool:
        return lambda picture: picture.view(np.uint8) * np.uint8(255)
    exact: Any = np.float64 if space.dtype == np.float64 else np.float32
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if np.ptp(low) == np.ptp(high) == 0:  # one number is subtracted quicker than one for each pixel
        low, high = low.reshape(-1)[0:1], high.reshape(-1)[0:1]
    scale = (255 / np.where(high > low, high - low, 1.0)).astype(exact)
    low = low.astype(exact)
    begins = low.any()  # elsewhere than at 0

    def to_bytes(picture: np.ndarray) -> np.ndarray:
        values = picture.astype(exact, copy=False)
        scaled = (values - low if begins else values) * scale
        if not (scaled.min() >= -ROUNDED_AWAY and scaled.max() < 255 + ROUNDED_AWAY):  # so that NaN is found too
            _tell_outside(space, name, picture, scaled)
            scaled = scaled.clip(0, 255)
        return np.rint(scaled, out=scaled).astype(np.uint8)

    return to_bytes


def _tell_outside(space: spaces.Box, name: str, picture: np.ndarray, scaled: np.ndarray) -> None:
    """Say once that a picture's values lie a little outside their bounds.

    Raises:
        ValueError: if one is not a number or lies far outside.
    """
    distance = np.nan_to_num(np.abs(scaled - 127.5), nan=np.inf)
    worst = np.unravel_index(np.argmax(distance), picture.shape)
    at = tuple(int(index) for index in worst)
    what = f"the observation '{name}' is {picture[worst]:g} at {at}, but its space says {shown_bounds(space)}"
    if distance[worst] > 127.5 + CLIPPED:
        raise ValueError(what)
    warn_once(("outside", name), f"{what}: such values are clipped")
