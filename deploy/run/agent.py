"""A run's policy as an object that acts, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.actors.environments.make import Environment, make_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_acting_weights


class Agent:
    """Acts as a run's policy does, without Ray, in one environment or in several at once.

    The recurrent state is kept here: say where an episode begins, with `reset` or with `is_first`.

    Attributes:
        updates: of the checkpoint that acts; 0 for a run that acts by chance.

    Args:
        weights: flat acting weights and their updates; None for a run that acts by chance.
        explores: whether it explores as it did while collecting.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        weights: tuple[int, np.ndarray] | None,
        environments: int = 1,
        seed: int = 0,
        explores: bool = False,
    ) -> None:
        self.settings = settings
        self.spaces = spaces
        self.updates = weights[0] if weights else 0
        self._environments = environments
        self._policy = make_policy(settings, spaces, environments, seed, explores, weights)
        self._begins = np.ones(environments, bool)

    @staticmethod
    def load(
        run: str | Path, checkpoint: str | int = "newest", environments: int = 1, seed: int = 0, explores: bool = False
    ) -> Agent:
        """Return the agent of a run, which may be training meanwhile.

        Args:
            checkpoint: "newest", "best" by evaluation return (or held-out loss, where nothing was evaluated), or a
                number of updates.
            explores: whether it explores as it did while collecting.

        Raises:
            UserError: if there is no such run, or no checkpoint that is whole.
        """
        directory = RunDirectory(Path(run)).existing()
        settings, spaces = directory.settings(), directory.spaces()
        weights = None
        if settings.acts_by_weights:
            weights = load_acting_weights(directory.checkpoints, settings, checkpoint)
        return Agent(settings, spaces, weights, environments, seed, explores)

    def make_environment(self, render: bool = False) -> Environment:
        """Return one environment as the run's actors make it: its observations are what `act` takes.

        Raises:
            UserError: if it cannot be made.
        """
        return make_environment(self.settings.env, render)

    def reset(self) -> None:
        """Say that the next observations begin new episodes."""
        self._begins[:] = True

    def act(self, observation: Mapping[str, np.ndarray] | np.ndarray, is_first: np.ndarray | bool | None = None) -> Any:
        """Return the action for an observation of `make_environment`, as that environment takes it.

        With several environments every entry has them along its first axis, and so has the returned array of stored
        actions (K, *stored_shape).

        Args:
            observation: by name, as `make_environment` gives it; an array where there is one entry.
            is_first: whether, or for which environments, an episode begins here; else what `reset` said.

        Raises:
            UserError: if an entry is missing, of another shape, or not as `make_environment` gives it: bytes for a
                picture, finite numbers for a vector.
        """
        if not isinstance(observation, Mapping):
            observation = self._named(observation)
        single = self._environments == 1 and self._is_single(observation)
        batch = {name: np.asarray(value)[None] if single else np.asarray(value) for name, value in observation.items()}
        batch = {spec.name: self._checked(batch, spec) for spec in self.spaces.observations}
        begins = self._begins if is_first is None else np.broadcast_to(np.asarray(is_first, bool), self._begins.shape)
        actions = self._policy.act(batch, begins.copy())
        self._begins = np.zeros(self._environments, bool)
        return self._to_environment(actions[0]) if single else actions

    def _named(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Return an array as the only entry that there is."""
        specs = self.spaces.observations
        if len(specs) > 1:
            names = ", ".join(f"'{spec.name}'" for spec in specs)
            raise UserError(f"the observation is one array, and the agent observes {names}: give a mapping of these")
        return {specs[0].name: observation}

    def _is_single(self, observation: Mapping[str, np.ndarray]) -> bool:
        spec = self.spaces.observations[0]
        return spec.name in observation and np.asarray(observation[spec.name]).ndim == len(spec.shape)

    def _checked(self, batch: Mapping[str, np.ndarray], spec: ObservationSpec) -> np.ndarray:
        """Return an entry (K, *shape) in the type that the policy was trained on."""
        name, wanted = spec.name, (self._environments, *spec.shape)
        if name not in batch:
            raise UserError(f"the observation lacks '{name}', which has the shape {spec.shape}")
        value = batch[name]
        if value.shape != wanted:
            raise UserError(f"the observation's '{name}' has the shape {value.shape}, not {wanted}")
        if spec.is_image and value.dtype != np.uint8:
            raise UserError(
                f"the observation's '{name}' is {value.dtype}, and the agent observes bytes (uint8) from 0 to 255: "
                "give pictures as `make_environment` does"
            )
        if value.dtype.kind not in "biuf":
            raise UserError(f"the observation's '{name}' is {value.dtype}, not numbers")
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            converted = value.astype(spec.dtype, copy=False)
        if not np.isfinite(converted).all():
            wrong = value[~np.isfinite(converted)][0]
            raise UserError(f"the observation's '{name}' holds {wrong:g}, which is not finite in {spec.dtype}")
        return converted

    @cached_property
    def _to_environment(self) -> Callable[[np.ndarray], Any]:
        env = self.make_environment()
        convert = action_converter(env.action_space)
        env.close()
        return convert
