"""What chooses actions: one call for all environments of an actor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, is_bounded, reach_of
from dreamfleet.common.seeds import derive_seed


@dataclass(frozen=True)
class PublishedWeights:
    """One published version of the weights.

    Attributes:
        version: number of updates that they have seen.
        handle: the flat array, or on Ray a reference to it. Ray fetches only those references that are arguments
            themselves. In here it stays a reference: whoever has this version already fetches nothing, and weights
            lost with their owner do not lose the order that names them.
    """

    version: int
    handle: Any


class Policy(Protocol):
    """Chooses one action for each of an actor's K environments."""

    version: int
    """Version of the weights that choose the actions."""

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return stored actions (K, *stored_shape), newly made, for observations of (K, *shape) and is_first (K,).

        The arrays given are overwritten at later steps: copy what you keep.
        """
        ...

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Take over published weights: one flat array, as the learner laid it out; read-only, so copy what you keep."""
        ...


_DRAWN_AHEAD = 256
"""Random actions that are drawn at once: a call of numpy's generator takes longer than many an environment's step."""


class RandomPolicy:
    """Uniform random actions, each held for a random number of steps.

    Held actions reach places that a fresh action at every step does not: a car that steers left and right by turns
    stands still. A real without two bounds is drawn from a Normal of deviation 1 around the middle of what it reaches
    (`reach_of`), clipped to the bound that it has.

    Args:
        spec: the action's space.
        environments: K.
        seed: of its random numbers.
        hold_min: least number of steps an action is held.
        hold_max: greatest number, drawn uniformly between the two.
        weights: relative frequencies of a discrete action's choices; all alike if empty.

    Raises:
        UserError: if the weights do not fit the action.
    """

    def __init__(
        self,
        spec: ActionSpec,
        environments: int,
        seed: int,
        hold_min: int = 1,
        hold_max: int = 1,
        weights: Sequence[float] = (),
    ) -> None:
        if weights and (spec.kind != "discrete" or len(weights) != spec.sizes[0]):
            raise UserError(
                f"actors.action_weights has {len(weights)} frequencies, but the environment's action is "
                f"{spec.in_words}: give one for each choice of a discrete action, or none."
            )
        self.version = 0
        self._frequencies = np.array(weights) / sum(weights) if weights else None
        self._spec = spec
        self._hold = (hold_min, hold_max)
        pairs = list(zip(spec.low, spec.high, strict=True))
        self._bounded = np.array([is_bounded(*pair) for pair in pairs], bool)
        self._middle = np.array([sum(reach_of(*pair)) / 2 for pair in pairs])
        self._generator = np.random.default_rng(derive_seed(seed, "random policy"))
        self._drawn = self._draw()
        self._fresh = self._draw_fresh(environments) if hold_max == 1 else None
        self._left = [0] * environments
        self._action = np.zeros((environments, *spec.stored_shape), spec.stored_dtype)

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return actions (K, *stored_shape): the held ones, or new ones where an episode begins or the hold is over."""
        del observations
        if self._fresh:
            return next(self._fresh)
        action = self._action = self._action.copy()
        left = self._left
        for k, begins in enumerate(is_first.tolist()):
            if begins or not left[k]:
                action[k], left[k] = next(self._drawn)
            left[k] -= 1
        return action

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Note the version; chance needs no weights."""
        del weights
        self.version = version

    def _draw(self) -> Iterator[tuple[Any, int]]:
        """Yield, without end, an action and the number of steps for which it is held."""
        while True:
            actions = self._draw_actions(_DRAWN_AHEAD)
            holds = self._generator.integers(self._hold[0], self._hold[1] + 1, _DRAWN_AHEAD)
            yield from zip(actions.tolist() if actions.ndim == 1 else actions, holds.tolist(), strict=True)

    def _draw_fresh(self, environments: int) -> Iterator[np.ndarray]:
        """Yield, without end, new actions for all environments (K, *stored_shape): what comes of a hold of one step."""
        shape = (_DRAWN_AHEAD, environments, *self._spec.stored_shape)
        while True:
            drawn = self._draw_actions(_DRAWN_AHEAD * environments)
            yield from drawn.astype(self._spec.stored_dtype).reshape(shape)

    def _draw_actions(self, count: int) -> np.ndarray:
        """Return so many random actions (count, *stored_shape)."""
        if self._frequencies is not None:
            return self._generator.choice(len(self._frequencies), count, p=self._frequencies)
        spec = self._spec
        if spec.kind == "discrete":
            return self._generator.integers(spec.sizes[0], size=count)
        if not spec.choices:
            return self._draw_reals(count)
        choices = self._generator.integers(spec.choices, size=(count, len(spec.choices)))
        return np.concatenate([choices, self._draw_reals(count)], axis=1) if spec.reals else choices

    def _draw_reals(self, count: int) -> np.ndarray:
        low, high, bounded = np.array(self._spec.low), np.array(self._spec.high), self._bounded
        size = (count, len(low))
        uniform = self._generator.uniform(np.where(bounded, low, 0), np.where(bounded, high, 1), size)
        return np.where(bounded, uniform, np.clip(self._generator.normal(self._middle, size=size), low, high))
