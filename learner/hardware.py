"""The device, the precision and the threads on which a learner computes, and updates compiled by torch.

Compiled, an update has fewer and larger kernels, on a GPU captured as one graph. Only training batches always have the
same shape, so only they are compiled; measuring and drawing stay eager. Functions are compiled, not modules, whose
parameters would change their names in checkpoints.
"""

from __future__ import annotations

import logging
import os
import textwrap
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 300
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


@dataclass(frozen=True)
class Hardware:
    """What was chosen.

    Attributes:
        bfloat16: whether forward and backward are in bfloat16 where that is safe (autocast).
        decisions: one sentence for each choice, with its reason.
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


def compile_region(
    function: Callable[_Given, _Returned], device: torch.device, backend: str = "inductor"
) -> Callable[_Given, _Returned]:
    """Return a function that is compiled as a whole when it is first called, for the shapes of that call.

    Random numbers are torch's own: the same seed draws the same numbers as eagerly. On a GPU the kernels are captured
    in a CUDA graph, whose results the next update overwrites (`Compilation.attempt`).

    Args:
        function: of tensors on the device, with no side effects other than on buffers.
        backend: torch's; `aot_eager` traces forward and backward, but leaves the operations as they are.
    """
    # The cached function makes constants of the environment's bounds, which never change.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    options: dict[str, str | int | bool | Callable[..., object]] | None = None
    if backend == "inductor":
        options = {"fallback_random": True, "triton.cudagraphs": device.type == "cuda"}
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)


class Compilation:
    """Runs compiled computations on batches of the first one's shape, until one of them fails.

    Attributes:
        works: whether none has failed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self.works = True

    def takes(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether this batch has the shape of the first one: another would have to be compiled anew."""
        shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
        self._shapes = self._shapes or shapes
        return self.works and shapes == self._shapes

    def attempt(self, compute: Callable[[], _Returned]) -> _Returned | None:
        """Return the result of a compiled computation, or None if it failed, which is logged in a sentence.

        After a failure the random numbers are as before, and there are no further attempts. The results and gradients
        of an attempt must be used before the next one, which overwrites them.
        """
        drawn = _random_states(self._device)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return compute()
        except Exception as error:  # noqa: BLE001 (compilers raise anything; an error of the update itself comes again)
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" …")
        self.works = False
        _set_random_states(self._device, drawn)
        torch.compiler.reset()  # frees the graphs' memory
        _LOG.warning("Updates go on uncompiled, as without learner.compile, since torch.compile failed: %s", reason)
        return None


def _random_states(device: torch.device) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
