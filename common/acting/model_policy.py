"""Acting on the model: observations become a state, in which the actor or the planner chooses the action."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import draw_action_noise
from dreamfleet.common.acting.action_encoding import decode_actions, encode_actions
from dreamfleet.common.acting.agent_networks import AgentNetworks, load_flat
from dreamfleet.common.acting.planner import Search, candidate_noise, cross_entropy_method
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.rssm import State
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.torch_state import own_torch_state


class ModelPolicy:
    """Acts for K environments, each with a recurrent state and a random generator of its own.

    An environment's actions do not depend on how many others there are.

    Attributes:
        version: of the weights that act; -1 before the first, when `before` acts.

    Args:
        environments: K.
        explores: whether actions are sampled and `behaviour.exploration` is added; otherwise the likeliest is taken.
        before: acts until there are weights; needed only if `act` is called before `adopt`.
    """

    @own_torch_state()
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
        self._settings = settings.behaviour
        self._spec = spaces.action
        self._before = before
        self._explores = explores
        self._agent = AgentNetworks(spaces, settings).eval()
        self._model = self._agent.world_model
        self._generators = [torch.Generator().manual_seed(derive_seed(seed, "acting", k)) for k in range(environments)]
        self._state = self._model.dynamics.initial(environments)
        self._previous = torch.zeros(environments, spaces.action.width)
        self._begins_anew = True

    @own_torch_state()
    @torch.no_grad()
    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Return stored actions (K, *stored_shape) for observations (K, *shape) and is_first (K,); see `Policy`."""
        if self.version < 0:
            assert self._before is not None, "weights are adopted before the first action"
            return self._before.act(observations, is_first)
        # Contiguous, since PyTorch refuses the negative stride of a picture that was flipped.
        seen = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in observations.items()}
        first = torch.from_numpy(np.asarray(is_first, bool) | self._begins_anew)
        self._begins_anew = False
        embedding = self._model.encode(seen)
        noise = self._draw(lambda generator: self._model.dynamics.latents.draw_noise(generator=generator))
        self._state = self._model.dynamics.observe_step(self._state, self._previous, embedding, first, noise=noise)
        encoded = self._plan() if self._settings.kind == "planner" else self._choose()
        if self._explores and self._settings.exploration:
            encoded = self._explore(encoded)
        stored = decode_actions(self._spec, encoded)
        self._previous = encode_actions(self._spec, stored)  # as the learner will read it
        return stored.numpy()

    @own_torch_state()
    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Act with published weights from now on; for the first ones, running episodes count as beginning here."""
        load_flat(self._agent.acting_parameters(), weights)
        self.version = version

    def _choose(self) -> Tensor:
        """Return the actor's actions (K, A)."""
        distribution = self._agent.policy(self._state.feature)
        if not self._explores:
            return distribution.mode
        return distribution.sample(self._draw(lambda generator: draw_action_noise(self._spec, generator=generator)))

    def _plan(self) -> Tensor:
        """Return the planner's actions (K, A)."""
        settings = self._settings
        search = Search(settings.horizon, settings.candidates, settings.iterations, settings.elites)
        noise = candidate_noise(self._spec, search, self._generators)
        return cross_entropy_method(
            self._worth, self._state, len(self._generators), self._spec, search, noise
        ).first_action()

    def _worth(self, states: State, actions: Tensor) -> Tensor:
        """Return the sums of rewards (F,) that the model expects of actions (F, H, A) from states (F, …), F = K·N."""
        each, horizon = len(actions) // len(self._generators), actions.shape[1]
        draw = self._model.dynamics.latents.draw_noise
        noise = torch.cat([draw(each, horizon, generator=generator) for generator in self._generators])
        imagined = self._model.dynamics.imagine(states, actions, noise=noise)
        return self._model.predict_reward(imagined.feature).mean.sum(-1)

    def _explore(self, encoded: Tensor) -> Tensor:
        """Return the actions (K, A) with noise: added to reals; choices are replaced with some probability."""
        spec, exploration = self._spec, self._settings.exploration
        noise = self._draw(lambda generator: draw_action_noise(spec, generator=generator))
        *uniform, normal = noise.split([*[1] * len(spec.choices), spec.reals], dim=-1)
        chosen, reals = encoded.split([sum(spec.choices), spec.reals], dim=-1)
        reals = reals + exploration * normal
        if not spec.choices:
            return reals
        chance = self._draw(lambda generator: torch.rand(1, generator=generator))
        by_chance = [
            torch.nn.functional.one_hot((numbers[:, 0] * size).long(), size).float()
            for numbers, size in zip(uniform, spec.choices, strict=True)
        ]
        return torch.cat([torch.where(chance < exploration, torch.cat(by_chance, -1), chosen), reals], dim=-1)

    def _draw(self, draw_one: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return what `draw_one` draws with each environment's generator, (K, …)."""
        return torch.stack([draw_one(generator) for generator in self._generators])
