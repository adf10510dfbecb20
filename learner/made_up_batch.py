"""A batch with the shapes of a run's, to try an update with where there is no experience yet."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings


def made_up_batch(settings: Settings, spaces: Spaces) -> dict[str, Tensor]:
    """Return a batch of tensors (B, T, …): the observations are noise, all else is zero, but for is_first of step 0."""
    observed = {spec.name for spec in spaces.observations}
    batch = {}
    for field in StepFormat(spaces).fields:
        shape = (settings.learner.batch_size, settings.learner.sequence_length, *field.shape)
        tensor = torch.zeros(shape, dtype=getattr(torch, field.dtype))
        if field.name in observed:
            tensor = tensor.random_(256) if field.dtype == "uint8" else tensor.normal_()
        batch[field.name] = tensor
    batch["is_first"][:, 0] = True
    return batch
