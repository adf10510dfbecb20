"""An update's computation compiled by torch: fewer and larger kernels, which a GPU gets as one graph.

Only training batches have one shape for ever, so that they alone go this way; measuring and showing stay eager. What is
compiled are functions, not modules, whose parameters would change their names in checkpoints.
"""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 300
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


def compile_region(
    function: Callable[_Given, _Returned], device: torch.device, backend: str = "inductor"
) -> Callable[_Given, _Returned]:
    """Return the function compiled as a whole when it is first called, for the shapes of that call.

    Random numbers are torch's own: the same seed draws what it draws eagerly, but for the order of the arithmetic. On a
    GPU the kernels are captured in a CUDA graph, whose results the next update overwrites (`Compilation.attempt`).

    Args:
        function: of tensors on the device, without side effects but on buffers.
        device: where.
        backend: torch's; `aot_eager` traces forward and backward alike, but leaves the operations as they are.
    """
    # The cached function makes constants of the environment's bounds, which never change.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    options: dict[str, str | int | bool | Callable[..., object]] | None = None
    if backend == "inductor":
        options = {"fallback_random": True, "triton.cudagraphs": device.type == "cuda"}
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)


class Compilation:
    """Goes the compiled way with batches of the shape that it met first, until it fails once.

    Attributes:
        works: whether it has not failed.

    Args:
        device: where the computation is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self.works = True

    def takes(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether this batch is to go the compiled way: another shape would have to be compiled anew.

        The first batch that it is asked about sets the shape.
        """
        shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
        self._shapes = self._shapes or shapes
        return self.works and shapes == self._shapes

    def attempt(self, compute: Callable[[], _Returned]) -> _Returned | None:
        """Return what a compiled computation returns, or None once it failed, which is logged in a sentence.

        Then the random numbers are as before, and it was the last attempt. What an attempt returns and what gradients
        it leaves must have been used when the next one begins, which overwrites them.
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
    """Return the states of the generators that draw for the device."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
