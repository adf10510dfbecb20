"""Choosing actions, in one call for all environments of an actor; and the policy that chooses at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, is_bounded, reach_of
from dreamfleet.common.seeds import derive_seed

CHANCE = -1
"""Version of an action that no weights chose."""


@dataclass(frozen=True)
class PublishedWeights:
    """One published version of the weights.

    Attributes:
        version: number of updates that they have seen.
        handle: the flat array, or on Ray a reference to what holds it (`ray_weights.py`); None on its way, between a
            learner's process and `LearnerRanks`. Ray fetches only those references that are arguments themselves. In
            here it stays a reference: whoever has this version already fetches nothing, and weights that are lost do
            not lose the order that names them.
    """

    version: int
    handle: Any


class Policy(Protocol):
    """Chooses one action for each of an actor's K environments."""

    version: int
    """Version of the weights that choose the actions."""

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return new stored actions (K, *stored_shape) for observations of (K, *shape) and is_first (K,).

        The arguments are overwritten at later steps: copy what you keep.
        """

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Act with published weights from now on: one flat array, read-only; copy what you keep."""


_DRAWN_AHEAD = 256
"""Random actions drawn at once: a call of numpy's generator takes longer than the step of many environments."""


class RandomPolicy:
    """Uniform random actions, each held for `hold_min` to `hold_max` steps.

    Held actions reach places that a new action at every step does not: a car that steers left and right in turn does
    not move. A real without two bounds is drawn from a Normal of deviation 1 around the middle of its interval
    (`reach_of`), clipped to its bound if it has one. `weights` are relative frequencies of a discrete action's choices.

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
        self.version = CHANCE
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

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return actions (K, *stored_shape): the held ones, or new ones where an episode begins or the hold is over."""
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
        """Do nothing: random actions need no weights, and none chose them."""

    def _draw(self) -> Iterator[tuple[Any, int]]:
        """Yield forever an action and the number of steps for which it is held."""
        while True:
            actions = self._draw_actions(_DRAWN_AHEAD)
            holds = self._generator.integers(self._hold[0], self._hold[1] + 1, _DRAWN_AHEAD)
            yield from zip(actions.tolist() if actions.ndim == 1 else actions, holds.tolist(), strict=True)

    def _draw_fresh(self, environments: int) -> Iterator[np.ndarray]:
        """Yield forever new actions (K, *stored_shape) for all environments, each held for one step."""
        shape = (_DRAWN_AHEAD, environments, *self._spec.stored_shape)
        while True:
            drawn = self._draw_actions(_DRAWN_AHEAD * environments)
            yield from drawn.astype(self._spec.stored_dtype).reshape(shape)

    def _draw_actions(self, count: int) -> np.ndarray:
        """Return `count` random actions (count, *stored_shape)."""
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
