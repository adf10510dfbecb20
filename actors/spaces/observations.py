"""Observation spaces: which entries an observation has, and how they are read from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.entries import (
    BARE_NAMES,
    NOTHING_NAMED,
    Entry,
    Kind,
    NamedEntries,
    Path,
    bounds_in_words,
    leaf_name,
    leaf_spaces,
)
from dreamfleet.actors.spaces.pictures import (
    can_be_picture,
    is_picture,
    is_real,
    picture_entry,
    picture_shape,
    why_ambiguous,
)
from dreamfleet.actors.spaces.vectors import VectorBounds, check_finite, one_hot_entry, one_hot_width, vector_entry
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import RESERVED_NAMES
from dreamfleet.common.process_log import log_once, warn_once

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict and Tuple of these"
WIDE_ONE_HOT = 4096
"""A wider one-hot is warned of."""
MOST_SYMBOL = 15
"""Pictures in which no byte is greater are nearly black, or hold symbols."""


def list_entries(
    space: spaces.Space[Any], image_size: int, grey: bool, named: NamedEntries = NOTHING_NAMED
) -> list[Entry]:
    """Return the entries of the observations of this space.

    A Box is what the settings say, else what the rule in `pictures` says. A Discrete or MultiDiscrete becomes one-hots,
    a MultiBinary bits, as Gymnasium flattens them. An observation that is no Dict or Tuple is called "image" or
    "vector"; an entry of nested ones by its keys and indices, joined by "_". Text is left out, with a warning.

    Args:
        image_size: side to which pictures are resized; 0 leaves them.
        named: entries whose kind the user gave.

    Raises:
        UserError: if a part of the space is not supported or ambiguous, or its name cannot be used.
    """
    leaves = [(path, leaf) for path, leaf in leaf_spaces(space) if not _is_text(leaf, path)]
    if not leaves:
        raise UserError(f"The observation space {space} is empty: a model needs something to look at.")
    named.check_names(leaf_name(path) for path, _ in leaves)
    entries: list[Entry] = []
    for path, leaf in leaves:
        entry = _entry(leaf, path, image_size, grey, named)
        name = entry.spec.name
        if name in RESERVED_NAMES:
            raise UserError(f"The observation '{name}' cannot be called so: the step has its own '{name}'. Rename it.")
        if name in [other.spec.name for other in entries]:
            raise UserError(f"Two observations would be called '{name}' once nested spaces are joined. Rename one.")
        entries.append(entry)
    return entries


def log_entries(entries: list[Entry]) -> None:
    """Log once how each entry is read, and warn of wide ones."""
    log_once(f"observations: {', '.join(map(str, entries))}")
    for entry in entries:
        width = entry.spec.shape[0]
        if entry.kind == "one_hot" and width > WIDE_ONE_HOT:
            log_once(
                f"the observation '{entry.spec.name}' is a one-hot of {width:,} numbers, with a weight of the first "
                "layer for each number and unit: env.vectors takes its plain numbers instead",
                logging.WARNING,
            )


def entry_reader(entries: list[Entry], space: spaces.Space[Any]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return the function that turns the environment's observation into a dictionary of pictures and vectors.

    It raises ValueError, naming the entry, if one contradicts its space. At its first call it warns of what the
    observation has beyond its space.
    """
    if len(entries) == 1 and not entries[0].path:
        name, convert = entries[0].spec.name, entries[0].convert
        return lambda observation: {name: convert(observation)}
    parts = [(entry.spec.name, entry.path, entry.convert) for entry in entries]
    has_read = False

    def read(observation: Any) -> dict[str, np.ndarray]:
        nonlocal has_read
        if not has_read:
            has_read = True
            _report_undeclared(observation, space, ())
        return {name: convert(_at(observation, path, name)) for name, path, convert in parts}

    return read


