"""Collecting: environments and a policy in, chunks of experience out."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentBatch, EnvironmentFailedError
from dreamfleet.actors.environments.wrappers import step_counter
from dreamfleet.common.acting.make_policy import make_policy, make_random_policy, policy_seed
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.acting.remote_policy import Ask, RemotePolicy
from dreamfleet.common.errors import UserError, WrongHereError
from dreamfleet.common.experience.chunk import ChunkKey, encode_chunk
from dreamfleet.common.experience.spaces import zero_action
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.stop_sign import NeverStop, StepInterrupted, StopSign

log = logging.getLogger(__name__)

TIMINGS = ("environment", "policy", "encode", "push")
FLUSH_TIMEOUT_S = 120.0
"""How long an order may wait at its end until all its chunks are stored."""


class ChunkWriter(Protocol):
    """Stores encoded chunks."""

    def append(self, chunk: bytes, /) -> None:
        """Accept a chunk; may return before it is stored."""

    def flush(self, timeout_s: float) -> None:
        """Return once all accepted chunks are stored, or raise an error."""


@dataclass(frozen=True)
class EpisodeResult:
    """A whole episode: the sum of its rewards, and its length in environment steps (actions taken)."""

    total_reward: float
    length: int


@dataclass
class CollectReport:
    """The result of one order.

    Attributes:
        steps: environment steps stored and acknowledged.
        simulator_steps: steps of the simulator that they took: none where an episode begins (except for no-op starts),
            and as many as the action was repeated everywhere else.
        timings: seconds spent in each of `TIMINGS`; what is not spent in the others is the environments'.
        version: of the weights that acted last.
        raw_bytes: before compression; `stored_bytes` after it.
        weights_lost: how often newer weights could not be fetched and the old ones went on acting.
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
    """A collector got an order after an earlier one failed."""


