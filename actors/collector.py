"""Collecting: environments and a policy in, chunks of experience out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch
from dreamfleet.actors.stream import Stream
from dreamfleet.common.policy import Policy
from dreamfleet.common.spaces import zero_action
from dreamfleet.common.steps import StepFormat


class Sink(Protocol):
    """Where chunks go."""

    def append(self, record: bytes) -> None:
        """Take a record; may return before it is stored."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Return once all records taken are stored, or raise an error."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """A whole episode: the sum of its rewards, and its length in environment steps (actions taken)."""

    total_reward: float
    length: int


@dataclass
class CollectReport:
    """What one order collected.

    Attributes:
        steps: environment steps stored and acknowledged.
        episodes: the episodes that ended.
        timings: seconds spent in "environment", "policy", "encode" and "push".
        version: version of the weights that acted last.
        raw_bytes: bytes of the steps before compression; `stored_bytes` after it.
        stored_bytes: see `raw_bytes`.
        weights_lost: times that newer weights could not be fetched, so that the old ones went on acting.
    """

    steps: int
    episodes: list[EpisodeResult] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMINGS, 0.0))
    version: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    weights_lost: int = 0


TIMINGS = ("environment", "policy", "encode", "push")


class Collector:
    """Steps K environments with one policy and sends what they show as chunks.

    It works in rounds: the policy chooses K actions at once, then the environments take them in turn. An order may end
    within a round; the next one goes on with the environments that are left, and with the actions already chosen for them.
    So the steps do not depend on how they are divided into orders, and any number of them is met exactly.

    Args:
        environments: the batch of K environments.
        policy: chooses their actions.
        sink: takes the chunks.
        step_format: the arrays of a step.
        actor: number of the actor; `incarnation` is which of its lives this is.
        incarnation: see `actor`.
        flush_timeout_s: how long an order may wait at its end until all its chunks are stored.
    """

    def __init__(
        self,
        environments: EnvironmentBatch,
        policy: Policy,
        sink: Sink,
        step_format: StepFormat,
        actor: int,
        incarnation: int,
        flush_timeout_s: float = 60.0,
    ) -> None:
        self.policy = policy
        self._environments, self._sink, self._format = environments, sink, step_format
        self._flush_timeout_s = flush_timeout_s
        count = len(environments)
        self._streams = [Stream(step_format, environments, k, actor, incarnation) for k in range(count)]
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)
        self._actions = zero_action(step_format.spaces.action, count)
        self._version = 0
        self._next = 0
        self._begun = False

    def collect(self, steps: int) -> CollectReport:
        """Collect exactly so many environment steps, over all K environments, and return once all are acknowledged.

        Raises:
            EnvironmentFailedError: if an environment fails. What was not sent yet is lost.
        """
        report = CollectReport(steps, raw_bytes=steps * self._format.step_bytes)
        if not self._begun:
            with _timed(report, "environment"):
                self._environments.reset()
            self._begun = True
        left = steps
        while left:
            if self._next == 0:
                with _timed(report, "policy"):
                    self._choose()
            start, stop = self._next, min(self._next + left, len(self._environments))
            self._record(start, stop, report)
            with _timed(report, "environment"):
                self._environments.step(self._actions, start, stop)
            self._next = stop % len(self._environments)
            left -= stop - start
        for stream in self._streams:
            if stream.held:
                self._send(stream, report)
        with _timed(report, "push"):
            self._sink.flush(self._flush_timeout_s)
        report.version = self.policy.version
        return report

    def _choose(self) -> None:
        """Let the policy choose the actions of a round; those at an episode's last step are not used and stored as zeros."""
        self._actions = self.policy.act(self._environments.observations, self._environments.is_first)
        self._actions[self._environments.is_last] = 0
        self._version = self.policy.version

    def _record(self, start: int, stop: int, report: CollectReport) -> None:
        """Append the current step of these environments to their streams."""
        environments = self._environments
        self._returns += environments.reward
        for k in range(start, stop):
            stream = self._streams[k]
            stream.append(self._actions[k], self._version)
            if environments.is_first[k]:
                self._returns[k], self._lengths[k] = 0.0, 0
            else:
                self._lengths[k] += 1
            if environments.is_last[k]:
                report.episodes.append(EpisodeResult(float(self._returns[k]), int(self._lengths[k])))
            if stream.is_full:
                self._send(stream, report)

    def _send(self, stream: Stream, report: CollectReport) -> None:
        with _timed(report, "encode"):
            record = stream.cut()
        report.stored_bytes += len(record)
        with _timed(report, "push"):
            self._sink.append(record)


@contextmanager
def _timed(report: CollectReport, name: str) -> Iterator[None]:
    """Add the seconds that the block takes to the report's timing of this name."""
    began = perf_counter()
    try:
        yield
    finally:
        report.timings[name] += perf_counter() - began
