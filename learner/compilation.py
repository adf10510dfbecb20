"""An update's computation compiled by torch: fewer and larger kernels, on a GPU captured as one graph.

Only training batches always have the same shape, so only they are compiled; measuring and drawing stay eager. Functions
are compiled, not modules, whose parameters would change their names in checkpoints.
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
