"""Observation spaces: which entries an observation has, and reading them off it.

picture_rule.py    what a Box is, where nobody says it
named_entries.py   what the settings say of entries by name
picture_entry.py, vector_entry.py   how each kind of entry is converted
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces import picture_rule
from dreamfleet.actors.spaces.entry import Entry, Kind, shown_bounds
from dreamfleet.actors.spaces.named_entries import NOTHING_NAMED, NamedEntries
from dreamfleet.actors.spaces.picture_entry import picture_entry, picture_shape
from dreamfleet.actors.spaces.vector_entry import one_hot_entry, one_hot_width, vector_entry
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import RESERVED_NAMES
from dreamfleet.common.process_log import log_once, warn_once

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, and Dict and Tuple of these"
WIDE_ONE_HOT = 4096
"""A wider one-hot is warned of."""

Leaf = tuple[tuple[Any, ...], spaces.Space[Any]]


def list_entries(
    space: spaces.Space[Any], image_size: int, grey: bool, named: NamedEntries = NOTHING_NAMED
) -> list[Entry]:
    """Return the entries of the observations of this space.

    A Box is what the settings say, else what `picture_rule` says. A Discrete or MultiDiscrete becomes one-hots, a
    MultiBinary bits, as Gymnasium flattens them. An observation that is no Dict or Tuple is called "image" or "vector";
    an entry of nested ones by its keys and indices, joined by "_". Text is left out, with a warning.

    Args:
        space: the environment's observation space.
        image_size: side to which images are resized; 0 leaves them.
        grey: whether images become grey.
        named: entries of which the settings say what they are.

    Raises:
        UserError: if a part of the space is not supported or doubtful, or its name cannot be used.
    """
    leaves = [leaf for leaf in _leaves(space, ()) if not _is_left_out(*leaf)]
    if not leaves:
        raise UserError(f"The observation space {space} is empty: a model needs something to look at.")
    named.check_names(_name(path) for path, _ in leaves)
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


def announce_entries(entries: list[Entry]) -> None:
    """Say once what each entry was taken for, and which of them are wide."""
    log_once(f"observations: {', '.join(map(str, entries))}")
    for entry in entries:
        width = entry.spec.shape[0]
        if entry.kind == "one_hot" and width > WIDE_ONE_HOT:
            log_once(
                f"the observation '{entry.spec.name}' is a one-hot of {width:,} numbers, with a weight of the first "
                "layer for each number and unit: env.vectors takes its plain numbers instead",
                logging.WARNING,
            )


class EntryReader:
    """Makes of the environment's observation a dictionary of pictures and vectors.

    Args:
        entries: what it reads.
        space: the environment's observation space.
    """

    def __init__(self, entries: list[Entry], space: spaces.Space[Any]) -> None:
        self._parts = [(entry.spec.name, entry.path, entry.convert) for entry in entries]
        self._space = space
        self._has_read = False

    def __call__(self, observation: Any) -> dict[str, np.ndarray]:
        """Return the entries by name.

        Raises:
            ValueError: if one is not as its space says; the sentence names it.
        """
        if not self._has_read:
            self._has_read = True
            _tell_undeclared(observation, self._space, ())
        return {name: convert(_at(observation, path, name)) for name, path, convert in self._parts}


def entry_reader(entries: list[Entry], space: spaces.Space[Any]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return the function that makes of the environment's observation a dictionary of images and vectors."""
    if len(entries) == 1 and not entries[0].path:
        name, convert = entries[0].spec.name, entries[0].convert
        return lambda observation: {name: convert(observation)}
    return EntryReader(entries, space)


