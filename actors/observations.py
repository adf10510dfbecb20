"""Observation spaces: which entries an observation has, and how each becomes an image or a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from gymnasium import spaces

from dreamfleet.common.errors import UserError
from dreamfleet.common.spaces import ObservationSpec
from dreamfleet.common.steps import RESERVED_NAMES

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete and Dict of these"
Convert = Callable[[Any], np.ndarray]
_CV2_CHANNELS = 4
"""`cv2.resize` averages areas for at most so many channels at once."""


@dataclass(frozen=True)
class Entry:
    """One entry of an observation.

    Attributes:
        spec: what it is called and what is stored of it.
        path: the keys that lead to it in a (nested) dictionary; empty if the observation is the entry itself.
        convert: makes of the environment's value the image (H, W, C) in uint8 or the vector (D,) in float32.
    """

    spec: ObservationSpec
    path: tuple[str, ...]
    convert: Convert


def list_entries(space: spaces.Space[Any], image_size: int, grey: bool) -> list[Entry]:
    """Return the entries of the observations of this space.

    Images are a Box (H, W) or (H, W, C) in uint8, or a Box (H, W, C) of another type whose bounds are exactly 0 and 1,
    or 0 and 255, which is brought to 0-255 and rounded. Any other Box is a vector, flattened. A Discrete, MultiBinary
    or MultiDiscrete becomes a vector as Gymnasium flattens it: one-hots and bits. An observation that is no Dict is
    called "image" or "vector"; an entry of nested Dicts by its keys joined by "_".

    Args:
        space: the environment's observation space.
        image_size: side to which images are resized; 0 leaves them.
        grey: whether images become grey.

    Raises:
        UserError: if a part of the space is not supported, or its name cannot be used.
    """
    entries: list[Entry] = []
    for path, leaf in _leaves(space, ()):
        name = "_".join(path)
        shown = name or "observation"
        entry = _image_entry(leaf, path, image_size, grey) if _is_image(leaf, shown) else _vector_entry(leaf, path)
        if name in RESERVED_NAMES:
            raise UserError(f"The observation '{name}' cannot be called so: the step has its own '{name}'. Rename it.")
        if entry.spec.name in [other.spec.name for other in entries]:
            raise UserError(f"Two observations would be called '{name}' once nested Dicts are joined. Rename one.")
        entries.append(entry)
    if not entries:
        raise UserError(f"The observation space {space} is empty: a model needs something to look at.")
    return entries


def entry_reader(entries: list[Entry]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return the function that makes of the environment's observation a dictionary of images and vectors."""
    if len(entries) == 1 and not entries[0].path:
        name, convert = entries[0].spec.name, entries[0].convert
        return lambda observation: {name: convert(observation)}
    return lambda observation: {entry.spec.name: entry.convert(_at(observation, entry.path)) for entry in entries}


def entry_space(entries: list[Entry]) -> spaces.Dict:
    """Return the space of what `entry_reader` reads."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for entry in entries:
        low, high = (0, 255) if entry.spec.is_image else (-np.inf, np.inf)
        boxes[entry.spec.name] = spaces.Box(low, high, entry.spec.shape, np.dtype(entry.spec.dtype).type)
    return spaces.Dict(boxes)


def _leaves(space: spaces.Space[Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """Return all spaces inside nested Dicts, each with the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        return [found for key, part in space.spaces.items() for found in _leaves(part, (*path, str(key)))]
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        return [(path, space)]
    name = "_".join(path)
    shown = f"observation '{name}'" if name else "observation"
    hint = (
        " gymnasium.wrappers.FilterObservation, in a function of your own, leaves out a part of a Dict." if name else ""
    )
    raise UserError(
        f"The environment's {shown} is {space}, which is not supported: it would have to be one of "
        f"{SUPPORTED_OBSERVATIONS}.{hint}"
    )


