"""One update: forward, backward, clip, step; never from a loss that is not a number."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.rssm import State
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic, BehaviourLosses, imagine
from dreamfleet.learner.hardware import Compilation, Hardware, compile_region
from dreamfleet.learner.optimiser import ParameterGroup, clip_adaptively, correct_epsilon, find_parts, make_optimiser
from dreamfleet.learner.world_model_loss import world_model_loss


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds spent within to `name`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun


class Update(NamedTuple):
    """An update's metrics, on the device, and the names of those that are not finite: if any, nothing has changed.

    Read the metrics before the next update, which may overwrite them (`learner/hardware.py`).
    """

    metrics: dict[str, Tensor]
    not_finite: list[str]


class WorldLosses(NamedTuple):
    """The world model's loss (a scalar), its metrics, and the states from which futures are imagined, (B, T, …)."""

    total: Tensor
    metrics: dict[str, Tensor]
    states: State


class Regions(NamedTuple):
    """The two computations of an update, eager or compiled."""

    world: Callable[[Mapping[str, Tensor]], WorldLosses]
    behaviour: Callable[[State, Mapping[str, Tensor]], BehaviourLosses]


class Updater:
    """The optimiser on the losses of the world model and, where an actor learns, of actor and critic; clipped.

    Attributes:
        optimiser: Adam or LaProp, with groups of parameters for model, actor and critic.

    Args:
        actor_critic: how its actor learns, or None where nothing but the world model does.
    """

    def __init__(
        self, agent: AgentNetworks, actor_critic: ActorCritic | None, settings: Settings, hardware: Hardware
    ) -> None:
        self._agent = agent
        self._model = agent.world_model
        self._actor_critic = actor_critic
        self._settings = settings
        self._hardware = hardware
        learner, behaviour = settings.learner, settings.behaviour
        self._groups = [ParameterGroup("gradient/norm", self._model, learner.learning_rate, learner.clip)]
        if actor_critic is not None:
            self._groups += [
                ParameterGroup(f"gradient/{name}_norm", network, rate, behaviour.actor_clip)
                for name, network, rate in (
                    ("actor", actor_critic.actor, behaviour.actor_learning_rate),
                    ("critic", actor_critic.critic, behaviour.critic_learning_rate),
                )
            ]
        self._parameters = [parameter for group in self._groups for parameter in group.parameters]
        self._parts = find_parts([agent, *([actor_critic] if actor_critic is not None else [])])
        self.optimiser = make_optimiser(self._groups, learner)
        self._eager = Regions(self._world_losses, self._behaviour_losses)
        self._compiled = self._compile() if hardware.compiled else None
        self._compilation = Compilation(hardware.device)

    @property
    def is_compiled(self) -> bool:
        """Whether updates with batches of the usual shape are compiled, and compiling has not failed."""
        return self._compiled is not None and self._compilation.works

    def update(self, number: int, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Update:
        """Make one update from a batch on the device; one number is copied from it: whether all is finite.

        Args:
            number: of the update; the first is 1.
            batch: the fields of the step format, (B, T, …).
        """
        kept = self._buffers()
        before = [buffer.clone() for buffer in kept]
        with stopwatch("forward_backward"):
            self._model.train()
            self.optimiser.zero_grad(set_to_none=True)
            metrics, total = self._compute_gradients(batch, kept, before)
            found = self._clip()
            norms = [value for name, value in found.items() if name.endswith("norm")]
            finite = bool(torch.isfinite(torch.stack([total, *norms])).all())
        metrics |= found
        if not finite:
            _restore(kept, before)
            return Update(metrics, [name for name, value in metrics.items() if not torch.isfinite(value)])
        with stopwatch("optimiser"):
            self._step(number)
        return Update(metrics, [])

    def _compile(self) -> Regions:
        """Return the computations, to be compiled when they are first called."""
        device = self._hardware.device
        world = compile_region(self._world_losses, device)
        if self._actor_critic is None or self._actor_critic.through_model:
            # A compiled backward runs once, for all parameters; through the model each loss needs one for some.
            return Regions(world, self._behaviour_losses)
        return Regions(world, compile_region(self._behaviour_losses, device))

    def _compute_gradients(
        self, batch: Mapping[str, Tensor], buffers: list[Tensor], before: list[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute gradients, compiled where that is asked for and works, else eagerly from the buffers as they were."""
        compiled = self._compiled
        if compiled is not None and self._compilation.takes(batch):
            found = self._compilation.attempt(lambda: self._go_backward(compiled, batch))
            if found is not None:
                return found
            self.optimiser.zero_grad(set_to_none=True)
            _restore(buffers, before)
        return self._go_backward(self._eager, batch)

    def _go_backward(self, regions: Regions, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute all gradients; return the metrics and the sum of all losses, detached."""
        world = regions.world(batch)
        if self._actor_critic is None:
            world.total.backward()
            return dict(world.metrics), world.total.detach()
        losses = regions.behaviour(world.states, batch)
        others = world.total + losses.value + losses.replay_value
        total = others + losses.policy
        if self._actor_critic.through_model:
            others.backward()
            # Through the model this loss would reach everything; it is the actor's alone.
            losses.policy.backward(inputs=list(self._actor_critic.actor.parameters()))
        else:
            total.backward()
        return {**world.metrics, **losses.metrics}, total.detach()

    def _world_losses(self, batch: Mapping[str, Tensor]) -> WorldLosses:
        with self._hardware.autocast():
            world = world_model_loss(self._model, batch, self._settings.loss)
        return WorldLosses(world.total, world.metrics, world.rollout.states)

    def _behaviour_losses(self, states: State, batch: Mapping[str, Tensor]) -> BehaviourLosses:
        assert self._actor_critic is not None, "without an actor there is no behaviour to learn"
        horizon, through_model = self._settings.behaviour.horizon, self._actor_critic.through_model
        with self._hardware.autocast():
            imagined = imagine(self._agent, states, horizon, through_model)
        with self._hardware.autocast():  # another one: see `imagine`
            return self._actor_critic.losses(self._agent, imagined, states, batch)

    def _clip(self) -> dict[str, Tensor]:
        """Clip the gradients in place, and return their norms as metrics."""
        if self._settings.learner.clipping == "adaptive":
            found = clip_adaptively(self._parameters, self._settings.learner.clip, parts=self._parts)
            return {"gradient/norm": found.norm, "gradient/clipped_tensors": found.share}
        return {
            group.metric: torch.nn.utils.clip_grad_norm_(group.parameters, group.clip, foreach=True).detach()
            for group in self._groups
        }

    def _step(self, number: int) -> None:
        learner = self._settings.learner
        if learner.weight_decay:
            torch._foreach_mul_([parameter.data for parameter in self._parameters], 1.0 - learner.weight_decay)
        if learner.optimiser == "tensorflow_adam":
            correct_epsilon(self.optimiser, learner.epsilon, number)
        if learner.warm_up and learner.optimiser != "laprop":  # LaProp has a warm-up of its own
            for group, own in zip(self._groups, self.optimiser.param_groups, strict=True):
                own["lr"] = group.learning_rate * min(1.0, number / learner.warm_up)
        self.optimiser.step()
        if self._actor_critic is not None:
            self._actor_critic.after_update(number)

    def _buffers(self) -> list[Tensor]:
        """Return the tensors that a forward pass changes without a gradient."""
        normaliser = self._actor_critic.normaliser if self._actor_critic is not None else None
        return [*self._model.buffers(), *(normaliser.buffers() if normaliser is not None else ())]


def _restore(buffers: list[Tensor], before: list[Tensor]) -> None:
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
