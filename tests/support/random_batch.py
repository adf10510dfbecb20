"""Batches as the replay gives them, with random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamfleet.common.experience.spaces import Spaces


def random_batch(spaces: Spaces, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch as the replay gives it, on which an episode begins in the middle of the first sequence."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    fields: dict[str, Tensor] = {}
    for spec in spaces.observations:
        values = uniform(batch, length, *spec.shape)
        fields[spec.name] = (values * 256).to(torch.uint8) if spec.is_image else values * 4 - 2
    action = spaces.action
    values = uniform(batch, length, *action.stored_shape)
    if action.kind == "box":
        fields["action"] = values * 2 - 1
    else:
        sizes = torch.tensor(action.sizes if action.kind == "multi_discrete" else action.sizes[0])
        fields["action"] = (values * sizes).to(torch.int32)
    fields["reward"] = uniform(batch, length) - 0.5
    fields["is_first"] = torch.zeros(batch, length, dtype=torch.bool)
    fields["is_first"][:, 0] = True
    fields["is_first"][0, length // 2] = True
    fields["is_terminal"] = torch.zeros(batch, length, dtype=torch.bool)
    fields["is_terminal"][0, length // 2 - 1] = True
    return fields
