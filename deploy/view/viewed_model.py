"""A checkpoint's networks, one step at a time: what a viewer steers, and what he is shown of each state.

Shapes: N futures, T steps, A action, D deterministic, S stochastic, V categorical variables, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import draw_action_noise
from dreamfleet.common.acting.action_encoding import decode_actions, encode_actions, previous_actions
from dreamfleet.common.acting.planner import Search, candidate_noise, cross_entropy_method
from dreamfleet.common.errors import UserError
from dreamfleet.common.model.decoder import DoublingConv2d
from dreamfleet.common.model.distributions import Gaussian, StateDistribution
from dreamfleet.common.model.rssm import State
from dreamfleet.common.seeds import derive_seed
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.checkpoints.restore import find_checkpoint, load_networks


class Sight(NamedTuple):
    """What the model expects at N states.

    Attributes:
        observations: each entry (N, …) in the environment's units, pictures in bytes.
        reward: (N,), on arriving.
        goes_on: (N,), the probability that the episode does not end here; None without a continue head.
        value: (N,), of the critic; None without one.
    """

    observations: dict[str, np.ndarray]
    reward: np.ndarray
    goes_on: np.ndarray | None
    value: np.ndarray | None


class ViewedModel:
    """The networks of one checkpoint, on one device, in eval mode.

    Attributes:
        updates: of the checkpoint.
        has_policy: whether it can choose actions: by an actor or by the planner.

    Args:
        which: "newest", "best" or the number of a checkpoint.

    Raises:
        UserError: if there is no such checkpoint, or it is not of a model of the run's settings.
    """

    def __init__(self, run: RunDirectory, which: str = "newest", device: str | torch.device = "cpu") -> None:
        self.settings, self.spaces = run.settings(), run.spaces()
        self.device = torch.device(device)
        state, facts = find_checkpoint(run.checkpoints, which, self.device)
        self.updates = int(facts["updates"])
        networks = make_networks(self.spaces, self.settings).to(self.device)
        for network in networks.all.values():
            network.eval()
        self._agent, critic, _ = networks
        load_networks(state, networks, f"The checkpoint of update {self.updates}")
        self._critic = critic.critic if critic is not None else None
        self._model = self._agent.world_model
        for module in self._model.modules():
            if isinstance(module, DoublingConv2d):
                module.keep_kernels()
        self.has_policy = self.settings.acts_by_weights

    @property
    def has_value(self) -> bool:
        """Whether there is a critic."""
        return self._critic is not None

    @property
    def has_continue(self) -> bool:
        """Whether the model expects ends of episodes."""
        return self._model.continuation is not None

    def infer(self, batch: Mapping[str, np.ndarray], futures: int, seed: int) -> State:
        """Return N samples of the state (N, …) after the observations of one sequence, fields (T, …).

        The sequence may not run into another episode.
        """
        names = [spec.name for spec in self.spaces.observations]
        tensors = {name: self._tensor(batch[name])[None] for name in (*names, "action", "is_first")}
        with torch.inference_mode():
            first = tensors["is_first"]
            actions = previous_actions(encode_actions(self.spaces.action, tensors["action"]), first)
            embedding = self._model.encode({name: tensors[name] for name in names})
            length = first.shape[1]
            noise = self._noise(seed, "infer", length, futures, length)
            states = self._model.dynamics.observe(
                embedding.expand(futures, -1, -1),
                actions.expand(futures, -1, -1),
                first.expand(futures, -1),
                noise=noise,
            ).states
        return states.map(lambda part: part[:, -1])

    def observe(
        self, state: State | None, action: np.ndarray, observation: Mapping[str, np.ndarray], seed: int, at: int
    ) -> State:
        """Return the state (1, …) after one more observation; None for `state` where an episode begins."""
        begins = state is None
        before = self._model.dynamics.initial(1) if state is None else state
        seen = {name: self._tensor(value)[None] for name, value in observation.items()}
        with torch.inference_mode():
            return self._model.dynamics.observe_step(
                before,
                self._encoded(action, 1),
                self._model.encode(seen),
                torch.tensor([begins], device=self.device),
                noise=self._noise(seed, "observe", at, 1),
            )

    def imagine(
        self, state: State, action: np.ndarray, seed: int, at: int, samples: bool
    ) -> tuple[State, StateDistribution]:
        """Return the states (N, …) that a stored action leads to, and their priors; the noise follows `seed` and `at`.

        Args:
            samples: false takes the mode of each prior.
        """
        futures = len(state.stochastic)
        noise = self._noise(seed, "imagine", at, futures) if samples else None
        with torch.inference_mode():
            return self._model.dynamics.imagine_step(state, self._encoded(action, futures), noise)

    def look(self, state: State) -> Sight:
        """Return what the model expects at states (N, …)."""
        feature = state.feature
        with torch.inference_mode():
            reward = self._model.predict_reward(feature).mean
            goes_on = self._model.predict_continue(feature).mean if self.has_continue else None
            value = self._critic(feature).mean if self._critic is not None else None
        return Sight(
            self.decode(state),
            _numbers(reward),
            None if goes_on is None else _numbers(goes_on),
            None if value is None else _numbers(value),
        )

    def decode(self, state: State) -> dict[str, np.ndarray]:
        """Return each entry of the observation at states (N, …), in the environment's units, pictures in bytes."""
        with torch.inference_mode():
            decoded = self._model.denormalise(self._model.decode(state.feature))
        return {name: part.cpu().numpy() for name, part in decoded.items()}

    def choose(self, state: State, seed: int, at: int, samples: bool = False) -> np.ndarray:
        """Return the stored action that the policy takes in the first of N states.

        Raises:
            UserError: for a run that acts by chance.
        """
        first = state.map(lambda part: part[:1])
        if self._agent.actor is not None:
            with torch.inference_mode():
                policy = self._agent.policy(first.feature)
                noise = draw_action_noise(self.spaces.action, generator=_generator(seed, "choose", at))
                chosen = policy.sample(noise[None].to(self.device)) if samples else policy.mode
        elif self.settings.behaviour.kind == "planner":
            chosen = self._plan(first, seed, at)
        else:
            raise UserError("this run acts by chance: there is no policy to choose actions")
        stored: np.ndarray = decode_actions(self.spaces.action, chosen).cpu().numpy()[0]
        return stored

    def _plan(self, state: State, seed: int, at: int) -> Tensor:
        """Return the planner's action (1, A)."""
        own = self.settings.behaviour
        search = Search(own.horizon, own.candidates, own.iterations, own.elites)
        generator = _generator(seed, "choose", at)
        latents = self._model.dynamics.latents

        def worth(states: State, actions: Tensor) -> Tensor:
            noise = latents.draw_noise(*actions.shape[:2], generator=generator).to(self.device)
            imagined = self._model.dynamics.imagine(states, actions, noise=noise)
            return self._model.predict_reward(imagined.feature).mean.sum(-1)

        with torch.inference_mode():
            candidates = (part.to(self.device) for part in candidate_noise(self.spaces.action, search, [generator]))
            return cross_entropy_method(worth, state, 1, self.spaces.action, search, candidates).first_action()

    def _encoded(self, action: np.ndarray, futures: int) -> Tensor:
        stored = self._tensor(np.asarray(action, self.spaces.action.stored_dtype))
        return encode_actions(self.spaces.action, stored[None]).expand(futures, -1)

    def _noise(self, seed: int, purpose: str, at: int, *leading: int) -> Tensor:
        latents = self._model.dynamics.latents
        return latents.draw_noise(*leading, generator=_generator(seed, purpose, at)).to(self.device)

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.array(array), device=self.device)  # a copy, since torch refuses negative strides


