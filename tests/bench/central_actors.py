"""Collectors in place of actors, several in a process, which tell when each step was taken and by which weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray

from dreamfleet.actors.collector import Collector, build_collector
from dreamfleet.actors.inference_client import AsksByName
from dreamfleet.common.acting.policy import Policy, PublishedWeights
from dreamfleet.common.acting.ray_weights import fetch_weights
from dreamfleet.common.settings.schema import Settings

ORDER_STEPS = 64
TIMEOUT_S = 300.0


class Discard:
    """Takes a collector's chunks and stores nothing."""

    def append(self, chunk: bytes, /) -> None:
        """Take a chunk."""

    def flush(self, timeout_s: float) -> None:
        """Nothing is under way."""


class WatchedPolicy:
    """Notes for each call of a policy when it was made and by which weights."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.acted: list[tuple[float, int]] = []

    @property
    def version(self) -> int:
        """Of the weights that act."""
        return self._policy.version

    def act(self, observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Have the policy act."""
        actions = self._policy.act(observations, is_first)
        self.acted.append((time.time(), self._policy.version))
        return actions

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Have the policy adopt."""
        self._policy.adopt(version, weights)


@ray.remote(num_cpus=0, max_concurrency=4)
class Actors:
    """Some actors, each on a thread, that go through orders of 64 steps, each with the weights that are newest then."""

    def __init__(self, settings: Settings, numbers: list[int], inference: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._weights: PublishedWeights | None = None
        self._is_stopping = False
        self._is_central = bool(inference)
        self._policies: list[WatchedPolicy] = []
        self._collectors: list[Collector] = []
        for number in numbers:
            ask = AsksByName(inference) if inference else None
            collector = build_collector(settings, number, number, Discard(), ask)
            self._policies.append(WatchedPolicy(collector._policy))
            collector._policy = self._policies[-1]
            self._collectors.append(collector)
        self._threads = [threading.Thread(target=self._work, args=(collector,)) for collector in self._collectors]

    def begin(self, weights: PublishedWeights) -> None:
        """Have all collect, until `end`."""
        self._weights = weights
        for thread in self._threads:
            thread.start()

    def publish(self, weights: PublishedWeights) -> None:
        """Have the next orders name these weights."""
        self._weights = weights

    def end(self) -> list[tuple[float, int]]:
        """Return when and by which weights every step was taken."""
        self._is_stopping = True
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        return [each for policy in self._policies for each in policy.acted]

    def _work(self, collector: Collector) -> None:
        weights = None
        while not self._is_stopping:
            if self._weights is not weights:
                weights: Any = self._weights  # type: ignore[no-redef]
                nothing = np.empty(0, np.float32)
                flat = nothing if self._is_central else fetch_weights(weights, TIMEOUT_S)
                collector.adopt(weights.version, flat)
            collector.collect(ORDER_STEPS, self)  # type: ignore[arg-type]

    may_interrupt = False

    def asked(self) -> bool:
        """Whether to stop, asked by the collectors between two steps."""
        return self._is_stopping

    def hold(self) -> None:
        """There are no signals to take."""
