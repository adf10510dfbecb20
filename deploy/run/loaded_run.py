"""A run as a library: its agent, its world model on numpy arrays, and its recorded experience."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamfleet.actors.environments.make import Environment, make_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.model.rssm import State
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_acting_weights, load_world_model
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.shards import open_shards, shard_directories


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
        run: str | Path, checkpoint: str = "newest", environments: int = 1, seed: int = 0, explores: bool = False
    ) -> Agent:
        """Return the agent of a run, which may be training meanwhile.

        Args:
            checkpoint: "newest", or "best" by evaluation return (or held-out loss, where nothing was evaluated).
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


class LoadedRun:
    """The newest or best checkpoint of a run, which may be training meanwhile.

    Batches are fields of the step format (B, T, …), as `Replay.sequences` gives them. States are torch tensors on the
    model's device: `state.map(lambda part: part[:, 3])` takes those of one step, and `state.feature` (B, T, D + S) is
    what heads see. Where the model samples, it draws from torch's global generator.

    Attributes:
        world_model: in eval mode.

    Args:
        checkpoint: "newest", or "best" by evaluation return (or held-out loss, where nothing was evaluated).
        device: of the world model; agents act on the CPU.

    Raises:
        UserError: if there is no such run, or no checkpoint that is whole.
    """

    def __init__(self, directory: str | Path, checkpoint: str = "newest", device: str | torch.device = "cpu") -> None:
        run = RunDirectory(Path(directory)).existing()
        self.settings, self.spaces = run.settings(), run.spaces()
        self.world_model, facts = load_world_model(run.checkpoints, self.settings, device, checkpoint)
        self.updates = int(facts["updates"])
        self._directory, self._checkpoint, self._device = directory, checkpoint, torch.device(device)

    def agent(self, environments: int = 1, seed: int = 0, explores: bool = False) -> Agent:
        """Return an agent that acts as the run's policy does; see `Agent.load`."""
        return Agent.load(self._directory, self._checkpoint, environments, seed, explores)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Return the embeddings (B, T, E) of observations."""
        names = [entry.name for entry in self.spaces.observations]
        return self.world_model.encode({name: self._tensor(batch[name]) for name in names})

    @torch.no_grad()
    def observe(self, batch: Mapping[str, np.ndarray]) -> State:
        """Return the posterior states (B, T, …): each has seen the actions before it and its own observation."""
        is_first = self._tensor(batch["is_first"])
        encoded = encode_actions(self.spaces.action, self._tensor(batch["action"]))
        actions = previous_actions(encoded, is_first)
        return self.world_model.observe(self.encode(batch), actions, is_first).states

    @torch.no_grad()
    def imagine(self, state: State, actions: np.ndarray, sample: bool = True) -> State:
        """Return the states (B, H, …) that actions lead to by the model alone.

        Args:
            state: (B, …), of one step.
            actions: (B, H, …) as they are stored; the first is taken in `state`.
            sample: false takes the mode of each prior.
        """
        encoded = encode_actions(self.spaces.action, self._tensor(actions))
        return self.world_model.imagine(state, encoded, sample)

    @torch.no_grad()
    def decode(self, state: State) -> dict[str, np.ndarray]:
        """Return what the model expects at states (…): observations in the environment's units, and the reward.

        With `model.continue_head` also "continue", the probability that the episode does not end here (times the
        discount if `loss.continue_horizon` is set).

        Raises:
            UserError: if the model has no decoder.
        """
        feature, model = state.feature, self.world_model
        expected = dict(model.denormalise(model.decode(feature)))
        expected["reward"] = model.predict_reward(feature).mean
        if model.continuation is not None:
            expected["continue"] = model.predict_continue(feature).mean
        return {
            name: value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
            for name, value in expected.items()
        }

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array), device=self._device)


class StoredReplay:
    """The experience of a run, a dataset or a replay directory; a run may be writing it meanwhile.

    Every step has the observation's entries, "action" (taken after it), "reward" (received on arriving at it),
    "is_first", "is_last", "is_terminal" and "version" (of the weights that acted): see `common/experience/steps.py`.

    Attributes:
        step_format: names, shapes and types of the fields of a step.

    Raises:
        UserError: if the directory holds no replay.
    """

    def __init__(self, directory: str | Path) -> None:
        run = RunDirectory(Path(directory))
        if run.config_file.is_file():
            self._directory, _ = run.experience(run.settings())
        else:
            self._directory = run.replay if run.replay.is_dir() else run.path
        if not shard_directories(self._directory):
            raise UserError(f"{directory} holds no replay: there is no file 'segment-*.dfl' in it or its shards.")
        with self._streams() as streams:
            self.step_format: StepFormat = streams.step_format

    def episodes(self, whole: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Yield episodes, each field as (T, …), one in memory at a time.

        Args:
            whole: leave out those without their first or last step: under way, interrupted, or dropped in part.
        """
        with self._streams() as streams:
            for episode in streams.episodes():
                arrays = dict(episode.arrays)
                if not whole or (arrays["is_first"][0] and arrays["is_last"][-1]):
                    yield arrays

    def sequences(self, count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return sequences drawn as for training, each field as (count, length, …); `is_first` marks new episodes.

        Raises:
            NotEnoughExperienceError: if no sequence is that long.
        """
        settings = ReplaySettings()
        replay = open_shards(self._directory, self.step_format, settings, length, seed, read_only=True)
        try:
            return decompress(replay.sample(0, count), self.step_format)
        finally:
            replay.close()

    def _streams(self) -> StoredStreams:
        return StoredStreams(shard_directories(self._directory))
