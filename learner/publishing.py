"""Publishing: the weights of what acting needs leave the device as one flat array, beside the updates where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

from torch import Tensor

from dreamfleet.common.acting.agent_networks import join
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.learner.lane import Lane


class WeightsPublisher:
    """Publishes one version after another, in the order of their numbers.

    Args:
        parameters: returns those that are published.
        lane: where they leave the device.

    Attributes:
        has_published: whether any version was.
    """

    def __init__(self, parameters: Callable[[], Mapping[str, Tensor]], lane: Lane) -> None:
        self.has_published = False
        self._parameters = parameters
        self._lane = lane
        self._leaving: Future[PublishedWeights] | None = None  # the newest version, unless it is out
        self._ready: PublishedWeights | None = None  # the newest that is out and that nobody has

    def begin(self, version: int) -> Future[PublishedWeights]:
        """Have the present weights published, once the version before is; updates may go on at once.

        Raises:
            Exception: what publishing the version before raised.
        """
        self._bring_out()
        flat = join(self._parameters())  # by the updates' stream, before the next one changes them
        joined = self._lane.mark()

        def leave() -> PublishedWeights:
            return PublishedWeights(version, self._lane.to_host(flat, joined))

        self.has_published = True
        self._leaving = self._lane.start("publish", leave)
        return self._leaving

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
        if self._leaving is not None and self._leaving.done():
            self._bring_out()
        ready, self._ready = self._ready, None
        return ready

    def _bring_out(self) -> None:
        """Wait until the newest version is out."""
        leaving, self._leaving = self._leaving, None  # also if it failed: that is raised once
        if leaving is not None:
            self._ready = leaving.result()
