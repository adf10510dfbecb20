"""Publishing: the weights of what acting needs leave the device as one flat array, beside the updates where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from torch import Tensor

from dreamfleet.common.acting.agent_networks import join
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.learner.lane import Lane


class WeightsPublisher:
    """Publishes one version after another, in the order of their numbers.

    Args:
        parameters: returns those that are published.
        put: where the flat weights go; it returns their handle, such as an object reference.
        lane: where they leave the device and are put.
    """

    def __init__(
        self, parameters: Callable[[], Mapping[str, Tensor]], put: Callable[[np.ndarray], Any], lane: Lane
    ) -> None:
        self._parameters = parameters
        self._put = put
        self._lane = lane
        self._newest: Future[PublishedWeights] | None = None  # held: on Ray an object lives as long as its owner has it
        self._is_out = True  # whether the newest is
        self._ready: PublishedWeights | None = None  # the newest that is out and that nobody has

    @property
    def has_published(self) -> bool:
        """Whether any version was."""
        return self._newest is not None

    def begin(self, version: int) -> Future[PublishedWeights]:
        """Have the present weights published, once the version before is; updates may go on at once.

        Raises:
            Exception: what publishing the version before raised.
        """
        self._bring_out()
        flat = join(self._parameters())  # by the updates' stream, before the next one changes them
        joined = self._lane.mark()

        def put() -> PublishedWeights:
            return PublishedWeights(version, self._put(self._lane.to_host(flat, joined)))

        self._newest, self._is_out = self._lane.start("publish", put), False
        return self._newest

    def publish(self, version: int) -> PublishedWeights:
        """Publish the present weights and return them."""
        self.begin(version)
        self._bring_out()
        published = self.take()
        assert published is not None
        return published

    def take(self) -> PublishedWeights | None:
        """Return the newest version that is out, unless an earlier call returned it.

        Raises:
            Exception: what publishing it raised.
        """
        if self._newest is not None and self._newest.done():
            self._bring_out()
        ready, self._ready = self._ready, None
        return ready

    def _bring_out(self) -> None:
        """Wait until the newest version is out."""
        if self._newest is not None and not self._is_out:
            self._is_out = True  # also if it failed: that is raised once
            self._ready = self._newest.result()
