"""Acting on the model in the actor's own process: observations become a state, in which the action is chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamfleet.common.acting.acting_model import ActingModel
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings


class ModelPolicy:
    """Acts for K environments, each with a recurrent state and a random generator of its own.

    An environment's actions do not depend on how many others there are.

    Attributes:
        version: of the weights that act; -1 before the first, when `before` acts.

    Args:
        environments: K.
        explores: see `ActingModel`.
        before: acts until there are weights; needed only if `act` is called before `adopt`.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        environments: int,
        seed: int,
        explores: bool,
        before: Policy | None = None,
    ) -> None:
        self.version = -1
        self._before = before
        self._model = ActingModel(settings, spaces, explores)
        self._memory = self._model.begin(environments, seed)

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return stored actions (K, *stored_shape) for observations (K, *shape) and is_first (K,); see `Policy`."""
        if self.version < 0:
            assert self._before is not None, "weights are adopted before the first action"
            return self._before.act(observations, is_first)
        return self._model.act([self._memory], observations, is_first)

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Act with published weights from now on; for the first ones, running episodes count as beginning here."""
        self._model.adopt(weights)
        self.version = version
