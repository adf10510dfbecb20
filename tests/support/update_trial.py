"""Small agents that make updates, always the same ones from the same beginning, in one way or another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.hardware import Hardware, Mode
from dreamfleet.learner.optimiser import load_moments
from dreamfleet.learner.quick_update import Made
from dreamfleet.learner.ranks import ALONE, Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Update, Updater

B, T = 2, 3
CHOICE = ActionSpec("discrete", (3,))
BOX = ActionSpec("box", (2,), (-1.0, -1.0), (1.0, 3.0), (2,))
MIXED = ActionSpec("mixed", (2, 3), (-1.0, 0.0), (1.0, float("inf")))
VECTOR = ObservationSpec("state", (4,), "float32")


def settings_of(preset: str) -> Settings:
    """Return a preset's settings, or of several joined by +, at a size that compiles in seconds.

    The large epsilon makes a step proportional to the gradient: else a gradient that is nothing but rounding would
    be blown up to a whole step. All steps are large enough to be seen in what follows, and what depends on an update's
    number does so within a few.
    """
    flags = {
        "learner.batch_size": B,
        "learner.sequence_length": T,
        "learner.epsilon": 1.0,
        "learner.learning_rate": 0.1,
        "learner.warm_up": 3,
        "loss.free_nats": 0.0,
    }
    if preset != "planet":
        flags |= {f"behaviour.{name}_learning_rate": 0.1 for name in ("actor", "critic")}
        flags |= {f"behaviour.{name}": 1 for name in ("actor_layers", "critic_layers")} | {"behaviour.horizon": 2}
    if preset.startswith("dreamer_v2"):
        flags["behaviour.slow_critic_every"] = 2
    return resolve([*preset.split("+"), "debug"], [(name, str(value)) for name, value in flags.items()])


class Trial:
    """An agent that makes updates, always the same ones from the same beginning.

    Args:
        settings: its own.
        action: what it does.
        mode: how its updates are to be made.
        device: where.
        bfloat16: in which arithmetic.
        is_insisted: whether they are made so also where that gives other results.
        sees: whether it sees a picture, and no vector.
        ranks: that it is one of.
        begins_at_zero: whether heads do that begin at zero; else what learns from returns of nothing has no gradient.
    """

    def __init__(
        self,
        settings: Settings,
        action: ActionSpec,
        mode: Mode = "eager",
        device: str = "cpu",
        bfloat16: bool = False,
        is_insisted: bool = False,
        sees: bool = False,
        ranks: Ranks = ALONE,
        begins_at_zero: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.action, self.settings = torch.device(device), action, settings
        side = 64 if settings.model.encoder == "planet" else 16
        self._observation = ObservationSpec("image", (side, side, 3), "uint8") if sees else VECTOR
        self.networks = make_networks(Spaces((self._observation,), action), settings)
        for network in self.networks.all.values():
            for parameter in network.parameters():
                if parameter.ndim > 1 and not parameter.any() and not begins_at_zero:
                    torch.nn.init.normal_(parameter, std=0.3)
        self.agent, self.actor_critic, self.exploration = self.networks.to(self.device)
        hardware = Hardware(self.device, bfloat16, 1, (), mode, is_insisted)
        self.updater = Updater(self.networks, settings, hardware, ranks)
        self.made = 0

    def update(self, length: int = T, broken: bool = False) -> dict[str, float]:
        """Make the next update, and return its metrics; from a batch that is `broken` it must not be made."""
        update = self.try_update(length, broken)
        assert bool(update.not_finite) is broken
        return {name: value.item() for name, value in update.metrics.items()}

    def try_update(self, length: int = T, broken: bool = False) -> Update:
        """Make the next update if it is finite; forget that it was not, so that the one after it is made."""
        self.made += 1
        torch.manual_seed(self.made)
        batch = self._batch(length)
        if broken:
            batch["reward"][0, 1] = torch.nan
        update = self.updater.update(self.made, batch, Stopwatch())
        if not update.sound:
            self.updater.forget_failure()
        return update

    def prepare(self) -> None:
        """Compile and capture."""
        with torch.random.fork_rng(devices=[]):
            batch = self._batch(T)
        self.updater.prepare(batch)

    def resume(self) -> None:
        """Load what a checkpoint of this moment would hold, and prepare anew."""
        optimiser = self.updater.optimiser
        load_moments(optimiser, copy.deepcopy(optimiser.state_dict()))
        self.prepare()

    def _batch(self, length: int) -> dict[str, Tensor]:
        batch = make_batch(self.action, length, self._observation)
        return {name: value.to(self.device) for name, value in batch.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return the last update's gradients, clipped."""
        return {
            f"{prefix}.{name}": parameter.grad
            for prefix, network in self.networks.all.items()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }

    def state(self) -> dict[str, Tensor]:
        """Return all that was learnt."""
        return {name: value.clone() for name, value in self.updater._state.tensors().items()}


def make_batch(action: ActionSpec, length: int, observation: ObservationSpec = VECTOR) -> dict[str, Tensor]:
    """Return sequences of noise, in torch's default type; with the last one's last step another episode begins."""
    choices = torch.randint(2, (B, length, 2))
    of_kind = {"box": torch.rand(B, length, 2), "mixed": torch.cat([choices, torch.rand(B, length, 2)], -1)}
    first, last = (torch.zeros(B, length, dtype=torch.bool) for _ in range(2))
    first[:, 0] = first[-1, -1] = last[-1, -2] = True
    shape = (B, length, *observation.shape)
    seen = torch.randn(shape) if observation.dtype == "float32" else torch.randint(256, shape, dtype=torch.uint8)
    return {
        observation.name: seen,
        "action": of_kind.get(action.kind, torch.randint(3, (B, length), dtype=torch.int32)),
        "reward": torch.randn(B, length),
        "is_first": first,
        "is_last": last,
        "is_terminal": last.clone(),
    }


class StandInGraph:
    """What a CUDA graph does, on a CPU: it records without computing, and a replay fills the recorded results.

    Attributes:
        calls: in their order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._compute: Callable[[], Made] | None = None
        self._made: Made | None = None

    def warm_up(self, compute: Callable[[], object]) -> None:
        """See `Graph`."""
        self.calls.append("warm up")
        compute()

    def capture(self, compute: Callable[[], Made]) -> Made:
        """See `Graph`; what computing changes here is noticed where it is not put back."""
        self.calls.append("capture")
        self._compute, self._made = compute, compute()
        return self._made

    def replay(self) -> None:
        """See `Graph`."""
        self.calls.append("replay")
        assert self._compute is not None
        assert self._made is not None
        again = self._compute()
        self._made.values.copy_(again.values)
        self._made.sound.copy_(again.sound)
        assert self._made.gradients is not None
        assert again.gradients is not None
        self._made.gradients.vector.copy_(again.gradients.vector)
        if self._made.gradients.norms is not None and again.gradients.norms is not None:
            self._made.gradients.norms.copy_(again.gradients.norms)
