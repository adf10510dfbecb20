"""What an environment shows and takes, as plain data: no Gymnasium here, so that replay and learner need none."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

ActionKind = Literal["discrete", "multi_discrete", "box", "mixed"]


@dataclass(frozen=True)
class ObservationSpec:
    """One entry of an observation: an image (H, W, C) in uint8, or a vector (D,) in float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_image(self) -> bool:
        """Whether this entry is a picture rather than a vector."""
        return self.dtype == "uint8" and len(self.shape) == 3

    def __post_init__(self) -> None:
        """Make the shape a tuple of ints, also when it comes from JSON."""
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))


@dataclass(frozen=True)
class ActionSpec:
    """What an action is.

    Attributes:
        kind: "discrete" (one choice), "multi_discrete" (several choices), "box" (a vector of reals) or "mixed" (choices
            and, after them, reals).
        sizes: number of options of each choice; for a box, its number of dimensions alone.
        low: lower bounds of the reals, flat; empty without any.
        high: upper bounds of the reals, flat; empty without any.
        box_shape: the shape the environment wants a box action in; empty otherwise.
        names: what the environment calls each choice and then each real; empty where it has no names for them.
    """

    kind: ActionKind
    sizes: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    box_shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make tuples of lists, also when they come from JSON."""
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        object.__setattr__(self, "low", tuple(float(bound) for bound in self.low))
        object.__setattr__(self, "high", tuple(float(bound) for bound in self.high))
        object.__setattr__(self, "box_shape", tuple(int(size) for size in self.box_shape))
        object.__setattr__(self, "names", tuple(self.names))

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of options of each choice; empty for a box."""
        return () if self.kind == "box" else self.sizes

    @property
    def reals(self) -> int:
        """Number of reals; 0 for choices."""
        return self.sizes[0] if self.kind == "box" else len(self.low)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one stored action: () for discrete, else (choices + reals,)."""
        return () if self.kind == "discrete" else (len(self.choices) + self.reals,)

    @property
    def stored_dtype(self) -> str:
        """Type of a stored action: int32 for choices, float32 with reals; the choices' numbers are exact in it."""
        return "float32" if self.reals else "int32"

    @property
    def width(self) -> int:
        """Width of the action as the networks take it: the choices' one-hots side by side, then the reals."""
        return sum(self.choices) + self.reals

    @property
    def in_words(self) -> str:
        """The kind and how much of it, such as "multi_discrete of 2×3"."""
        if self.kind == "mixed":
            return f"mixed of {'×'.join(map(str, self.choices))} and {self.reals} reals"
        return f"{self.kind} of {'×'.join(map(str, self.sizes))}"

    def name_of(self, number: int) -> str:
        """Return what a choice, or a real after all choices, is called in messages."""
        return f"'{self.names[number]}'" if self.names else f"dimension {number}"


@dataclass(frozen=True)
class Spaces:
    """The observations and the action of one environment."""

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec

    def __post_init__(self) -> None:
        """Sort the observations by name, so that the order never depends on who built them."""
        object.__setattr__(self, "observations", tuple(sorted(self.observations, key=lambda spec: spec.name)))

    @property
    def images(self) -> tuple[ObservationSpec, ...]:
        """The entries that are pictures."""
        return tuple(spec for spec in self.observations if spec.is_image)

    @property
    def vectors(self) -> tuple[ObservationSpec, ...]:
        """The entries that are vectors."""
        return tuple(spec for spec in self.observations if not spec.is_image)

    def plain(self) -> dict[str, Any]:
        """Return them as plain data, infinite bounds as floats: what `StepFormat.identity` is made of."""
        data = asdict(self)
        if not self.action.names:  # which older versions did not know
            del data["action"]["names"]
        return data

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` takes back; infinities, which JSON lacks, are "inf" and "-inf"."""
        data: dict[str, Any] = _spell_infinities(self.plain())
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Spaces:
        """Rebuild the spaces from what `to_json` gave, or `plain`, which older versions wrote."""
        return Spaces(
            observations=tuple(ObservationSpec(**entry) for entry in data["observations"]),
            action=ActionSpec(**data["action"]),
        )


def _spell_infinities(data: Any) -> Any:
    """Return plain data with a string, which `float` reads, for each infinite number."""
    if isinstance(data, dict):
        return {key: _spell_infinities(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_spell_infinities(value) for value in data)
    return str(data) if isinstance(data, float) and math.isinf(data) else data


def first_difference(then: Spaces, now: Spaces) -> str | None:
    """Return in words the first entry in which two spaces differ, with both versions of it; None if they are equal."""
    before, after = _entries(then), _entries(now)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"its {name} was {before.get(name, 'not there')} and is now {after.get(name, 'not there')}"
    return None


def _entries(spaces: Spaces) -> dict[str, str]:
    """Return by name what each entry of the spaces is, in words."""
    action = spaces.action
    entries = {f"observation '{spec.name}'": f"{spec.dtype} {spec.shape}" for spec in spaces.observations}
    bounds = f" from {action.low} to {action.high} in {action.box_shape}" if action.reals else ""
    names = f" named {', '.join(action.names)}" if action.names else ""
    return entries | {"action": f"{action.kind} {action.sizes}{bounds}{names}"}


def zero_action(spec: ActionSpec, count: int) -> np.ndarray:
    """Return `count` stored actions of zeros, shape (count, *stored_shape)."""
    return np.zeros((count, *spec.stored_shape), spec.stored_dtype)


ENDLESS = 1e18
"""A bound of this size is none: its square is too great for float32, and some environments give a type's largest."""


def reach_of(low: float, high: float) -> tuple[float, float]:
    """Return the first and the last number that are reached of a real with these bounds."""
    if is_bounded(low, high):
        return low, high
    if low > -ENDLESS:
        first = max(low, -1.0)
        return first, first + 2.0
    last = min(high, 1.0)
    return last - 2.0, last


def is_bounded(low: float, high: float) -> bool:
    """Return whether a real has two bounds."""
    return low > -ENDLESS and high < ENDLESS
