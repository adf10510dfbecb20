"""Processes in place of learner and actors where only the weights' way matters; they import no torch."""

from __future__ import annotations

import os
import time

import numpy as np
import ray

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import fetch_weights

TIMEOUT_S = 60.0


@ray.remote
class Publisher:
    """Publishes weights as `LearnerProcess` does: they are a value of a call, apart from the first."""

    @ray.method(num_returns=2)
    def publish(self, version: int, values: int) -> tuple[int, dict[int, np.ndarray]]:
        """Return the version, and apart from it that number of float32 values."""
        return version, {version: np.full(values, version, np.float32)}


@ray.remote
class Holder:
    """Adopts weights as `ActorProcess` does: fetched when newer, and copied to memory of its own."""

    def __init__(self) -> None:
        self._version = -1
        self._held = np.zeros(0, np.float32)

    def adopt(self, weights: PublishedWeights) -> float:
        """Adopt the weights and return the seconds that fetching and copying took."""
        begun = time.perf_counter()
        if weights.version > self._version:
            self._held = np.array(fetch_weights(weights, TIMEOUT_S))
            self._version = weights.version
        if self._held[-1] != self._version:
            raise ValueError(f"the weights of version {self._version} hold {self._held[-1]}")
        return time.perf_counter() - begun

    def ping(self) -> int:
        """Return the process's id: it is up."""
        return os.getpid()


@ray.remote(num_cpus=0)
def received_bytes(address: str) -> int:
    """Return what came in on this node's interface with that address since it is up."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return int(psutil.net_io_counters(pernic=True)[name].bytes_recv)
    raise LookupError(f"no interface has the address {address}")