def in_a_row(states: Sequence[State]) -> State:
    """Return the states (1, …) as one of several (n, …), which is decoded in one go."""
    return State(torch.cat([one.deterministic for one in states]), torch.cat([one.stochastic for one in states]))


def describe_state(prior: StateDistribution, state: State) -> dict[str, Any]:
    """Return the first future's stochastic state: a grid of classes, or means and deviations, as arrays."""
    if isinstance(prior, Gaussian):
        return {"kind": "gaussian", "mean": _rounded(prior.mean[0]), "deviation": _rounded(prior.std[0])}
    probabilities = prior.probabilities[0]
    chosen = state.stochastic[0].unflatten(0, tuple(probabilities.shape)).argmax(-1)
    return {"kind": "categorical", "probabilities": _rounded(probabilities), "chosen": chosen.tolist()}


def entropy_of(prior: StateDistribution) -> float:
    """Return the first future's entropy in nats, a Gaussian's of its density."""
    if isinstance(prior, Gaussian):
        return float((prior.std[0].log() + 0.5 * (1.0 + np.log(2.0 * np.pi))).sum())
    return float(prior.entropy()[0])


def _generator(seed: int, purpose: str, at: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose, at))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _rounded(tensor: Tensor) -> np.ndarray:
    return np.round(_numbers(tensor).astype(np.float64), 4)  # float32 would be spelled with all digits of its rounding