def _is_image(space: spaces.Space[Any], name: str) -> bool:
    """Return whether this space holds pictures, and refuse what is one but cannot be read."""
    if not isinstance(space, spaces.Box):
        return False
    if 0 in space.shape:
        raise UserError(f"'{name}' has the shape {space.shape}: there is nothing in it.")
    bytes_ = space.dtype == np.uint8
    if bytes_ and len(space.shape) > 3:
        raise UserError(
            f"'{name}' is a Box of bytes with the shape {space.shape}: a picture has (H, W) or (H, W, C). "
            "A stack of pictures becomes one by joining its channels, in a function of your own."
        )
    image = (bytes_ and len(space.shape) >= 2) or (len(space.shape) == 3 and _scale(space) is not None)
    if image and len(space.shape) == 3 and space.shape[0] <= 4 and space.shape[2] > 16:
        raise UserError(
            f"'{name}' has the shape {space.shape}, which looks like channels first: pictures are (H, W, C) here. "
            "Transpose it, for example with gymnasium.wrappers.TransformObservation in a function of your own."
        )
    return image


def _scale(space: spaces.Box) -> int | None:
    """Return what brings the values to 0-255: 1 or 255; None if the bounds are those of no picture."""
    if np.all(space.low == 0) and np.all(space.high == 255):
        return 1
    if np.issubdtype(space.dtype, np.floating) and np.all(space.low == 0) and np.all(space.high == 1):
        return 255
    return None


def _image_entry(space: spaces.Space[Any], path: tuple[str, ...], image_size: int, grey: bool) -> Entry:
    """Return the entry of a picture: checked, made bytes, resized by area interpolation, made grey."""
    assert isinstance(space, spaces.Box)
    name = "_".join(path) or "image"
    height, width, channels = (*space.shape, 1)[:3]
    if grey and channels not in (1, 3):
        raise UserError(f"env.grey true needs pictures of 3 channels (or 1); '{name}' has {channels}.")
    side = (image_size, image_size) if image_size else (height, width)
    resize, to_grey = side != (height, width), grey and channels == 3
    scale = None if space.dtype == np.uint8 else _scale(space)
    declared, dtype, full = space.shape, space.dtype, (height, width, channels)

    def convert(value: Any) -> np.ndarray:
        picture = np.asarray(value)
        if picture.shape != declared or picture.dtype != dtype:
            raise ValueError(
                f"the observation '{name}' is {picture.dtype} {picture.shape}, but the space says {dtype} {declared}"
            )
        if scale is not None:
            picture = np.rint(picture * scale).clip(0, 255).astype(np.uint8)
        picture = picture.reshape(full)
        if resize:
            picture = _resize(picture, side)
        return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] if to_grey else picture

    return Entry(ObservationSpec(name, (*side, 1 if grey else channels), "uint8"), path, convert)


def _resize(picture: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """Return the picture (H, W, C) resized to (side[0], side[1], C), any C."""
    parts = [picture[..., first : first + _CV2_CHANNELS] for first in range(0, picture.shape[-1], _CV2_CHANNELS)]
    resized = [cv2.resize(part, side[::-1], interpolation=cv2.INTER_AREA).reshape(*side, -1) for part in parts]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=-1)


def _vector_entry(space: spaces.Space[Any], path: tuple[str, ...]) -> Entry:
    """Return the entry of a vector: flattened, in float32."""
    name = "_".join(path) or "vector"
    size = spaces.flatdim(space)

    def convert_box(value: Any) -> np.ndarray:
        vector = np.asarray(value, np.float32)
        if vector.shape != space.shape:
            raise ValueError(f"the observation '{name}' has the shape {vector.shape}, but the space says {space.shape}")
        return vector.reshape(size)

    def convert_choice(value: Any) -> np.ndarray:
        if not space.contains(value):
            raise ValueError(f"the observation '{name}' is {value!r}, which is not in {space}")
        return np.asarray(spaces.flatten(space, value), np.float32)

    return Entry(
        ObservationSpec(name, (size,), "float32"),
        path,
        convert_box if isinstance(space, spaces.Box) else convert_choice,
    )


def _at(observation: Any, path: tuple[str, ...]) -> Any:
    """Return the part of a nested dictionary that the keys lead to."""
    for key in path:
        observation = observation[key]
    return observation
