"""Acting by asking: the actor's side of central inference."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dreamfleet.common.acting.policy import Policy

PAUSE_S = 0.5
"""Between two tries to find a process that answers."""

log = logging.getLogger(__name__)


class Question(NamedTuple):
    """What an actor asks: the observations (K, *shape) and is_first (K,) of its K environments.

    `life` counts how often the states of its environments were lost, as it is known to the actor. A process that is
    asked in a life that it does not know begins with states of zero.
    """

    actor: int
    incarnation: int
    life: int
    observations: Mapping[str, np.ndarray]
    is_first: np.ndarray


class Answer(NamedTuple):
    """The stored actions (K, *stored_shape), and the version of the weights that chose them."""

    version: int
    actions: np.ndarray


class InferenceLostError(RuntimeError):
    """A question has no answer: the process that was asked is gone, or was too slow. Another may answer it."""


class RetiredError(RuntimeError):
    """An incarnation asks that was given up: its steps would be refused by the replay."""


Ask = Callable[[Question, float], Answer]
"""Returns the answer to a question within some seconds, or raises `InferenceLostError`."""


class RemotePolicy:
    """Has the actions chosen by a process that acts for all actors, by chance as long as there are no weights.

    If that process is lost, the environments go on in their episodes: their states begin at zero in the next process
    that answers, as if the episodes began, and what is recorded says nothing of it.

    Attributes:
        version: of the weights that chose the last actions; -1 before the first.

    Args:
        ask: asks the process.
        before: acts until there are weights.
        timeout_s: after which a question that nobody answers is an error.
    """

    def __init__(
        self,
        ask: Ask,
        actor: int,
        incarnation: int,
        before: Policy,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.version = -1
        self._ask, self._actor, self._incarnation, self._before = ask, actor, incarnation, before
        self._timeout_s, self._clock, self._sleep = timeout_s, clock, sleep
        self._life = 0
        self._has_weights = False

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return stored actions (K, *stored_shape) for observations (K, *shape) and is_first (K,); see `Policy`.

        Raises:
            InferenceLostError: if nobody answers in time.
        """
        if not self._has_weights:
            return self._before.act(observations, is_first)
        deadline = self._clock() + self._timeout_s
        lost: InferenceLostError | None = None
        while (left := deadline - self._clock()) > 0:
            try:
                question = Question(self._actor, self._incarnation, self._life, observations, is_first)
                answer = self._ask(question, left)
            except InferenceLostError as error:
                if lost is None:
                    log.info("actor %d: no answer from the inference process (%s); asks again", self._actor, error)
                lost = error
                self._life += 1
                self._sleep(min(PAUSE_S, max(0.0, deadline - self._clock())))
            else:
                if lost is not None:
                    log.info("actor %d: inference answers again, from states of zero", self._actor)
                self.version = answer.version
                return answer.actions
        raise InferenceLostError(f"no inference process answered for {self._timeout_s:.0f} s, at last: {lost}")

    def adopt(self, version: int, weights: np.ndarray) -> None:  # noqa: ARG002
        """Ask from now on: there are weights, and the process that is asked has them, or newer ones."""
        self._has_weights = True
