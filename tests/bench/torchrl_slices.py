"""TorchRL's replay buffer with the same steps as ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SliceSampler

from tests.bench.recording import Arrays

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it tells each storage it makes


class TorchRLSlices:
    """Samples slices of `length` steps, none of which joins two streams.

    Args:
        kind: "memmap" or "tensor", which of TorchRL's storages.
        whole: all streams end to end, each field as (steps, *shape).
        streams: how many streams of equal length those are.
        size: slices of a batch.
        length: steps of a slice.
        scratch: folder for the memory-mapped files.
    """

    def __init__(self, kind: str, whole: Arrays, streams: int, size: int, length: int, scratch: Path) -> None:
        steps = len(whole["reward"])
        fields: dict[str, Any] = {name: torch.from_numpy(array) for name, array in whole.items()}
        fields["stream"] = torch.arange(steps) // (steps // streams)
        folder = scratch / f"torchrl-{size}-{length}"
        storage = LazyMemmapStorage(steps, scratch_dir=str(folder)) if kind == "memmap" else LazyTensorStorage(steps)
        # Neither storing where slices end nor caching where trajectories do would last while a buffer grows: the former
        # is left out because ours does not do it, the latter because it has to be worked out anew after each insertion.
        sampler = SliceSampler(
            slice_len=length, traj_key="stream", truncated_key=None, strict_length=True, cache_values=False
        )
        self._buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=size * length)
        self._buffer.extend(TensorDict(fields, [steps]))

    def sample(self) -> Any:
        """Return a batch of (size · length) steps."""
        return self._buffer.sample()
