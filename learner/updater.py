"""One update: forward, backward, clip, step; never from a loss that is not a number."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.settings import LearnerSettings, LossSettings
from dreamfleet.common.world_model import WorldModel
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.losses import world_model_loss


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
    """What an update did: its metrics, on the device, and what was not finite; if anything was, nothing changed."""

    metrics: dict[str, Tensor]
    not_finite: list[str]


class Updater:
    """Adam on the world model's loss, with the gradient's global norm clipped.

    Attributes:
        optimiser: Adam.

    Args:
        model: on its device.
        loss: weights and free nats.
        settings: learning rate, epsilon, clip.
        hardware: where the model is, and in which arithmetic.
    """

    def __init__(self, model: WorldModel, loss: LossSettings, settings: LearnerSettings, hardware: Hardware) -> None:
        self._model = model
        self._loss = loss
        self._clip = settings.clip
        self._hardware = hardware
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.Adam(
            self._parameters, lr=settings.learning_rate, eps=settings.adam_epsilon, fused=True
        )

    def update(self, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Update:
        """Make one update from a batch on the device; one number comes back from it, to see that all is finite."""
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        with stopwatch("forward_backward"):
            self._model.train()
            self.optimiser.zero_grad(set_to_none=True)
            with self._hardware.autocast():
                result = world_model_loss(self._model, batch, self._loss)
            result.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip, foreach=True)
            finite = bool(torch.isfinite(torch.stack([result.total.detach(), norm])).all())
        metrics = {**result.metrics, "gradient/norm": norm.detach()}
        if not finite:
            for buffer, before in zip(self._model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            return Update(metrics, [name for name, value in metrics.items() if not torch.isfinite(value)])
        with stopwatch("optimiser"):
            self.optimiser.step()
        return Update(metrics, [])

    def load_optimiser(self, state: dict[str, Any]) -> None:
        """Take over Adam's moments; learning rate and epsilon stay those of the settings."""
        groups = zip(state["param_groups"], self.optimiser.param_groups, strict=True)
        kept = [saved | {name: value for name, value in now.items() if name != "params"} for saved, now in groups]
        self.optimiser.load_state_dict({"state": state["state"], "param_groups": kept})
