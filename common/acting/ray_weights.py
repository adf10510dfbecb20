"""Published weights on Ray: an object of its store holds flat weights by version, and their handle refers to it."""

from __future__ import annotations

import asyncio

import numpy as np
import ray

from dreamfleet.common.acting.policy import PublishedWeights


def put_weights(version: int, flat: np.ndarray) -> PublishedWeights:
    """Put flat weights into the object store; they last as long as this process, and the handle within it."""
    return PublishedWeights(version, ray.put({version: flat}))


def fetch_weights(weights: PublishedWeights, timeout_s: float) -> np.ndarray:
    """Return the flat weights, read-only.

    Raises:
        ObjectLostError: if they were lost with their node or owner.
        GetTimeoutError: if they do not arrive in time.
    """
    flat: np.ndarray = ray.get(weights.handle, timeout=timeout_s)[weights.version]
    return flat


async def fetch_weights_beside(weights: PublishedWeights, timeout_s: float) -> np.ndarray:
    """Return what `fetch_weights` returns, while the event loop goes on; too late is a `TimeoutError` here."""
    held = await asyncio.wait_for(asyncio.wrap_future(weights.handle.future()), timeout_s)
    flat: np.ndarray = held[weights.version]
    return flat
