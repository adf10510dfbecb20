"""Weights as they travel from the learner to the actors: one flat array of float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch  # imported where it is used: an actor that acts by chance needs none


@dataclass(frozen=True)
class PublishedWeights:
    """One published version of the weights.

    Attributes:
        version: number of updates that they have seen.
        handle: the flat array, or on Ray a reference to it. Ray fetches only those references that are arguments
            themselves. In here it stays a reference: whoever has this version already fetches nothing, and weights
            lost with their owner do not lose the order that names them.
    """

    version: int
    handle: Any


def flatten(parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all values of the tensors, in the mapping's order, as one float32 array (N,) with memory of its own.

    They are joined on their device first, so that a GPU's parameters come over in one copy.
    """
    import torch

    joined = torch.cat([tensor.detach().reshape(-1).float() for tensor in parameters.values()])
    return joined.cpu().numpy()


def load_flat(parameters: Mapping[str, torch.Tensor], flat: np.ndarray) -> None:
    """Copy values laid out by `flatten` into the tensors, in place.

    Nothing refers to `flat` afterwards: an array out of Ray's object store would stay there as long as something does.

    Raises:
        ValueError: if the number of values differs; the tensors are unchanged.
    """
    import torch

    sizes = [tensor.numel() for tensor in parameters.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"the weights have shape {flat.shape}, and the parameters take {(sum(sizes),)}")
    values = torch.tensor(flat, dtype=torch.float32)
    with torch.no_grad():
        for tensor, part in zip(parameters.values(), values.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))
