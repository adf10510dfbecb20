"""One update: forward, backward, clip, step; never from a loss that is not a number.

The host reads nothing of an update while it is made. Whether all was finite is a flag on the device, by which
parameters, moments, counts and buffers change or stay. Once it is false it stays so, and later updates change nothing
either, until the host has read it, one update late (`UpdateLoop.run`).

`Hardware.mode` says how updates are made: `eager`, with `compiled` steps, or these `captured` in one CUDA graph, which
`Updater.prepare(batch)` does beforehand. What does not work here is said in the log, and updates go on in
the next best way: `Updater.mode` is what holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.model.layers import BatchNorm2d
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.behaviour.exploration import PREFIX, Exploration
from dreamfleet.learner.behaviour.networks import Networks
from dreamfleet.learner.behaviour.returns import ReturnNormaliser
from dreamfleet.learner.clipping import Gradients, ParameterGroup, clip_adaptively, clip_by_norm, find_parts
from dreamfleet.learner.compiled_loops import Compile
from dreamfleet.learner.hardware import Hardware, Mode, compile_region
from dreamfleet.learner.host_copy import HostCopy
from dreamfleet.learner.losses import Losses
from dreamfleet.learner.optimiser import make_optimiser
from dreamfleet.learner.quick_update import Made, QuickUpdate
from dreamfleet.learner.ranks import ALONE, Message, Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.update_state import UpdateState


class Update(NamedTuple):
    """What came of an update.

    Attributes:
        names: of the metrics.
        values: of the metrics, on the device.
        flag: that of `sound`, on its way.
        told: what the ranks told each other with it, if there are several.
    """

    names: list[str]
    values: Tensor
    flag: HostCopy
    told: Message | None = None

    @property
    def sound(self) -> bool:
        """Whether this update and all before it were finite; if not, it has changed nothing. Waits for the device."""
        return bool(self.flag.read())

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


class Updater:
    """The optimiser on the losses of the world model and, where an actor learns, of actor and critic; clipped.

    Attributes:
        optimiser: Adam or LaProp, with groups of parameters for model, actor and critic, and for what explores.

    Args:
        networks: what learns.
        ranks: that share a batch; each gives its own part to `update`, and all make the same step.
    """

    def __init__(self, networks: Networks, settings: Settings, hardware: Hardware, ranks: Ranks = ALONE) -> None:
        self._networks = networks
        self._model = networks.agent.world_model
        self._settings = settings
        self._hardware = hardware
        self._ranks = ranks
        modules = [module for network in networks.all.values() for module in network.modules()]
        for module in modules:
            if isinstance(module, BatchNorm2d | ReturnNormaliser | Exploration):
                module.ranks = ranks
        self._normalisers = [module for module in modules if isinstance(module, ReturnNormaliser)]
        self._groups = self._make_groups()
        self._parameters = [parameter for group in self._groups for parameter in group.parameters]
        self._parts = find_parts(networks.all.values())
        self.optimiser = make_optimiser(self._groups, settings.learner)
        self._number = torch.zeros((), dtype=torch.int64, device=hardware.device)
        self._sound = torch.ones((), dtype=torch.bool, device=hardware.device)
        others = {"number": self._number, "sound": self._sound}
        self._state = UpdateState(networks.all, self.optimiser, others, hardware.device)
        self._eager = self._make_losses()
        self._quick = QuickUpdate(self._make, self._state, hardware, self._compile, ranks)

    def _make_groups(self) -> list[ParameterGroup]:
        """Return all parameters by their rates; a decoder that learns aside is clipped alone, so as not to slow it."""
        learner, settings = self._settings.learner, self._settings
        aside = self._model.decoder if self._model.projector is not None else None
        groups = [ParameterGroup("gradient/norm", self._model, learner.learning_rate, learner.clip, without=aside)]
        if aside is not None:
            groups.append(ParameterGroup("gradient/decoder_norm", aside, learner.learning_rate, learner.clip))
        if self._networks.actor_critic is not None:
            groups += _groups_of(self._networks.actor_critic, settings)
        exploration = self._networks.exploration
        if exploration is not None:
            name, clip = f"{PREFIX}gradient/ensemble_norm", settings.behaviour.actor_clip
            groups.append(ParameterGroup(name, exploration.ensemble, learner.learning_rate, clip))
            groups += _groups_of(exploration.actor_critic, settings, PREFIX)
        return groups

    @property
    def mode(self) -> Mode:
        """How updates of the usual shapes are made: as the hardware says, or in the next best way that works."""
        return self._quick.mode

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Compile and capture as the hardware's mode says; it takes a minute, and is logged.

        Else the first update does so. To be called again when a checkpoint was loaded.

        Args:
            batch: of the usual shapes, on the device; all that is computed from it is forgotten.
        """
        self._quick.prepare(batch)

    def update(self, number: int, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Update:
        """Make one update from a batch on the device; nothing is read from there.

        But the first of the usual shapes, unless eager, is made in two ways and compared (`QuickUpdate`).

        Args:
            number: of the update; the first is 1.
            batch: the fields of the step format, (B, T, …).
        """
        self._number.fill_(number)
        self._ranks.begin_update()
        made = self._quick.make(batch, stopwatch) if self._quick.takes(batch) else None
        made = made or self._make(self._eager, batch, stopwatch)
        return Update(made.names, made.values, HostCopy(made.sound.clone()), self._ranks.listen())

    def forget_failure(self) -> None:
        """Make updates again, after one that was not finite was read."""
        self._sound.fill_(True)

    def _compile(self) -> Losses:
        """Return the losses by functions that are compiled when they are first called."""
        return self._make_losses(compile_region)

    def _make_losses(self, compile_: Compile | None = None) -> Losses:
        return Losses(self._networks, self._settings, self._hardware, self._ranks, compile_)

    def _make(self, losses: Losses | None, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Made:
        """Make the update whose number is on the device; with compiled losses, or eagerly with None.

        It launches the same kernels on the same memory every time, and so can be captured.
        """
        kept = self._buffers()
        before = [buffer.clone() for buffer in kept]
        with stopwatch("forward_backward"):
            self._model.train()
            self.optimiser.zero_grad(set_to_none=True)
            try:
                metrics, total = (losses or self._eager).go_backward(batch)
            except Exception:
                for buffer, value in zip(kept, before, strict=True):
                    buffer.copy_(value)
                raise
            self._ranks.complete(self._parameters)
            gradients = Gradients(self._parameters, self._ranks.extra)
            total = self._ranks.average(gradients.message, total)
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
        return Made(list(metrics), values, self._sound, gradients)

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
        for actor_critic in self._networks.actor_critics:
            actor_critic.after_update(self._number, self._sound)

    def _buffers(self) -> list[Tensor]:
        """Return the tensors that a forward pass changes without a gradient."""
        return [*self._model.buffers(), *(buffer for each in self._normalisers for buffer in each.buffers())]


def _groups_of(actor_critic: ActorCritic, settings: Settings, prefix: str = "") -> list[ParameterGroup]:
    """Return the groups of parameters of an actor and its critic."""
    behaviour = settings.behaviour
    return [
        ParameterGroup(f"{prefix}gradient/{name}_norm", network, rate, behaviour.actor_clip)
        for name, network, rate in (
            ("actor", actor_critic.actor, behaviour.actor_learning_rate),
            ("critic", actor_critic.critic, behaviour.critic_learning_rate),
        )
    ]
