"""The device, the precision and the threads on which a learner computes, and how its updates are made.

Only training batches always have the same shape, so only they are compiled; measuring and drawing stay eager. Functions
are compiled, not modules, whose parameters would change their names in checkpoints.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import torch
import torch._functorch.config as aot_settings

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings

Mode = Literal["eager", "compiled", "captured"]
"""How updates are made: by torch's own kernels; with compiled steps; or captured, these in one CUDA graph."""

_MOST_BESIDE_A_GPU = 4
"""Threads of torch on the CPU beside a GPU: what it computes there is little, and the cores are the actors'."""
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


@dataclass(frozen=True)
class Hardware:
    """What was chosen.

    Attributes:
        bfloat16: whether forward and backward are in bfloat16 where that is safe (autocast).
        decisions: one sentence for each choice, with its reason.
        mode: how updates are to be made, if that works here.
        is_insisted: whether they are made so also where that gives other results.
    """

    device: torch.device
    bfloat16: bool
    threads: int
    decisions: tuple[str, ...]
    mode: Mode = "eager"
    is_insisted: bool = False

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
    return TorchThreads(number, "OMP_NUM_THREADS" in os.environ or number > usable_cores())


def choose_hardware(
    settings: LearnerSettings, busy_cores: int, set_to: TorchThreads | None = None, sharing: int = 1
) -> Hardware:
    """Choose as the settings say, or as the machine suggests, and set the threads.

    Args:
        busy_cores: cores that other processes of the run keep busy: a learner on the CPU leaves these to them.
        set_to: the threads that torch was set to, which are respected unless the settings name a number.
        sharing: ranks of the learner on this machine, each of which takes its share of what is left.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    device, device_reason = _choose_device(settings)
    bfloat16, precision_reason = _choose_precision(settings, device)
    threads, threads_reason = _choose_threads(settings, device, busy_cores, set_to, sharing)
    mode, mode_reason = _choose_mode(settings, device)
    torch.set_num_threads(threads)
    return Hardware(
        device,
        bfloat16,
        threads,
        (
            f"device: {device.type}, {device_reason}",
            f"precision: {'bfloat16' if bfloat16 else 'float32'}, {precision_reason}",
            f"threads: {threads}, {threads_reason}",
            f"updates: {mode}, {mode_reason}",
        ),
        mode,
        settings.compile == "on",
    )


def wants_compiled(settings: LearnerSettings, device: torch.device) -> bool:
    """Return whether updates on this device are to be compiled."""
    return settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")


def _choose_mode(settings: LearnerSettings, device: torch.device) -> tuple[Mode, str]:
    mode: Mode = "eager"
    if wants_compiled(settings, device):
        mode = "captured" if device.type == "cuda" else "compiled"
    if settings.compile != "auto":
        return mode, "as learner.compile says"
    return mode, "since a GPU waits for each small kernel" if mode == "captured" else "since a CPU gains little"


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
    settings: LearnerSettings, device: torch.device, busy_cores: int, set_to: TorchThreads | None, sharing: int
) -> tuple[int, str]:
    if settings.threads:
        return settings.threads, "as learner.threads says"
    if set_to and set_to.is_asked_for:
        return set_to.number, "as OMP_NUM_THREADS or torch.set_num_threads says"
    threads, reason = _spare_threads(device, busy_cores, sharing)
    if set_to and set_to.number < threads:
        return set_to.number, "as torch is set to by itself or by torch.set_num_threads; learner.threads may say more"
    return threads, reason


def _spare_threads(device: torch.device, busy_cores: int, sharing: int) -> tuple[int, str]:
    cores = usable_cores()
    spare = max(0, cores - busy_cores) // sharing
    among = f", shared by {sharing} ranks" if sharing > 1 else ""
    if device.type != "cpu":
        threads = max(1, min(_MOST_BESIDE_A_GPU, spare))
        kept = f"{busy_cores} of {cores} cores are the actors'"
        return threads, f"beside a GPU at most {_MOST_BESIDE_A_GPU}, and {kept}{among}"
    if not busy_cores and spare:
        return spare, f"all cores that this process may use{among}"
    if spare:
        return spare, f"of {cores} cores that this process may use, less {busy_cores} for the actors{among}"
    return 1, f"the least: the actors, {busy_cores}, keep busy all {cores} cores that this process may use{among}"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS binds no process to cores


def compile_region(function: Callable[_Given, _Returned], backend: str = "inductor") -> Callable[_Given, _Returned]:
    """Return a function that is compiled as a whole when it is first called, for the shapes of that call.

    Random numbers are torch's own: the same seed draws the same numbers as eagerly. The backward pass is compiled
    without autocast, as an eager one is made: under the forward pass's, products kept from it would be rounded.

    Args:
        function: of tensors on the device, with no side effects other than on buffers.
        backend: torch's; `aot_eager` traces forward and backward, but leaves the operations as they are.
    """
    # The cached function makes constants of the environment's bounds, which never change.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    options: dict[str, str | int | bool | Callable[..., object]] | None = None
    if backend == "inductor":
        options = {"fallback_random": True, "triton.cudagraphs": False}
    if hasattr(aot_settings, "backward_pass_autocast"):  # not in torch 2.6 and 2.7
        aot_settings.backward_pass_autocast = "off"  # noqa: S105 (no password)
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)
