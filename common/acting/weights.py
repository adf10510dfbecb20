"""Weights as they travel from the learner to the actors: one flat array of float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def flatten(parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all values of the tensors, in the mapping's order, as one float32 array (N,) with memory of its own.

    They are joined on their device first, so that a GPU's parameters come over in one copy.
    """
    joined = torch.cat([tensor.detach().reshape(-1).float() for tensor in parameters.values()])
    return joined.cpu().numpy()


def load_flat(parameters: Mapping[str, torch.Tensor], flat: np.ndarray) -> None:
    """Copy values laid out by `flatten` into the tensors, in place.

    Nothing refers to `flat` afterwards: an array out of Ray's object store would stay there as long as something does.

    Raises:
        ValueError: if the number of values differs; the tensors are unchanged.
    """
    sizes = [tensor.numel() for tensor in parameters.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"the weights have shape {flat.shape}, and the parameters take {(sum(sizes),)}")
    values = torch.tensor(flat, dtype=torch.float32)
    with torch.no_grad():
        for tensor, part in zip(parameters.values(), values.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))
