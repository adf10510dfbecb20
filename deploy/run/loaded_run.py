"""A run's checkpoint as a library: its world model on numpy arrays, and its agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.errors import UserError
from dreamfleet.common.model.rssm import State
from dreamfleet.deploy.run.agent import Agent
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_world_model


class LoadedRun:
    """A checkpoint of a run, which may be training meanwhile.

    Batches are fields of the step format (B, T, …), as `Replay.sequences` gives them. States are torch tensors on the
    model's device: `state.map(lambda part: part[:, 3])` takes those of one step, and `state.feature` (B, T, D + S) is
    what heads see. Where the model samples, it draws from torch's global generator.

    Attributes:
        world_model: in eval mode.
        updates: of the checkpoint.

    Args:
        checkpoint: "newest", "best" by evaluation return (or held-out loss, where nothing was evaluated), or a number
            of updates.
        device: of the world model; agents act on the CPU.

    Raises:
        UserError: if there is no such run, or no checkpoint that is whole.
    """

    def __init__(
        self, directory: str | Path, checkpoint: str | int = "newest", device: str | torch.device = "cpu"
    ) -> None:
        run = RunDirectory(Path(directory)).existing()
        self.settings, self.spaces = run.settings(), run.spaces()
        self.world_model, facts = load_world_model(run.checkpoints, self.settings, device, checkpoint)
        self.updates = int(facts["updates"])
        self._directory, self._device = directory, torch.device(device)

    def agent(self, environments: int = 1, seed: int = 0, explores: bool = False) -> Agent:
        """Return an agent of the same checkpoint, which acts as the run's policy does; see `Agent.load`.

        Raises:
            UserError: if the run has removed that checkpoint meanwhile (`records.checkpoints_kept`).
        """
        return Agent.load(self._directory, self.updates, environments, seed, explores)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Return the embeddings (B, T, E) of observations.

        Raises:
            UserError: if an entry is missing, or not (B, T, …) of its shape, or a picture that is not of bytes.
        """
        return self.world_model.encode(
            {
                entry.name: self._field(batch, entry.name, entry.shape, entry.is_image)
                for entry in self.spaces.observations
            }
        )

    @torch.no_grad()
    def observe(self, batch: Mapping[str, np.ndarray]) -> State:
        """Return the posterior states (B, T, …): each has seen the actions before it and its own observation."""
        is_first = self._field(batch, "is_first", ())
        encoded = encode_actions(self.spaces.action, self._field(batch, "action", self.spaces.action.stored_shape))
        actions = previous_actions(encoded, is_first)
        return self.world_model.observe(self.encode(batch), actions, is_first).states

    @torch.no_grad()
    def imagine(self, state: State, actions: np.ndarray, sample: bool = True) -> State:
        """Return the states (B, H, …) that actions lead to by the model alone.

        Args:
            state: (B, …), of one step.
            actions: (B, H, …) as they are stored; the first is taken in `state`.
            sample: false takes the mode of each prior.

        Raises:
            UserError: if the actions are not (B, H, …) as they are stored, or the state is not of one step.
        """
        if state.feature.ndim != 2:
            raise UserError(
                f"the state has the shape {tuple(state.feature.shape)}, and imagining begins at one step: take it with "
                "state.map(lambda part: part[:, 3])"
            )
        given = self._field({"action": actions}, "action", self.spaces.action.stored_shape)
        encoded = encode_actions(self.spaces.action, given)
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

    def _field(
        self, batch: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], is_image: bool = False
    ) -> torch.Tensor:
        """Return a field (B, T, *shape) of a batch, on the device."""
        if name not in batch:
            raise UserError(f"the batch lacks '{name}': it has {', '.join(batch) or 'nothing'}")
        array = np.asarray(batch[name])
        if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
            wanted = ", ".join(["B", "T", *map(str, shape)])
            raise UserError(f"the batch's '{name}' has the shape {array.shape}, not ({wanted})")
        if is_image and array.dtype != np.uint8:
            raise UserError(f"the batch's '{name}' is {array.dtype}, and pictures are bytes (uint8) from 0 to 255")
        return torch.as_tensor(array, device=self._device)
