"""Several environments stepped as a batch, and the buffer that their steps are written into.

What a step holds, and how its fields are aligned in time, is drawn in `common/experience/steps.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dreamfleet.actors.environments.make import describe_spaces, make_environment
from dreamfleet.actors.environments.user_code import cause_of, close_environment, flag_of, reward_of
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.actors.spaces.vectors import LARGEST, VectorBounds
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.stop_sign import StepInterrupted

_FLAGS = ("is_first", "is_last", "is_terminal")


class EnvironmentFailedError(RuntimeError):
    """An environment raised an error or returned a value that cannot be stored; the sentence says which and where."""


class BatchStep:
    """One step of each of K environments, as views of the buffer's arrays.

    Attributes:
        observations: by name, (K, *shape).
        each: for each environment the names and arrays (*shape) of its own observations.
        reward: (K,); likewise `action` (K, *stored_shape), `is_first`, `is_last` and `is_terminal`.
    """

    def __init__(self, arrays: dict[str, np.ndarray], index: int, observations: list[str]) -> None:
        fields = {name: array[index] for name, array in arrays.items()}
        self.observations = {name: fields[name] for name in observations}
        self.each = [
            [(name, array[k, ...]) for name, array in self.observations.items()] for k in range(len(fields["reward"]))
        ]
        self.action, self.reward = fields["action"], fields["reward"]
        self.is_first, self.is_last, self.is_terminal = (fields[name] for name in _FLAGS)


class StepBuffer:
    """The last steps of K environments, up to `CHUNK_STEPS` of each.

    Observations are written once, into these arrays: the policy reads them there, and chunks are cut from them. A cheap
    environment steps in microseconds, so the buffer does as little as possible for each step: its views are made once,
    flags are False until they are set, and the numbers of episode and version are set for all following steps.

    Attributes:
        arrays: every field of the format by name, (CHUNK_STEPS, K, *shape).
        index: of the current step in them, -1 before the first.
        current: the current step.
        is_full: whether there is no room for another step.
    """

    def __init__(self, step_format: StepFormat, count: int) -> None:
        self.arrays = {
            field.name: np.zeros((CHUNK_STEPS, count, *field.shape), field.dtype) for field in step_format.fields
        }
        observations = [spec.name for spec in step_format.spaces.observations]
        self._steps = [BatchStep(self.arrays, index, observations) for index in range(CHUNK_STEPS)]
        self._go_to(-1)

    def advance(self) -> BatchStep:
        """Begin the next step and return it; a full buffer is cleared first."""
        if self.is_full:
            self.clear()
        self._go_to(self.index + 1)
        return self.current

    def discard_current(self) -> None:
        """Forget the current step, which was not finished; the one before it becomes the current one."""
        self._go_to(self.index - 1)

    def set_from_here(self, name: str, number: int, k: int | slice = slice(None)) -> None:
        """Set `episode` of one environment, or `version` of all, for the current and all following steps."""
        self.arrays[name][self.index :, k] = number

    def clear(self, keep_current: bool = False) -> None:
        """Forget all steps, or all but the current one."""
        for name in ("episode", "version"):
            self.arrays[name][:] = self.arrays[name][self.index]
        if keep_current:
            for array in self.arrays.values():
                array[0] = array[self.index]
        for name in _FLAGS:
            self.arrays[name][int(keep_current) :] = False
        self._go_to(int(keep_current) - 1)

    def _go_to(self, index: int) -> None:
        self.index = index
        self.current = self._steps[index]
        self.is_full = index == CHUNK_STEPS - 1


class EnvironmentBatch:
    """K environments and the current step of each.

    Args:
        seeds: for each of the K environments the seed of its first reset; later episodes continue its generator.

    Attributes:
        buffer: where they write their steps; actions and versions are written by the caller.
        is_last: whether the current step of each ends its episode.
        returns: sum of the rewards in the current episode of each; `lengths` its steps (actions taken).

    Raises:
        UserError: if an environment cannot be made.
    """

    def __init__(self, settings: EnvironmentSettings, seeds: Sequence[int], actor: int = 0) -> None:
        self._settings, self._actor = settings, actor
        self._seeds = list(seeds)
        self.environments = [make_environment(settings) for _ in self._seeds]
        self.spaces = describe_spaces(self.environments[0])
        self._vector_bounds = VectorBounds(self.environments[0].observation_space)
        self._to_environment = action_converter(self.environments[0].action_space)
        self.step_format = StepFormat(self.spaces)
        self.buffer = StepBuffer(self.step_format, len(self))
        self._episode = [-1] * len(self)
        self.is_last = [False] * len(self)
        self.returns = [0.0] * len(self)
        self.lengths = [0] * len(self)

    def __len__(self) -> int:
        """Return K."""
        return len(self._seeds)

    def reset(self) -> None:
        """Begin the first episode of every environment, from its seed; raises as `step` does."""
        current = self.buffer.advance()
        for k, seed in enumerate(self._seeds):
            self._begin_episode(k, seed, current)

    def step(self, actions: np.ndarray) -> None:
        """Take one step in every environment, with stored actions (K, *stored_shape).

        One whose episode has ended begins the next, its action unused.

        Raises:
            EnvironmentFailedError: if one of them raises an error, ends the process, or returns an invalid reward or
                flag.
        """
        current = self.buffer.advance()
        for k, ended in enumerate(self.is_last):
            if ended:
                self._begin_episode(k, None, current)
            else:
                self._step_one(k, actions[k], current)

    def close(self) -> None:
        """Close all environments; a failure to close is a warning, and does not keep the others open."""
        for env in self.environments:
            close_environment(env, self._settings.id)

    def check_vectors(self, k: int, first_step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Check the vectors in steps of environment `k`, each array (steps, *shape), from `first_step` of its stream.

        Raises:
            EnvironmentFailedError: if one holds a number that is not finite.
        """
        for spec in self.spaces.vectors:
            fault = self._vector_bounds.fault(spec.name, arrays[spec.name])
            if fault:
                t, clause = fault
                place = f"in episode {arrays['episode'][t]} at step {first_step + t} of its stream"
                raise self._failure(k, f"its observation '{spec.name}' {clause}", place)

    def _failure(self, k: int, cause: str, place: str = "") -> EnvironmentFailedError:
        """Return the error of environment `k`, which happened now, unless another `place` is given."""
        place = place or f"in episode {max(self._episode[k], 0)} at step {self.lengths[k]}"
        return EnvironmentFailedError(
            f"environment '{self._settings.id}' (actor {self._actor}, environment {k}) failed {place}: {cause}"
        )

    def _begin_episode(self, k: int, seed: int | None, current: BatchStep) -> None:
        self._episode[k] += 1
        self.is_last[k], self.returns[k], self.lengths[k] = False, 0.0, 0
        try:
            observation, _ = self.environments[k].reset(seed=seed)
            for name, array in current.each[k]:
                array[...] = observation[name]
        except StepInterrupted:
            raise
        except BaseException as error:
            raise self._failure(k, f"at its reset: {cause_of(error)}") from error
        self.buffer.set_from_here("episode", self._episode[k], k)
        current.is_first[k] = True
        current.reward[k] = 0.0

    def _step_one(self, k: int, action: np.ndarray, current: BatchStep) -> None:
        self.lengths[k] += 1
        try:
            observation, reward, terminated, truncated, _ = self.environments[k].step(self._to_environment(action))
            if isinstance(reward, float):  # NumPy's float64 is one too, and takes ten times as long to compare
                reward = float(reward)
            if type(reward) is not float or not -LARGEST <= reward <= LARGEST:
                reward = reward_of(reward)
            if terminated is not False or truncated is not False:
                terminated, truncated = flag_of("terminated", terminated), flag_of("truncated", truncated)
            for name, array in current.each[k]:
                array[...] = observation[name]
        except StepInterrupted:
            raise
        except BaseException as error:
            raise self._failure(k, cause_of(error)) from error
        self.returns[k] += reward
        current.reward[k] = reward
        if terminated or truncated:
            self.is_last[k] = current.is_last[k] = True
            current.is_terminal[k] = terminated
