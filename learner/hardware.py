"""The device, the precision and the threads on which a learner computes, and why they were chosen."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings


@dataclass(frozen=True)
class Hardware:
    """What was chosen.

    Attributes:
        bfloat16: whether forward and backward are in bfloat16 where that is safe (autocast).
        threads: CPU threads.
        decisions: one sentence for each choice, with its reason.
        compiled: whether updates are compiled.
    """

    device: torch.device
    bfloat16: bool
    threads: int
    decisions: tuple[str, ...]
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the loss is computed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


class TorchThreads(NamedTuple):
    """How many threads torch was set to where the run was started, and whether the user must have meant that number."""

    number: int
    is_asked_for: bool


def torch_threads() -> TorchThreads:
    """Return the threads that torch is set to in this process.

    torch reads OMP_NUM_THREADS by itself, and `torch.set_num_threads` overrides it. Without the variable, fewer threads
    than there are cores may be torch's own choice: then they are a limit, not a request.

    Do not call it where Ray has set the variable: in its workers, and in a cluster's jobs and shells.
    """
    number = torch.get_num_threads()
    return TorchThreads(number, "OMP_NUM_THREADS" in os.environ or number > _usable_cores())


def choose_hardware(settings: LearnerSettings, busy_cores: int, set_to: TorchThreads | None = None) -> Hardware:
    """Choose as the settings say, or as the machine suggests, and set the threads.

    Args:
        busy_cores: cores that other processes of the run keep busy: a learner on the CPU leaves these to them.
        set_to: the threads that torch was set to, which are respected unless the settings name a number.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    device, device_reason = _choose_device(settings)
    bfloat16, precision_reason = _choose_precision(settings, device)
    threads, threads_reason = _choose_threads(settings, device, busy_cores, set_to)
    torch.set_num_threads(threads)
    return Hardware(
        device,
        bfloat16,
        threads,
        (
            f"device: {device.type}, {device_reason}",
            f"precision: {'bfloat16' if bfloat16 else 'float32'}, {precision_reason}",
            f"threads: {threads}, {threads_reason}",
            f"compile: {'yes' if settings.compile else 'no'}, as learner.compile says",
        ),
        settings.compile,
    )


def _choose_device(settings: LearnerSettings) -> tuple[torch.device, str]:
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise UserError("learner.device is cuda, but torch finds no GPU here; use auto or cpu.")
    if settings.device == "cpu":
        return torch.device("cpu"), "as learner.device says"
    if not found:
        return torch.device("cpu"), "no GPU was found"
    name = torch.cuda.get_device_name(0)
    return torch.device("cuda", 0), f"{name}, {'as learner.device says' if settings.device == 'cuda' else 'was found'}"


def _choose_precision(settings: LearnerSettings, device: torch.device) -> tuple[bool, str]:
    if settings.precision != "auto":
        return settings.precision == "bfloat16", "as learner.precision says"
    if device.type == "cpu":
        return False, "since a CPU gains nothing from less"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return False, "since this GPU has no bfloat16"
    return True, "since the GPU is faster with it; parameters, losses and distributions stay float32"


def _choose_threads(
    settings: LearnerSettings, device: torch.device, busy_cores: int, set_to: TorchThreads | None
) -> tuple[int, str]:
    if settings.threads:
        return settings.threads, "as learner.threads says"
    if set_to and set_to.is_asked_for:
        return set_to.number, "as OMP_NUM_THREADS or torch.set_num_threads says"
    threads, reason = _spare_threads(device, busy_cores)
    if set_to and set_to.number < threads:
        return set_to.number, "as torch is set to by itself or by torch.set_num_threads; learner.threads may say more"
    return threads, reason


def _spare_threads(device: torch.device, busy_cores: int) -> tuple[int, str]:
    cores = _usable_cores()
    if device.type != "cpu" or not busy_cores:
        return cores, "all cores that this process may use"
    if cores > busy_cores:
        return cores - busy_cores, f"of {cores} cores that this process may use, less {busy_cores} for the actors"
    return 1, f"the least: the actors, {busy_cores}, keep busy all {cores} cores that this process may use"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS binds no process to cores
