"""The networks that act: for any number of groups of environments at once, each with a memory of its own.

Shapes: K environments of a group, N of all groups together, A action, F feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import draw_action_noise
from dreamfleet.common.acting.action_encoding import decode_actions, encode_actions
from dreamfleet.common.acting.agent_networks import AgentNetworks, load_flat
from dreamfleet.common.acting.planner import Search, candidate_noise, cross_entropy_method
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.rssm import State
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.torch_state import own_torch_state

Draw = Callable[[torch.Generator], Tensor]


@dataclass
class Memory:
    """What acting keeps of K environments from one step to the next.

    Attributes:
        generators: one for each environment, on the CPU, so that the device that acts changes no random number.
        state: the model's, (K, …); `previous`: the actions (K, A) that were taken last.
        begins_anew: whether every episode is to count as beginning at the next step.
    """

    generators: list[torch.Generator]
    state: State
    previous: Tensor
    begins_anew: bool = True

    def __len__(self) -> int:
        """Return K."""
        return len(self.generators)


class ActingModel:
    """An agent's networks, which choose actions for environments whose memories they are given.

    The actions of an environment do not depend on the others of the batch, but for rounding.

    Args:
        explores: whether actions are sampled, by the explorer where there is one, and `behaviour.exploration` is added;
            otherwise the likeliest is taken.
        device: where the networks compute.
        threads: that draw the planner's noise; several only where many environments plan at once.
    """

    @own_torch_state()
    def __init__(
        self, settings: Settings, spaces: Spaces, explores: bool, device: str = "cpu", threads: int = 1
    ) -> None:
        self._settings = settings.behaviour
        self._spec = spaces.action
        self._explores = explores
        self._device = torch.device(device)
        self._agent = AgentNetworks(spaces, settings).eval().to(self._device)
        self._model = self._agent.world_model
        pool = ThreadPoolExecutor(threads) if threads > 1 and self._settings.kind == "planner" else None
        self._draw_each: Callable[..., Any] = pool.map if pool else map

    @own_torch_state()
    def begin(self, environments: int, seed: int, *life: int) -> Memory:
        """Return the memory of environments of which nothing has been seen.

        Args:
            seed: from which each environment's random numbers follow.
            life: numbers that tell a memory from those before it, which were lost; none for the first.
        """
        generators = [torch.Generator().manual_seed(derive_seed(seed, "acting", k, *life)) for k in range(environments)]
        previous = torch.zeros(environments, self._spec.width, device=self._device)
        return Memory(generators, self._model.dynamics.initial(environments), previous)

    @own_torch_state()
    @torch.no_grad()
    def act(
        self, memories: Sequence[Memory], observations: Mapping[str, np.ndarray], is_first: np.ndarray
    ) -> np.ndarray:
        """Return stored actions (N, *stored_shape) for observations (N, *shape) and is_first (N,); see `Policy`.

        The environments are those of the memories, one memory after the other; each memory then holds this step too.
        """
        generators = [generator for memory in memories for generator in memory.generators]
        anew = np.repeat([memory.begins_anew for memory in memories], [len(memory) for memory in memories])
        # Contiguous, since PyTorch refuses the negative stride of a picture that was flipped.
        seen = {name: self._input(np.ascontiguousarray(value)) for name, value in observations.items()}
        first = self._input(np.asarray(is_first, bool) | anew)
        noise = self._draw(generators, lambda generator: self._model.dynamics.latents.draw_noise(generator=generator))
        before, previous = _joined(memories)
        state = self._model.dynamics.observe_step(before, previous, self._model.encode(seen), first, noise=noise)
        encoded = self._plan(state, generators) if self._settings.kind == "planner" else self._choose(state, generators)
        if self._explores and self._settings.exploration:
            encoded = self._explore(encoded, generators)
        stored = decode_actions(self._spec, encoded.cpu())
        taken = encode_actions(self._spec, stored).to(self._device)  # as the learner will read it
        start = 0
        for memory in memories:
            rows = slice(start, start + len(memory))
            # Views of the batch: copies would be three small kernels for each group.
            memory.state, memory.previous = state.map(lambda part, rows=rows: part[rows]), taken[rows]  # type: ignore[misc]
            memory.begins_anew = False
            start = rows.stop
        return stored.numpy()

    @own_torch_state()
    def adopt(self, weights: np.ndarray) -> None:
        """Act with published weights from now on."""
        load_flat(self._agent.acting_parameters(), weights)

    def _input(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _choose(self, state: State, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the actor's actions (N, A)."""
        distribution = self._agent.policy(state.feature, self._explores)
        if not self._explores:
            return distribution.mode
        noise = self._draw(generators, lambda generator: draw_action_noise(self._spec, generator=generator))
        return distribution.sample(noise)

    def _plan(self, state: State, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the planner's actions (N, A)."""
        settings, latents = self._settings, self._model.dynamics.latents
        search = Search(settings.horizon, settings.candidates, settings.iterations, settings.elites)

        def worth(states: State, actions: Tensor) -> Tensor:
            """Return the sums of rewards (M,) that the model expects of actions (M, H, A) from states (M, …)."""
            each, horizon = len(actions) // len(generators), actions.shape[1]
            noise = self._draw(
                generators, lambda generator: latents.draw_noise(each, horizon, generator=generator)
            ).flatten(0, 1)
            imagined = self._model.dynamics.imagine(states, actions, noise=noise)
            return self._model.predict_reward(imagined.feature).mean.sum(-1)

        drawn = candidate_noise(self._spec, search, generators, self._draw_each)
        noise = (numbers.to(self._device) for numbers in drawn)
        return cross_entropy_method(worth, state, len(generators), self._spec, search, noise).first_action()

    def _explore(self, encoded: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the actions (N, A) with noise: added to reals; choices are replaced with some probability."""
        spec, exploration = self._spec, self._settings.exploration
        noise = self._draw(generators, lambda generator: draw_action_noise(spec, generator=generator))
        *uniform, normal = noise.split([*[1] * len(spec.choices), spec.reals], dim=-1)
        chosen, reals = encoded.split([sum(spec.choices), spec.reals], dim=-1)
        reals = reals + exploration * normal
        if not spec.choices:
            return reals
        chance = self._draw(generators, lambda generator: torch.rand(1, generator=generator))
        by_chance = [
            torch.nn.functional.one_hot((numbers[:, 0] * size).long(), size).float()
            for numbers, size in zip(uniform, spec.choices, strict=True)
        ]
        return torch.cat([torch.where(chance < exploration, torch.cat(by_chance, -1), chosen), reals], dim=-1)

    def _draw(self, generators: Sequence[torch.Generator], draw_one: Draw) -> Tensor:
        """Return what `draw_one` draws with each environment's generator, (N, …), on the device."""
        return torch.stack(list(self._draw_each(draw_one, generators))).to(self._device)


def _joined(memories: Sequence[Memory]) -> tuple[State, Tensor]:
    """Return the states (N, …) and the previous actions (N, A) of all memories."""
    if len(memories) == 1:
        return memories[0].state, memories[0].previous
    states = [memory.state for memory in memories]
    deterministic = torch.cat([state.deterministic for state in states])
    stochastic = torch.cat([state.stochastic for state in states])
    return State(deterministic, stochastic), torch.cat([memory.previous for memory in memories])
