"""Collecting: environments and a policy in, chunks of experience out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch
from dreamfleet.actors.stream import Stream
from dreamfleet.common.errors import UserError, WrongHereError
from dreamfleet.common.notes import Note
from dreamfleet.common.policy import Policy, make_policy
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import zero_action
from dreamfleet.common.steps import StepFormat

log = logging.getLogger(__name__)

TIMINGS = ("environment", "policy", "encode", "push")


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
        notes: what the actor's process logged since the last order.
        weights_lost: times that newer weights could not be fetched, so that the old ones went on acting.
    """

    steps: int
    episodes: list[EpisodeResult] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMINGS, 0.0))
    version: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    weights_lost: int = 0
    notes: list[Note] = field(default_factory=list)


class CollectorBrokenError(RuntimeError):
    """A collector was asked for more after an order of its failed."""


class Collector:
    """Steps K environments with one policy and sends what they show as chunks.

    It works in rounds: all environments step, the policy chooses their K actions at once, and the K steps are recorded.
    An order may end within a round; the next one records what is left of it first. So the steps do not depend on how
    they are divided into orders, and any number of them is met exactly. Chunks are cut from all streams at once, at the
    end of an order and when 64 rounds are there: after an order that ended within a round, some hold 63 steps.

    Args:
        environments: the batch of K environments.
        policy: chooses their actions.
        sink: takes the chunks.
        step_format: the arrays of a step.
        actor: number of the actor; `incarnation` is which of its lives this is.
        incarnation: see `actor`.
        flush_timeout_s: how long an order may wait at its end until all its chunks are stored.

    Attributes:
        spaces: what the environments show and take.
    """

    def __init__(
        self,
        environments: EnvironmentBatch,
        policy: Policy,
        sink: Sink,
        step_format: StepFormat,
        actor: int,
        incarnation: int,
        flush_timeout_s: float = 120.0,
    ) -> None:
        self.spaces = step_format.spaces
        self._policy = policy
        self._environments, self._sink, self._format = environments, sink, step_format
        self._flush_timeout_s = flush_timeout_s
        self._rounds = environments.rounds
        count = len(environments)
        self._streams = [Stream(step_format, environments, k, actor, incarnation) for k in range(count)]
        self._actions = zero_action(step_format.spaces.action, count)
        self._version = 0
        self._next = 0  # the environment whose step of the current round is recorded next
        self._sent = 0  # how many had their step of the first row's round recorded, and sent, by an order before
        self._begun = False
        self._broken = False  # within an order, and for ever after one that failed

    @property
    def version(self) -> int:
        """Version of the weights that the policy has now."""
        return self._policy.version

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Give the policy other weights; they act from the next round on."""
        self._policy.adopt(version, weights)

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()

    def collect(self, steps: int) -> CollectReport:
        """Collect exactly so many environment steps, over all K environments, and return once all are acknowledged.

        Raises:
            EnvironmentFailedError: if an environment fails. What was not sent yet is lost, and the collector with it.
            CollectorBrokenError: if an earlier order failed: going on would leave out the steps that were lost.
        """
        if self._broken:
            raise CollectorBrokenError("an earlier order of this collector failed; its streams cannot go on")
        self._broken = True
        report = CollectReport(steps, raw_bytes=steps * self._format.step_bytes)
        rounds, is_last = self._rounds, self._environments.is_last
        left, count = steps, len(self._streams)
        while left:
            if self._next == 0:
                self._begin_round(report)
            start, stop = self._next, min(self._next + left, count)
            if True in is_last:
                self._report_episodes(start, stop, report)
            left -= stop - start
            self._next = 0 if stop == count else stop
            if not left or (stop == count and rounds.is_full):
                self._send(report)
        with _timed(report, "push"):
            self._sink.flush(self._flush_timeout_s)
        report.version = self._version
        self._broken = False
        return report

    def _begin_round(self, report: CollectReport) -> None:
        """Bring all environments to their next step, and choose all actions there."""
        environments, policy, timings = self._environments, self._policy, report.timings
        began = perf_counter()
        if self._begun:
            environments.step(self._actions)
        else:
            environments.reset()
            self._begun = True
        current = self._rounds.current
        stepped = perf_counter()
        self._actions = current.action[...] = policy.act(current.observations, current.is_first)
        timings["policy"] += perf_counter() - stepped
        timings["environment"] += stepped - began
        if True in environments.is_last:
            current.action[environments.is_last] = 0  # an episode's last action is not used
        if policy.version != self._version:
            self._version = policy.version
            self._rounds.set_from_here("version", self._version)

    def _report_episodes(self, start: int, stop: int, report: CollectReport) -> None:
        """Report the episodes that end with the current steps of environments `start` to `stop`."""
        environments = self._environments
        for k in range(start, stop):
            if environments.is_last[k]:
                report.episodes.append(EpisodeResult(environments.returns[k], environments.lengths[k]))

    def _send(self, report: CollectReport) -> None:
        """Send all recorded steps, a chunk of each stream, and make room for more."""
        rounds, within = self._rounds, self._next > 0
        for k, stream in enumerate(self._streams):
            start = 1 if k < self._sent else 0
            stop = rounds.row if within and k >= self._next else rounds.row + 1
            if start == stop:
                continue
            with _timed(report, "encode"):
                record = stream.cut({name: array[start:stop, k] for name, array in rounds.arrays.items()})
            report.stored_bytes += len(record)
            with _timed(report, "push"):
                self._sink.append(record)
        rounds.restart(keep=within)
        self._sent = self._next


def environment_seeds(settings: Settings, actor: int, incarnation: int) -> list[int]:
    """Return for each environment of an actor the seed of its first reset, in [0, 2**31)."""
    return [
        derive_seed(settings.seed, "environment", actor, incarnation, k) % 2**31
        for k in range(settings.actors.environments)
    ]


def build_collector(settings: Settings, actor: int, incarnation: int, sink: Sink) -> Collector:
    """Return the collector of one life of an actor, made as the settings say.

    Raises:
        WrongHereError: if the environment cannot be made.
    """
    seeds = environment_seeds(settings, actor, incarnation)
    try:
        environments = EnvironmentBatch(settings.env, seeds, actor)
    except UserError as error:
        raise WrongHereError(str(error)) from error
    policy_seed = derive_seed(settings.seed, "policy", actor, incarnation)
    policy = make_policy(settings, environments.spaces, len(seeds), policy_seed)
    log.info("actor %d, incarnation %d: environments' seeds %s", actor, incarnation, seeds)
    return Collector(environments, policy, sink, StepFormat(environments.spaces), actor, incarnation)


@contextmanager
def _timed(report: CollectReport, name: str) -> Iterator[None]:
    """Add the seconds that the block takes to the report's timing of this name."""
    began = perf_counter()
    try:
        yield
    finally:
        report.timings[name] += perf_counter() - began
