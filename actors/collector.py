"""Collecting: environments and a policy in, chunks of experience out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch, EnvironmentFailedError
from dreamfleet.actors.environments.wrappers import step_counter
from dreamfleet.actors.stream import Stream
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.errors import UserError, WrongHereError
from dreamfleet.common.experience.spaces import zero_action
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.stop_sign import NeverStop, StepInterrupted, StopSign

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
        simulator_steps: steps of the simulator that they took: none where an episode begins (but no-op starts), and as
            many as the action was repeated everywhere else.
        episodes: the episodes that ended.
        timings: seconds spent in "environment", "policy", "encode" and "push".
        version: version of the weights that acted last.
        raw_bytes: bytes of the steps before compression; `stored_bytes` after it.
        stored_bytes: see `raw_bytes`.
        log_records: what the actor's process logged since the last order.
        weights_lost: times that newer weights could not be fetched, so that the old ones went on acting.
    """

    steps: int
    simulator_steps: int = 0
    episodes: list[EpisodeResult] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMINGS, 0.0))
    version: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    weights_lost: int = 0
    log_records: list[LogRecord] = field(default_factory=list)


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
        self._counters = [counter for env in environments.environments if (counter := step_counter(env))]
        self._taken_before = [0] * count  # by the counters, before the current round
        self._simulator_steps = 0  # of all steps recorded
        self._resets = 0  # sent by the order under way
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

    def collect(self, steps: int, stop: StopSign | None = None) -> CollectReport:
        """Collect exactly so many environment steps, over all K environments, and return once all are acknowledged.

        Asked to stop it collects no more, and returns once those that it has are acknowledged; it is of no more use
        then if a step was interrupted.

        Raises:
            EnvironmentFailedError: if an environment fails. The collector is lost with it; what was recorded before is
                stored, if that can be done.
            CollectorBrokenError: if an earlier order failed: going on would leave out the steps that were lost.
        """
        if self._broken:
            raise CollectorBrokenError("an earlier order of this collector failed; its streams cannot go on")
        self._broken = True
        self._resets = 0
        report, stop = CollectReport(0), NeverStop() if stop is None else stop
        rounds, is_last, count = self._rounds, self._environments.is_last, len(self._streams)
        is_interrupted = False
        while report.steps < steps and not stop.asked():
            if self._next == 0 and not self._begin_round(report, stop):
                is_interrupted = True
                break
            start, until = self._next, min(self._next + steps - report.steps, count)
            if True in is_last:
                self._report_episodes(start, until, report)
            report.steps += until - start
            self._next = 0 if until == count else until
            if until == count and rounds.is_full:
                self._send(report)
        self._send_all(report)
        report.simulator_steps = self._count_simulator_steps(report.steps, 0 if is_interrupted else self._next or count)
        report.raw_bytes = report.steps * self._format.step_bytes
        report.version = self._version
        self._broken = is_interrupted
        return report

    def _begin_round(self, report: CollectReport, stop: StopSign) -> bool:
        """Bring all environments to their next step, and choose all actions there; False if that was interrupted."""
        environments, policy, timings = self._environments, self._policy, report.timings
        began = perf_counter()
        if self._counters:
            self._taken_before = [counter.taken for counter in self._counters]
        try:
            stop.may_interrupt = True
            self._step()
        except StepInterrupted:
            self._rounds.take_back()
            return False
        except EnvironmentFailedError:
            self._rounds.take_back()
            with suppress(Exception):  # its own failure is what is to be heard of
                self._send_all(report)
            raise
        finally:
            stop.may_interrupt = False
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
        return True

    def _step(self) -> None:
        if self._begun:
            self._environments.step(self._actions)
        else:
            self._environments.reset()
            self._begun = True

    def _count_simulator_steps(self, steps: int, recorded: int) -> int:
        """Return the simulator steps of the steps of this order.

        Args:
            steps: how many these are.
            recorded: how many environments had their step of the current round recorded.
        """
        if not self._counters:  # one for each action
            return steps - self._resets
        taken = sum(counter.taken for counter in self._counters[:recorded]) + sum(self._taken_before[recorded:])
        self._simulator_steps, before = taken, self._simulator_steps
        return taken - before

    def _report_episodes(self, start: int, stop: int, report: CollectReport) -> None:
        """Report the episodes that end with the current steps of environments `start` to `stop`."""
        environments = self._environments
        for k in range(start, stop):
            if environments.is_last[k]:
                report.episodes.append(EpisodeResult(environments.returns[k], environments.lengths[k]))

    def _send_all(self, report: CollectReport) -> None:
        """Send all recorded steps, and return once everything sent is stored."""
        if self._rounds.row >= 0:
            self._send(report)
        with _timed(report, "push"):
            self._sink.flush(self._flush_timeout_s)

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
            self._resets += int(np.count_nonzero(rounds.arrays["is_first"][start:stop, k]))
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
    except KeyboardInterrupt as error:  # of its own making: here Ctrl-C is taken by others
        raise WrongHereError(f"env.id '{settings.env.id}' could not be made: KeyboardInterrupt.") from error
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
