"""A few numbers on their way from the device to the host, which reads them when it wants them."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A tensor's values, copied as soon as the device has them: reading waits for these, and for nothing later."""

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._event = tensor, None
        if tensor.is_cuda:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = pinned.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)  # else the host would spin, on a core that the actors want
            self._event.record()

    def read(self) -> Tensor:
        """Return the values, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
