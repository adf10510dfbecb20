"""What the settings say of entries by name: env.pictures, env.vectors and env.one_hot."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from dreamfleet.actors.spaces.entry import Kind
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.schema import EnvironmentSettings

BARE_NAMES = ("image", "vector")
"""An observation that is no Dict or Tuple answers to both names, whichever it gets."""


@dataclass(frozen=True)
class NamedEntries:
    """Entries of which the settings say what they are.

    Attributes:
        pictures: names of pictures.
        vectors: names of vectors of plain numbers.
        one_hot: names of whole numbers that become one-hots.
        prefix: what stands before the names of these lists: `env.` for settings, nothing for flags of `replay import`.
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
        """The lists that name anything, by what they are called."""
        return {listed: names for _, listed, names in self._lists() if names}

    def kind(self, name: str) -> Kind | None:
        """Return what an entry is said to be; `name` is empty where the observation is the entry itself."""
        return next((kind for kind, _, names in self._lists() if any(n in names for n in _names(name))), None)

    def list_of(self, kind: Kind) -> str:
        """Return what the list of this kind is called."""
        return next(listed for known, listed, _ in self._lists() if known == kind)

    def flag(self, kind: Kind, name: str) -> str:
        """Return the flag that takes an entry for this kind, beside those that are named already."""
        listed, names = next((listed, names) for known, listed, names in self._lists() if known == kind)
        added = [*names, name or ("image" if kind == "picture" else "vector")]
        listing = ", ".join(added)
        return f"--{listed} {shlex.quote(listing if len(added) == 1 else f'[{listing}]')}"

    def check_names(self, known: Iterable[str]) -> None:
        """Refuse names that are no entry's.

        Args:
            known: the names of all entries, an empty one for an observation that is the entry itself.

        Raises:
            UserError: naming the first, the list it stood in and the nearest name there is.
        """
        there = [alias for name in known for alias in _names(name)]
        for _, listed, names in self._lists():
            for name in names:
                if name not in there:
                    hint = nearest(name, there) or f" It has: {', '.join(there)}."
                    raise UserError(f"{listed} names '{name}', which the observation does not have.{hint}")

    def _lists(self) -> tuple[tuple[Kind, str, tuple[str, ...]], ...]:
        return (
            ("picture", f"{self.prefix}pictures", self.pictures),
            ("vector", f"{self.prefix}vectors", self.vectors),
            ("one_hot", "env.one_hot" if self.prefix else "one-hot", self.one_hot),
        )


NOTHING_NAMED = NamedEntries()
"""Leaves all to the rule."""


def _names(name: str) -> tuple[str, ...]:
    return (name,) if name else BARE_NAMES
