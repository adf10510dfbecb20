"""Entries, the single arrays of an observation, and what the settings say of them by name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.settings.environment import EnvironmentSettings

Convert = Callable[[Any], np.ndarray]
Path = tuple[Any, ...]
Kind = Literal["picture", "vector", "one_hot"]
"""How an entry is read; a one-hot is stored as a vector of 0 and 1."""
BARE_NAMES = ("image", "vector")
"""An observation that is no Dict or Tuple answers to both names, whichever it gets."""


@dataclass(frozen=True)
class Entry:
    """One entry of an observation.

    Attributes:
        spec: its name, and what is stored of it.
        path: the keys and indices that lead to it in nested Dicts and Tuples; empty if it is the whole observation.
        convert: makes of the environment's value the picture (H, W, C) in uint8 or the vector (D,) in float32.
        source: type, shape and bounds in the environment, for messages.
        low: lower bounds of what is stored, a scalar or an array of the spec's shape; `high` likewise.
    """

    spec: ObservationSpec
    path: Path
    convert: Convert
    kind: Kind
    source: str
    low: np.ndarray
    high: np.ndarray

    def __str__(self) -> str:
        """Return it in words: "image 64×64×3 (picture: uint8 96×96×3)"."""
        name = self.spec.name if self.spec.name.isidentifier() else f"'{self.spec.name}'"
        return f"{name} {shape_in_words(self.spec.shape)} ({self.kind.replace('_', '-')}: {self.source})"


@dataclass(frozen=True)
class NamedEntries:
    """The names that the user listed under env.pictures, env.vectors and env.one_hot.

    `prefix` begins the names of these lists: `env.` for settings, nothing for flags of `replay import`.
    """

    pictures: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    prefix: str = "env."

    @staticmethod
    def of(settings: EnvironmentSettings) -> NamedEntries:
        """Return those of an environment's settings."""
        return NamedEntries(settings.pictures, settings.vectors, settings.one_hot)

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The lists that are not empty, by their names."""
        return {listed: names for listed, names in self._lists().values() if names}

    def kind(self, name: str) -> Kind | None:
        """Return the kind that the user gave an entry; `name` is empty if the entry is the whole observation."""
        return next((kind for kind, (_, names) in self._lists().items() if set(_aliases(name)) & set(names)), None)

    def list_of(self, kind: Kind) -> str:
        """Return the name of the list of this kind."""
        return self._lists()[kind][0]

    def flag(self, kind: Kind, name: str) -> str:
        """Return the flag that adds an entry to the list of this kind."""
        listed, names = self._lists()[kind]
        added = [*names, name or ("image" if kind == "picture" else "vector")]
        listing = ", ".join(added)
        return f"--{listed} {shlex.quote(listing if len(added) == 1 else f'[{listing}]')}"

    def check_names(self, known: Iterable[str]) -> None:
        """Refuse names that no entry has; `known` has an empty one for an entry that is the whole observation.

        Raises:
            UserError: naming the first, its list and the nearest name that exists.
        """
        existing = [alias for name in known for alias in _aliases(name)]
        for listed, names in self.lists.items():
            for name in names:
                if name not in existing:
                    hint = nearest(name, existing) or f" It has: {', '.join(existing)}."
                    raise UserError(f"{listed} names '{name}', which the observation does not have.{hint}")

    def _lists(self) -> dict[Kind, tuple[str, tuple[str, ...]]]:
        return {
            "picture": (f"{self.prefix}pictures", self.pictures),
            "vector": (f"{self.prefix}vectors", self.vectors),
            "one_hot": ("env.one_hot" if self.prefix else "one-hot", self.one_hot),
        }


NOTHING_NAMED = NamedEntries()
"""Leaves all to the rule in `pictures`."""


def leaf_spaces(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """Yield all spaces inside nested Dicts and Tuples, each with the keys and indices that lead to it."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from leaf_spaces(part, (*path, key))
    else:
        yield path, space


def leaf_name(path: Path) -> str:
    """Return the name of a leaf, empty for the whole space."""
    return "_".join(map(str, path))


def shape_in_words(shape: tuple[int, ...]) -> str:
    """Return a shape as in "96×96×3"."""
    return "×".join(map(str, shape))


def bounds_in_words(space: spaces.Box) -> str:
    """Return the bounds of a space as in "-1 to 1"."""
    return f"{space.low.min():g} to {space.high.max():g}"


def _aliases(name: str) -> tuple[str, ...]:
    return (name,) if name else BARE_NAMES
