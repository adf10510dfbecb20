"""What torch computes by: ours, whatever an environment in the same process has set for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class TorchState(NamedTuple):
    """What functions of torch go by that are not told otherwise; as it stands here, it is torch's own beginning."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    has_gradients: bool = True

    @staticmethod
    def now() -> TorchState:
        """Return what holds now."""
        return TorchState(torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled())

    def set(self) -> None:
        """Have this hold from now on."""
        now = TorchState.now()
        if now.dtype is not self.dtype:
            torch.set_default_dtype(self.dtype)
        if now.device != self.device:
            # None, where it is the CPU: one that is named costs time at every call of torch.
            torch.set_default_device(None if self.device == "cpu" else self.device)
        if now.has_gradients is not self.has_gradients:
            torch.set_grad_enabled(self.has_gradients)


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Compute in float32, on the CPU unless said otherwise, and with gradients; put back what was set before.

    An environment may set other defaults for what it computes itself, and it may be stepped between any two of our own
    calls. Also a decorator.
    """
    before = TorchState.now()
    TorchState().set()
    try:
        yield
    finally:
        before.set()


def full_precision(x: Tensor) -> Tensor:
    """Return a network's numbers as float32 where they are shorter than that; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def as_input(x: Tensor) -> Tensor:
    """Return stored numbers, bytes or truth values in the type networks begin with: torch's default one, float32."""
    return x.to(torch.get_default_dtype())