def entry_space(entries: list[Entry]) -> spaces.Dict:
    """Return the space of what `entry_reader` reads, with the bounds that the environment declares."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for entry in entries:
        dtype: Any = np.dtype(entry.spec.dtype)
        low, high = (np.broadcast_to(bound.astype(dtype), entry.spec.shape) for bound in (entry.low, entry.high))
        boxes[entry.spec.name] = spaces.Box(low, high, entry.spec.shape, dtype.type)
    return spaces.Dict(boxes)


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...]) -> list[Leaf]:
    """Return all spaces inside nested Dicts and Tuples, each with the keys and indices that lead to it."""
    if isinstance(space, spaces.Dict):
        return [found for key, part in space.spaces.items() for found in _leaves(part, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [found for index, part in enumerate(space.spaces) for found in _leaves(part, (*path, index))]
    return [(path, space)]


def _name(path: tuple[Any, ...]) -> str:
    return "_".join(map(str, path))


def _shown_name(path: tuple[Any, ...]) -> str:
    return f"observation '{_name(path)}'" if path else "observation"


def _is_left_out(path: tuple[Any, ...], space: spaces.Space[Any]) -> bool:
    """Return whether a space is of text, which no model here reads, and say so."""
    if space.dtype is None or space.dtype.kind != "U":  # Text, and spaces of packages' own such as MiniGrid's missions
        return False
    log_once(
        f"the {_shown_name(path)} is text ({type(space).__name__}) and is left out: models here do not read it",
        logging.WARNING,
    )
    return True


def _entry(space: spaces.Space[Any], path: tuple[Any, ...], image_size: int, grey: bool, named: NamedEntries) -> Entry:
    """Return a space's entry.

    Raises:
        UserError: if it is not supported, doubtful, or not what the settings say.
    """
    name = _name(path)
    kind = _kind(space, path, named)
    if kind == "picture":
        assert isinstance(space, spaces.Box)
        return picture_entry(space, name if path else "image", path, image_size, grey)
    make = one_hot_entry if kind == "one_hot" else vector_entry
    return make(space, name if path else "vector", path)


def _kind(space: spaces.Space[Any], path: tuple[Any, ...], named: NamedEntries) -> Kind:
    """Return what an entry is: what the settings say, or else what its space tells."""
    shown, said = _shown_name(path), named.kind(_name(path))
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        hint = " gymnasium.wrappers.FilterObservation leaves out a part of a Dict." if path else ""
        raise UserError(
            f"The environment's {shown} is {space}, which is not supported: it would have to be one of "
            f"{SUPPORTED_OBSERVATIONS}.{hint}"
        )
    if isinstance(space, spaces.Box) and 0 in space.shape:
        raise UserError(f"'{_name(path) or 'observation'}' has the shape {space.shape}: there is nothing in it.")
    if said == "picture" and not (isinstance(space, spaces.Box) and picture_rule.can_be_picture(space)):
        raise UserError(
            f"{named.list_of(said)} names the {shown}, which is {_describe(space)}: a picture is a Box of two or three "
            "axes with finite bounds, from which its values are brought to 0-255."
        )
    if said == "one_hot" and not picture_rule.can_be_one_hot(space):
        raise UserError(f"{named.list_of(said)} names the {shown}, which is {_describe(space)}, not whole numbers.")
    if said:
        return said
    if not isinstance(space, spaces.Box):
        return "vector" if isinstance(space, spaces.MultiBinary) else "one_hot"
    doubt = picture_rule.why_doubtful(space)
    if doubt:
        raise UserError(
            f"The {shown} is {_describe(space)}, and whether that is a picture must be said, since {doubt}: "
            f"{_choices(space, path, named)}."
        )
    return "picture" if picture_rule.is_picture(space) else "vector"


def _choices(space: spaces.Box, path: tuple[Any, ...], named: NamedEntries) -> str:
    """Return the flags that decide what a doubtful Box is, each with what it makes of it."""
    name, flags = _name(path), []
    if picture_rule.can_be_picture(space):
        height, width, channels = picture_shape(space.shape)
        is_one = "channel" if channels == 1 else "channels"
        flags.append(f"{named.flag('picture', name)} takes it for one of {height}×{width} with {channels} {is_one}")
    flags.append(f"{named.flag('vector', name)} for {int(np.prod(space.shape)):,} plain numbers")
    if picture_rule.can_be_one_hot(space) and one_hot_width(space) <= WIDE_ONE_HOT:
        flags.append(f"{named.flag('one_hot', name)} for one-hots of {one_hot_width(space):,} numbers")
    return ", ".join(flags[:-1]) + (" and " if flags[:-1] else "") + flags[-1]


def _describe(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box):
        return f"{space.dtype} {space.shape} from {shown_bounds(space)}"
    return str(space)


def _tell_undeclared(observation: Any, space: spaces.Space[Any], path: tuple[Any, ...]) -> None:
    """Warn of what an observation has beyond its space."""
    if not isinstance(space, spaces.Dict) or not isinstance(observation, dict):
        return
    for key, part in observation.items():
        if key in space.spaces:
            _tell_undeclared(part, space.spaces[key], (*path, key))
        else:
            shown = _name((*path, key))
            warn_once(("undeclared", shown), f"'{shown}' is shown but not in the observation space: it is left out")


def _at(observation: Any, path: tuple[Any, ...], name: str) -> Any:
    """Return the part of nested dictionaries and tuples that the keys and indices lead to."""
    try:
        for key in path:
            observation = observation[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the observation lacks '{name}'") from error
    return observation
