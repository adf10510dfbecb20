"""The yardsticks of collecting: loops around the same environments that do nothing else."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from dreamfleet.actors.collector import environment_seeds
from dreamfleet.actors.environments.make import Environment, describe_spaces, make_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.schema import Settings


def pin(processes: Sequence[int], cores: int) -> None:
    """Have these processes, all of their threads, run on the first `cores` cores that this one may use."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), allowed)


class BareLoop:
    """Plain processes, each of which steps the environment that the actor of its number would.

    Args:
        settings: the actors'.
        first: number of the first actor.
        count: processes.
    """

    def __init__(self, settings: Settings, first: int, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_step_on_demand, args=(settings, first + number, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()
        pin([process.pid for process in self._processes if process.pid], cores=count)

    def run(self, steps: int) -> None:
        """Have each process take this many steps."""
        for pipe in self._pipes:
            pipe.send(steps)
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(0)
            process.join()


class VectorLoop:
    """Gymnasium's `AsyncVectorEnv` over the environments that the actors of these numbers would step."""

    def __init__(self, settings: Settings, first: int, count: int) -> None:
        from gymnasium.vector import AsyncVectorEnv

        makers = [partial(_make_single_threaded, settings.env)] * count
        self._vector = AsyncVectorEnv(makers, context="spawn")
        env = make_environment(settings.env)
        spaces, self._convert = describe_spaces(env), action_converter(env.action_space)
        env.close()
        self._policies = [_policy(settings, first + number, spaces) for number in range(count)]
        self._vector.reset(seed=[environment_seeds(settings, first + number, 0)[0] for number in range(count)])
        self._is_first = np.ones(count, bool)
        self._ended = np.zeros(count, bool)

    def run(self, steps: int) -> None:
        """Take this many steps of each environment."""
        for _ in range(steps):
            stored = [policy.act({}, self._is_first[k : k + 1])[0] for k, policy in enumerate(self._policies)]
            self._is_first = self._ended  # the step after an episode's last begins the next one, as ours does
            _, _, terminated, truncated, _ = self._vector.step(np.array([self._convert(action) for action in stored]))
            self._ended = terminated | truncated

    def close(self) -> None:
        """End the environments' processes."""
        self._vector.close()


def _step_on_demand(settings: Settings, actor: int, pipe: Connection) -> None:
    """Step one environment as often as the pipe says, until it says 0."""
    env = _make_single_threaded(settings.env)
    convert, policy = action_converter(env.action_space), _policy(settings, actor, describe_spaces(env))
    seed: int | None = environment_seeds(settings, actor, 0)[0]
    is_first, ended, action = np.ones(1, bool), True, None
    pipe.send(0)
    while steps := pipe.recv():
        for _ in range(steps):
            if ended:
                env.reset(seed=seed)
                seed, ended = None, False
                is_first[0] = True
            else:
                _, _, terminated, truncated, _ = env.step(action)
                ended = terminated or truncated
                is_first[0] = False
            action = convert(policy.act({}, is_first)[0])
        pipe.send(steps)
    env.close()


def _policy(settings: Settings, actor: int, spaces: Spaces) -> Policy:
    """Return the policy that the actor of this number has in its first incarnation."""
    return make_policy(settings, spaces, 1, derive_seed(settings.seed, "policy", actor, 0))


def _make_single_threaded(settings: EnvironmentSettings) -> Environment:
    import cv2

    cv2.setNumThreads(1)
    return make_environment(settings)
