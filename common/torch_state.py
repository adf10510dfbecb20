"""Torch's global settings and types: ours, whatever an environment in the same process has set for itself.

All arithmetic outside the networks' products is float32, also under autocast. If torch's default type is float64, all
of it is float64: tests use this to compare two computations, since float32 rounds differently on every processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class TorchState(NamedTuple):
    """Torch's global defaults; the values here are those torch starts with."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    has_gradients: bool = True

    @staticmethod
    def now() -> TorchState:
        """Return the current defaults."""
        return TorchState(torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled())

    def set(self) -> None:
        """Make these the defaults."""
        now = TorchState.now()
        if now.dtype is not self.dtype:
            torch.set_default_dtype(self.dtype)
        if now.device != self.device:
            # None for the CPU: a named device costs time at every call of torch.
            torch.set_default_device(None if self.device == "cpu" else self.device)
        if now.has_gradients is not self.has_gradients:
            torch.set_grad_enabled(self.has_gradients)


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Within, torch's own defaults hold: float32, CPU, gradients. Also a decorator.

    An environment may set other defaults for itself, and it may be stepped between any two calls of ours.
    """
    before = TorchState.now()
    TorchState().set()
    try:
        yield
    finally:
        before.set()


def full_precision(x: Tensor) -> Tensor:
    """Return a network's numbers as float32 if they are shorter; float32 and float64 stay unchanged."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products with `x` are computed in its own type."""
    # torch.autocast knows nothing of the device "meta".
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def as_input(x: Tensor) -> Tensor:
    """Return stored numbers, bytes or booleans in the networks' input type: torch's default, float32."""
    return x.to(torch.get_default_dtype())