class Collector:
    """Steps K environments with one policy and writes their steps as chunks.

    It works in rounds: all environments step, the policy chooses their K actions at once, and the K steps are recorded.
    An order may end within a round; the next one first records the rest of it. So the steps do not depend on how they
    are divided into orders, and every order is met exactly. Chunks are cut from all streams at once, at the end of an
    order and when 64 rounds are there; after an order that ended within a round, some hold 63 steps.

    The numbers of the actor and its incarnation become part of each chunk's key.
    """

    def __init__(
        self, environments: EnvironmentBatch, policy: Policy, writer: ChunkWriter, actor: int, incarnation: int
    ) -> None:
        self.spaces = environments.spaces
        self._environments, self._policy, self._writer = environments, policy, writer
        self._buffer, self._format = environments.buffer, environments.step_format
        self._actor, self._incarnation = actor, incarnation
        count = len(environments)
        self._chunks_cut = [0] * count  # of each stream
        self._steps_cut = [0] * count
        self._actions = zero_action(self.spaces.action, count)
        self._version = 0
        self._next = 0  # the environment whose step of the current round is recorded next
        self._sent = 0  # number of environments whose first step in the buffer an earlier order has sent
        self._counters = [counter for env in environments.environments if (counter := step_counter(env))]
        self._counted_before = [0] * count  # by the counters, before the current round
        self._simulator_steps = 0  # of all steps recorded
        self._resets = 0  # sent by the current order
        self._policy_s = 0.0  # in the current order
        self._has_begun = False
        self._is_broken = False  # during an order, and for good once one has failed

    @property
    def version(self) -> int:
        """Version of the policy's current weights."""
        return self._policy.version

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Give the policy other weights; they act from the next round on."""
        self._policy.adopt(version, weights)

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()

    def collect(self, steps: int, stop: StopSign | None = None) -> CollectReport:
        """Collect exactly this many environment steps, over all K environments, and return once all are acknowledged.

        Once `stop` asks for it no more are collected, and those that exist are acknowledged. If that interrupted a
        step, the collector cannot be used any more.

        Raises:
            EnvironmentFailedError: if an environment fails. The collector is lost with it; the steps recorded before
                are stored, if possible.
            CollectorBrokenError: if an earlier order failed: continuing would leave out the steps that were lost.
        """
        if self._is_broken:
            raise CollectorBrokenError("an earlier order of this collector failed; its streams cannot go on")
        self._is_broken = True
        self._resets, self._policy_s = 0, 0.0
        report, stop = CollectReport(0), NeverStop() if stop is None else stop
        buffer, is_last, count = self._buffer, self._environments.is_last, len(self._environments)
        is_interrupted, began = False, perf_counter()
        # A cheap environment steps in microseconds: what can be outside this loop and `_begin_round` is not in them.
        done = 0
        while done < steps and not stop.asked():
            if self._next == 0 and not self._begin_round(report, stop):
                is_interrupted = True
                break
            recorded = min(count - self._next, steps - done)
            if True in is_last:
                self._report_episodes(self._next, self._next + recorded, report)
            done += recorded
            self._next = (self._next + recorded) % count
            if buffer.is_full and not self._next:
                self._send(report)
        report.steps = done
        self._send_all(report)
        report.timings["policy"] = self._policy_s
        report.timings["environment"] = perf_counter() - began - sum(report.timings.values())
        report.simulator_steps = self._count_simulator_steps(done, 0 if is_interrupted else self._next or count)
        report.raw_bytes = done * self._format.step_bytes
        report.version = self._version
        self._is_broken = is_interrupted
        return report

    def _begin_round(self, report: CollectReport, stop: StopSign) -> bool:
        """Step all environments and choose their next actions; return False if that was interrupted."""
        environments, policy = self._environments, self._policy
        if self._counters:
            self._counted_before = [counter.count for counter in self._counters]
        try:
            stop.may_interrupt = True
            if self._has_begun:
                environments.step(self._actions)
            else:
                environments.reset()
                self._has_begun = True
        except StepInterrupted:
            self._buffer.discard_current()
            return False
        except EnvironmentFailedError:
            self._buffer.discard_current()
            with suppress(Exception):  # the environment's own failure is the one to report
                self._send_all(report)
            raise
        finally:
            stop.may_interrupt = False
        current = self._buffer.current
        began = perf_counter()
        self._actions = current.action[...] = policy.act(current.observations, current.is_first)
        self._policy_s += perf_counter() - began
        if True in environments.is_last:
            current.action[environments.is_last] = 0  # an episode's last action is not used
        if policy.version != self._version:
            self._version = policy.version
            self._buffer.set_from_here("version", self._version)
        return True

    def _count_simulator_steps(self, steps: int, recorded: int) -> int:
        """Return the simulator steps of an order's steps; `recorded` environments had the current round recorded."""
        if not self._counters:  # one for each action
            return steps - self._resets
        counted = sum(counter.count for counter in self._counters[:recorded]) + sum(self._counted_before[recorded:])
        self._simulator_steps, before = counted, self._simulator_steps
        return counted - before

    def _report_episodes(self, start: int, stop: int, report: CollectReport) -> None:
        """Report the episodes that end with the current steps of environments `start` to `stop`."""
        environments = self._environments
        for k in range(start, stop):
            if environments.is_last[k]:
                report.episodes.append(EpisodeResult(environments.returns[k], environments.lengths[k]))

    def _send_all(self, report: CollectReport) -> None:
        """Send all recorded steps, and return once everything sent is stored."""
        if self._buffer.index >= 0:
            self._send(report)
        began = perf_counter()
        self._writer.flush(FLUSH_TIMEOUT_S)
        report.timings["push"] += perf_counter() - began

    def _send(self, report: CollectReport) -> None:
        """Send all recorded steps, a chunk of each stream, and clear the buffer."""
        buffer, is_within = self._buffer, self._next > 0
        for k in range(len(self._environments)):
            start = 1 if k < self._sent else 0
            stop = buffer.index if is_within and k >= self._next else buffer.index + 1
            if start == stop:
                continue
            began = perf_counter()
            chunk = self._cut_chunk(k, {name: array[start:stop, k] for name, array in buffer.arrays.items()})
            cut = perf_counter()
            self._writer.append(chunk)
            report.timings["encode"] += cut - began
            report.timings["push"] += perf_counter() - cut
            self._resets += int(np.count_nonzero(buffer.arrays["is_first"][start:stop, k]))
            report.stored_bytes += len(chunk)
        buffer.clear(keep_current=is_within)
        self._sent = self._next

    def _cut_chunk(self, k: int, arrays: dict[str, np.ndarray]) -> bytes:
        """Return the next chunk of the stream of environment `k`, whose arrays are (steps, *shape)."""
        self._environments.check_vectors(k, self._steps_cut[k], arrays)
        key = ChunkKey(self._actor, self._incarnation, k, self._chunks_cut[k])
        chunk = encode_chunk(self._format, key, self._steps_cut[k], arrays)
        self._chunks_cut[k] += 1
        self._steps_cut[k] += len(arrays["reward"])
        return chunk


def environment_seeds(settings: Settings, actor: int, incarnation: int) -> list[int]:
    """Return for each environment of an actor the seed of its first reset, in [0, 2**31)."""
    return [
        derive_seed(settings.seed, "environment", actor, incarnation, k) % 2**31
        for k in range(settings.actors.environments)
    ]


def build_collector(
    settings: Settings, actor: int, incarnation: int, writer: ChunkWriter, ask: Ask | None = None
) -> Collector:
    """Return the collector of one incarnation of an actor, made as the settings say.

    Args:
        ask: asks a process that acts for all actors; with None the actor acts by itself.

    Raises:
        WrongHereError: if the environment cannot be made.
    """
    seeds = environment_seeds(settings, actor, incarnation)
    try:
        environments = EnvironmentBatch(settings.env, seeds, actor)
    except UserError as error:
        raise WrongHereError(str(error)) from error
    except KeyboardInterrupt as error:  # raised by the environment itself: Ctrl-C is handled elsewhere in this process
        raise WrongHereError(f"env.id '{settings.env.id}' could not be made: KeyboardInterrupt.") from error
    spaces, seed = environments.spaces, policy_seed(settings, actor, incarnation)
    if ask is None:
        policy: Policy = make_policy(settings, spaces, len(seeds), seed)
    else:
        by_chance = make_random_policy(settings, spaces, len(seeds), seed)
        policy = RemotePolicy(ask, actor, incarnation, by_chance, settings.actors.order_timeout_s)
    log.info("actor %d, incarnation %d: environments' seeds %s", actor, incarnation, seeds)
    return Collector(environments, policy, writer, actor, incarnation)
