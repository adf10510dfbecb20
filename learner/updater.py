"""One update: forward, backward, clip, step; never from a loss that is not a number.

The host reads nothing of an update while it is made. Whether all was finite is a flag on the device, by which
parameters, moments, counts and buffers change or stay. Once it is false it stays so, and later updates change nothing
either, until the host has read it, one update late (`Learner.train`).
"""

from __future__ import annotations

import math
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
from dreamfleet.learner.clipping import Gradients, ParameterGroup, clip_adaptively, clip_by_norm, find_parts
from dreamfleet.learner.hardware import Compilation, Hardware, compile_region
from dreamfleet.learner.optimiser import make_optimiser
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


class HostFlag:
    """A flag on the device, on its way to the host: reading it waits for what it depends on, and for nothing later."""

    def __init__(self, flag: Tensor) -> None:
        self._flag, self._event = flag, None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def __bool__(self) -> bool:
        """Return the flag."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)


class Update(NamedTuple):
    """What came of an update.

    Attributes:
        names: of the metrics.
        values: of the metrics, on the device.
        sound: whether this update and all before it were finite; if not, it has changed nothing.
    """

    names: list[str]
    values: Tensor
    sound: HostFlag

    @property
    def metrics(self) -> dict[str, Tensor]:
        """The metrics by name, still on the device."""
        return dict(zip(self.names, self.values.unbind(), strict=True))

    @property
    def not_finite(self) -> list[str]:
        """Names of the metrics that are not finite, if the update is not sound; the host waits for it."""
        if self.sound:
            return []
        return [name for name, value in zip(self.names, self.values.tolist(), strict=True) if not math.isfinite(value)]


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
        self._number = torch.zeros((), dtype=torch.int64, device=hardware.device)
        self._sound = torch.ones((), dtype=torch.bool, device=hardware.device)

    @property
    def is_compiled(self) -> bool:
        """Whether updates with batches of the usual shape are compiled, and compiling has not failed."""
        return self._compiled is not None and self._compilation.works

    def update(self, number: int, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Update:
        """Make one update from a batch on the device; nothing is read from there.

        Args:
            number: of the update; the first is 1.
            batch: the fields of the step format, (B, T, …).
        """
        self._number.fill_(number)
        kept = self._buffers()
        before = [buffer.clone() for buffer in kept]
        with stopwatch("forward_backward"):
            self._model.train()
            self.optimiser.zero_grad(set_to_none=True)
            metrics, total = self._compute_gradients(batch, kept, before)
            gradients = Gradients(self._parameters)
            found = self._clip(gradients)
            norms = [value for name, value in found.items() if name.endswith("norm")]
            self._sound.logical_and_(torch.isfinite(torch.stack([total, *norms])).all())
        with stopwatch("optimiser"), torch.no_grad():
            for buffer, value in zip(kept, before, strict=True):
                buffer.copy_(torch.where(self._sound, buffer, value))
            gradients.vector.masked_fill_(~self._sound, 0.0)
            self._step()
        metrics |= found
        values = torch.stack([value.float() for value in metrics.values()])
        return Update(list(metrics), values, HostFlag(self._sound.clone()))

    def forget_failure(self) -> None:
        """Make updates again, after one that was not finite was read."""
        self._sound.fill_(True)

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

    def _clip(self, gradients: Gradients) -> dict[str, Tensor]:
        """Clip the gradients in place, and return their norms as metrics."""
        if self._settings.learner.clipping == "adaptive":
            found = clip_adaptively(gradients, self._settings.learner.clip, parts=self._parts)
            return {"gradient/norm": found.norm, "gradient/clipped_tensors": found.share}
        return clip_by_norm(self._groups)

    def _step(self) -> None:
        """Change the parameters, if the update is sound; schedules follow the update's number on the device."""
        learner = self._settings.learner
        if learner.weight_decay:
            kept = torch.where(self._sound, 1.0 - learner.weight_decay, 1.0)
            torch._foreach_mul_([parameter.data for parameter in self._parameters], kept)
        self.optimiser.found_inf = (~self._sound).float()  # type: ignore[attr-defined]
        if learner.warm_up and learner.optimiser != "laprop":  # LaProp has a warm-up of its own
            share = (self._number / learner.warm_up).clamp(max=1.0)
            for group, own in zip(self._groups, self.optimiser.param_groups, strict=True):
                own["lr"] = group.learning_rate * share
        self.optimiser.step()
        for group, own in zip(self._groups, self.optimiser.param_groups, strict=True):
            own["lr"] = group.learning_rate  # a number again, as it is saved
        if self._actor_critic is not None:
            self._actor_critic.after_update(self._number, self._sound)

    def _buffers(self) -> list[Tensor]:
        """Return the tensors that a forward pass changes without a gradient."""
        normaliser = self._actor_critic.normaliser if self._actor_critic is not None else None
        return [*self._model.buffers(), *(normaliser.buffers() if normaliser is not None else ())]


def _restore(buffers: list[Tensor], before: list[Tensor]) -> None:
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
