"""Observations and actions of an environment as plain data, without Gymnasium: replay and learner do not need it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from dreamfleet.common.errors import shown

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
        """Convert what comes from JSON or numpy."""
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))


@dataclass(frozen=True)
class ActionSpec:
    """An action: one choice, several choices, reals, or choices followed by reals ("mixed").

    Attributes:
        sizes: number of options of each choice; for a box, only its number of dimensions.
        low: lower bounds of the reals, flat; `high` their upper bounds.
        box_shape: the shape of the environment's box action; empty otherwise.
        names: of each choice and then each real; empty if the environment has no names for them.
    """

    kind: ActionKind
    sizes: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    box_shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Convert what comes from JSON or numpy."""
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
        """Type of a stored action: int32 for choices, float32 with reals, which holds choices exactly."""
        return "float32" if self.reals else "int32"

    @property
    def width(self) -> int:
        """Width of the networks' action: the choices' one-hots side by side, then the reals."""
        return sum(self.choices) + self.reals

    @property
    def in_words(self) -> str:
        """Kind and size, such as "multi_discrete of 2×3"."""
        if self.kind == "mixed":
            return f"mixed of {'×'.join(map(str, self.choices))} and {self.reals} reals"
        return f"{self.kind} of {'×'.join(map(str, self.sizes))}"

    def name_of(self, number: int) -> str:
        """Return the name in messages of a choice, or of a real, numbered after all choices."""
        return f"'{self.names[number]}'" if self.names else f"dimension {number}"


@dataclass(frozen=True)
class Spaces:
    """The observations and the action of one environment."""

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec

    def __post_init__(self) -> None:
        """Sort the observations by name, so that the order is always the same."""
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
        """Return plain data, infinite bounds as floats; `StepFormat.identity` is computed from it."""
        data = asdict(self)
        if not self.action.names:  # older versions did not have them
            del data["action"]["names"]
        return data

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `from_json`; infinities, which JSON lacks, are "inf" and "-inf"."""
        data: dict[str, Any] = _spell_infinities(self.plain())
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Spaces:
        """Return the spaces of what `to_json` gave, or `plain`, which older versions wrote.

        Raises:
            ValueError: if they are none: something is missing, or is not of its kind or beyond any size.
        """
        try:
            observations = tuple(ObservationSpec(**entry) for entry in data["observations"])
            spaces = Spaces(observations, ActionSpec(**data["action"]))
            is_possible = _is_possible(spaces)
        except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"these are no spaces: {shown(error)}") from error
        if not is_possible:
            raise ValueError("these are no spaces: a name, type, shape or bound is not possible")
        return spaces


_MOST_NUMBERS = 1 << 26
"""Of one observation; a picture of 4,096 × 4,096 has that many."""


def _is_possible(spaces: Spaces) -> bool:
    """Whether spaces that were read from a file can be those of an environment."""
    action, names = spaces.action, [spec.name for spec in spaces.observations]
    bounds = [*action.low, *action.high]
    return (
        all(isinstance(name, str) for name in [*names, *action.names])
        and len(set(names)) == len(names)
        and all(spec.dtype in ("uint8", "float32") for spec in spaces.observations)
        and all(min(spec.shape, default=1) >= 0 and len(spec.shape) <= 8 for spec in spaces.observations)
        and sum(math.prod(spec.shape) for spec in spaces.observations) <= _MOST_NUMBERS
        and action.kind in ("discrete", "multi_discrete", "box", "mixed")
        and all(1 <= size <= _MOST_NUMBERS for size in action.sizes)
        and bool(action.sizes)
        and len(action.sizes) <= _MOST_NUMBERS
        and len(action.low) == len(action.high)
        and not any(math.isnan(bound) for bound in bounds)
    )


def _spell_infinities(data: Any) -> Any:
    """Return plain data with a string that `float` reads for each infinite number."""
    if isinstance(data, dict):
        return {key: _spell_infinities(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_spell_infinities(value) for value in data)
    return str(data) if isinstance(data, float) and math.isinf(data) else data


def first_difference(then: Spaces, now: Spaces) -> str | None:
    """Return in words the first entry in which two spaces differ, in both versions; None if they are equal."""
    before, after = _entries(then), _entries(now)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"its {name} was {before.get(name, 'not there')} and is now {after.get(name, 'not there')}"
    return None


def _entries(spaces: Spaces) -> dict[str, str]:
    """Return each entry of the spaces in words, by name."""
    action = spaces.action
    entries = {f"observation '{spec.name}'": f"{spec.dtype} {spec.shape}" for spec in spaces.observations}
    bounds = f" from {action.low} to {action.high} in {action.box_shape}" if action.reals else ""
    names = f" named {', '.join(action.names)}" if action.names else ""
    return entries | {"action": f"{action.kind} {action.sizes}{bounds}{names}"}


def zero_action(spec: ActionSpec, count: int) -> np.ndarray:
    """Return `count` stored actions of zeros, shape (count, *stored_shape)."""
    return np.zeros((count, *spec.stored_shape), spec.stored_dtype)


ENDLESS = 1e18
"""A bound of this size counts as none: its square overflows float32, and some environments give a type's largest."""


def reach_of(low: float, high: float) -> tuple[float, float]:
    """Return the interval of a real, in the environment's units, that is [-1, 1] for the networks.

        bounds                    interval
        [low, high]               [low, high]
        none                      [-1, 1]
        [low, ∞)                  [-1, 1], or [low, low + 2] if low is greater than -1
        (-∞, high]                [-1, 1], or [high - 2, high] if high is less than 1

    Planner and actor keep the mean of their actions within it. Only a real's own bounds clip it: on a side without one,
    noise may go beyond.
    """
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