def entry_space(entries: list[Entry]) -> spaces.Dict:
    """Return the space of what `entry_reader` reads, with the bounds that the environment declares."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for entry in entries:
        dtype: Any = np.dtype(entry.spec.dtype)
        low, high = (np.broadcast_to(bound.astype(dtype), entry.spec.shape) for bound in (entry.low, entry.high))
        boxes[entry.spec.name] = spaces.Box(low, high, entry.spec.shape, dtype.type)
    return spaces.Dict(boxes)


def check_first_observations(
    space: spaces.Space[Any], observations: list[dict[str, np.ndarray]], pictures: tuple[str, ...] = ()
) -> None:
    """Check an environment's first converted observations, and warn of nearly black pictures that nobody named.

    Raises:
        ValueError: if a vector is not finite.
    """
    bounds = VectorBounds(space)
    stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    check_finite(stacked)
    for name, values in stacked.items():
        if values.dtype == np.float32:
            bounds.fault(name, values)
        elif 0 < values.max() <= MOST_SYMBOL and name not in pictures:
            log_once(
                f"the picture '{name}' holds no byte above {values.max()} at its first {len(observations)} steps, and "
                "is all but black: env.vectors or env.one_hot takes symbols",
                logging.WARNING,
            )


def _name_in_words(path: Path) -> str:
    return f"observation '{leaf_name(path)}'" if path else "observation"


def _is_text(space: spaces.Space[Any], path: Path) -> bool:
    """Return whether a space is of text, which no model here reads, and warn of it."""
    if space.dtype is None or space.dtype.kind != "U":  # Text, and packages' own spaces such as MiniGrid's missions
        return False
    kind = type(space).__name__
    log_once(
        f"the {_name_in_words(path)} is text ({kind}) and is left out: models here do not read it", logging.WARNING
    )
    return True


def _entry(space: spaces.Space[Any], path: Path, image_size: int, grey: bool, named: NamedEntries) -> Entry:
    kind = _kind(space, path, named)
    name = leaf_name(path) if path else BARE_NAMES[kind != "picture"]
    if kind == "picture":
        assert isinstance(space, spaces.Box)
        return picture_entry(space, name, path, image_size, grey)
    return one_hot_entry(space, name, path) if kind == "one_hot" else vector_entry(space, name, path)


def _kind(space: spaces.Space[Any], path: Path, named: NamedEntries) -> Kind:
    """Return how an entry is read: as the user said, or else as its space tells."""
    shown, given = _name_in_words(path), named.kind(leaf_name(path))
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        hint = " gymnasium.wrappers.FilterObservation leaves out a part of a Dict." if path else ""
        raise UserError(
            f"The environment's {shown} is {space}, which is not supported: it would have to be one of "
            f"{SUPPORTED_OBSERVATIONS}.{hint}"
        )
    box = space if isinstance(space, spaces.Box) else None
    if box and 0 in box.shape:
        raise UserError(f"'{leaf_name(path) or 'observation'}' has the shape {box.shape}: there is nothing in it.")
    described = f"{box.dtype} {box.shape} from {bounds_in_words(box)}" if box else str(space)
    if given == "picture" and not (box and can_be_picture(box)):
        raise UserError(
            f"{named.list_of(given)} names the {shown}, which is {described}: a picture is a Box of two or three "
            "axes with finite bounds, from which its values are brought to 0-255."
        )
    if given == "one_hot" and box and is_real(box):
        raise UserError(f"{named.list_of(given)} names the {shown}, which is {described}, not whole numbers.")
    if given:
        return given
    if box is None:
        return "vector" if isinstance(space, spaces.MultiBinary) else "one_hot"
    reason = why_ambiguous(box)
    if reason:
        raise UserError(
            f"The {shown} is {described}, and whether that is a picture must be said, since {reason}: "
            f"{_possible_flags(box, path, named)}."
        )
    return "picture" if is_picture(box) else "vector"


def _possible_flags(space: spaces.Box, path: Path, named: NamedEntries) -> str:
    """Return the flags that decide how a ambiguous Box is read, each with its result."""
    name, flags = leaf_name(path), []
    if can_be_picture(space):
        height, width, channels = picture_shape(space.shape)
        unit = "channel" if channels == 1 else "channels"
        flags.append(f"{named.flag('picture', name)} takes it for one of {height}×{width} with {channels} {unit}")
    flags.append(f"{named.flag('vector', name)} for {int(np.prod(space.shape)):,} plain numbers")
    if not is_real(space) and one_hot_width(space) <= WIDE_ONE_HOT:
        flags.append(f"{named.flag('one_hot', name)} for one-hots of {one_hot_width(space):,} numbers")
    return ", ".join(flags[:-1]) + (" and " if flags[:-1] else "") + flags[-1]


def _report_undeclared(observation: Any, space: spaces.Space[Any], path: Path) -> None:
    """Warn of what an observation has beyond its space."""
    if not isinstance(space, spaces.Dict) or not isinstance(observation, dict):
        return
    for key, part in observation.items():
        if key in space.spaces:
            _report_undeclared(part, space.spaces[key], (*path, key))
        else:
            name = leaf_name((*path, key))
            warn_once(("undeclared", name), f"'{name}' is shown but not in the observation space: it is left out")


def _at(observation: Any, path: Path, name: str) -> Any:
    """Return the part of nested dictionaries and tuples that the keys and indices lead to."""
    try:
        for key in path:
            observation = observation[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the observation lacks '{name}'") from error
    return observation
