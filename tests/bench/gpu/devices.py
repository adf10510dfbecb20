"""The GPU's clock, its queue and its memory; on a CPU, in a dry run, what stands for them."""

from __future__ import annotations

import gc
import time

import torch

from tests.bench.gpu.findings import say


def is_gpu(device: torch.device) -> bool:
    """Return whether the device is a GPU; whoever has none can say that it is, and stand in for `torch.cuda`."""
    return device.type == "cuda"


class Mark:
    """A moment in the device's order of work; on a CPU now."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if is_gpu(device) else None
        self._now = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def ms_since(self, other: Mark) -> float:
        """Return the milliseconds from the other moment to this one; the device must have come past both."""
        if self._event is not None and other._event is not None:
            return other._event.elapsed_time(self._event)
        return 1000 * (self._now - other._now)


def wait_for(device: torch.device) -> None:
    """Return once the device has done all its work."""
    if is_gpu(device):
        torch.cuda.synchronize()


def forget_peak(device: torch.device) -> None:
    """Measure the most memory from now on."""
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float:
    """Return the most memory that torch had given out; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if is_gpu(device) else 0.0


def release(device: torch.device) -> None:
    """Free what agents that are gone have left on the device."""
    gc.collect()
    torch.compiler.reset()
    if is_gpu(device):
        torch.cuda.empty_cache()
        say(f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB still taken")
