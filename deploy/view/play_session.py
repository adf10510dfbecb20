"""The agent in the real environment: what it sees, what it believes, and what it expects; a visitor may take over."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.actors.environments.make import make_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.model.rssm import State
from dreamfleet.deploy.view.actions import checked_action
from dreamfleet.deploy.view.moment import ImageFormat, Moment
from dreamfleet.deploy.view.viewed_model import ViewedModel, in_a_row

EXPECTED_STEPS = 15
"""Steps that the agent is asked to expect, shown as a strip."""


class PlaySession:
    """One episode after another of the real environment, stepped by the policy or by the visitor.

    Args:
        seed: of the first episode; each further one takes the next.
    """

    def __init__(self, model: ViewedModel, seed: int = 0, image_format: ImageFormat = "jpeg") -> None:
        self._model, self._seed, self._format = model, seed, image_format
        self._environment = make_environment(model.settings.env)
        self._to_environment = action_converter(self._environment.action_space)
        self._episode = -1
        self._index, self._reward, self._return, self._is_over = 0, 0.0, 0.0, False
        self._state: State | None = None
        self._action: np.ndarray | None = None
        self._begin()

    def step(self, action: Any) -> Moment:
        """Take a step in the environment, a stored action or "policy"; after an episode's end the next one begins.

        Raises:
            UserError: if it is none of the environment's actions, or there is no policy.
        """
        if self._is_over:
            self._begin()
            return self.moment()
        if action == "policy":
            assert self._state is not None
            chosen = self._model.choose(self._state, self._seed + self._episode, self._index)
        else:
            chosen = checked_action(self._model.spaces.action, action)
        observation, reward, terminated, truncated, _ = self._environment.step(self._to_environment(chosen))
        self._action, self._reward = chosen, float(reward)
        self._return += self._reward
        self._index += 1
        self._is_over = bool(terminated or truncated)
        self._see(observation)
        return self.moment()

    def set(self, image_format: ImageFormat) -> Moment:
        """Change how pictures travel."""
        self._format = image_format
        return self.moment()

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def moment(self) -> Moment:
        """Return what is shown of the present step."""
        assert self._state is not None
        belief = self._model.look(self._state)
        header: dict[str, Any] = {
            "kind": "moment",
            "index": self._index,
            "last": self._index,
            "episode": self._episode,
            "action": None if self._action is None else self._action.tolist(),
            "reward": self._reward,
            "reward_sum": self._return,
            "expected_reward": float(belief.reward[0]),
            "continue": None if belief.goes_on is None else float(belief.goes_on[0]),
            "value": None if belief.value is None else float(belief.value[0]),
            "episode_over": self._is_over,
            "vectors": {
                spec.name: {"dream": belief.observations[spec.name][0], "truth": self._observation[spec.name]}
                for spec in self._model.spaces.vectors
            },
        }
        moment = Moment(header)
        for spec in self._model.spaces.images:
            moment.add_image("real", spec.name, self._observation[spec.name], self._format)
            moment.add_image("belief", spec.name, belief.observations[spec.name][0], self._format)
        if self._model.has_policy and self._model.settings.behaviour.kind != "planner" and not self._is_over:
            self._add_expectation(moment)  # planning fifteen steps would take as many seconds
        return moment

    def _add_expectation(self, moment: Moment) -> None:
        """Add the pictures that the agent expects of its own next steps, side by side."""
        state, states, seed = self._state, [], self._seed + self._episode
        assert state is not None
        for step in range(EXPECTED_STEPS):
            action = self._model.choose(state, seed, self._index + step)
            state, _ = self._model.imagine(state, action, seed, self._index + step + 1, samples=False)
            states.append(state)
        seen = self._model.decode(in_a_row(states))
        for spec in self._model.spaces.images:
            strip = np.concatenate(list(seen[spec.name]), axis=1)
            moment.add_image("strip", spec.name, strip, self._format)

    def _begin(self) -> None:
        self._episode += 1
        self._index, self._reward, self._return, self._is_over = 0, 0.0, 0.0, False
        self._state, self._action = None, None
        observation, _ = self._environment.reset(seed=self._seed + self._episode)
        self._see(observation)

    def _see(self, observation: Any) -> None:
        self._observation = {spec.name: np.array(observation[spec.name]) for spec in self._model.spaces.observations}
        spec = self._model.spaces.action
        before: np.ndarray = np.zeros(spec.stored_shape, spec.stored_dtype) if self._action is None else self._action
        seed = self._seed + self._episode
        self._state = self._model.observe(self._state, before, self._observation, seed, self._index)
