"""Everything that an update changes, taken before a trial of updates and put back after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Taken(NamedTuple):
    """A copy in the host's memory, where several of them do not crowd a GPU: tensors by name, and random states."""

    tensors: dict[str, Tensor]
    random: list[Tensor]


class UpdateState:
    """Parameters, buffers, the optimiser's moments and counts, flags, and torch's random states.

    All is put back into the memory in which it lies, which a captured graph goes on to use.

    Args:
        networks: by name; what two of them share is taken once.
        others: further tensors that an update changes.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        others: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._networks, self._optimiser, self._others, self._device = networks, optimiser, others, device

    def take(self) -> Taken:
        """Return a copy of the present state."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors().items()}
        return Taken(tensors, random_states(self._device))

    @torch.no_grad()
    def put_back(self, taken: Taken) -> None:
        """Make a state the present one. Moments that were not there yet become zeros, as which an optimiser begins."""
        for name, tensor in self.tensors().items():
            if name in taken.tensors:
                tensor.copy_(taken.tensors[name])
            else:
                tensor.zero_()
        set_random_states(self._device, taken.random)

    @torch.no_grad()
    def disturb(self, share: float) -> None:
        """Change every parameter by up to this share of itself, as rounding would."""
        for name, tensor in self.tensors().items():
            if isinstance(tensor, nn.Parameter):
                generator = torch.Generator().manual_seed(len(name))
                factor = 1.0 + share * (2.0 * torch.rand(tensor.shape, generator=generator) - 1.0)
                tensor.mul_(factor.to(tensor.device))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name, in memory of their own."""
        found: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for prefix, network in self._networks.items():
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                if id(tensor) not in names:
                    names[id(tensor)] = f"{prefix}.{name}"
                    found[f"{prefix}.{name}"] = tensor
        for parameter, moments in self._optimiser.state.items():
            for name, moment in moments.items():
                if isinstance(moment, Tensor):
                    found[f"{names[id(parameter)]}: {name}"] = moment
        return {**found, **self._others}


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators that an update on the device may draw from."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def set_random_states(device: torch.device, states: list[Tensor]) -> None:
    """Make these the states, see `random_states`."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
