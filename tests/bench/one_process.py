"""Collecting in one process, beside the plainest loop around the same environment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamfleet.actors.collector import ChunkWriter, Collector
from dreamfleet.actors.environment_batch import EnvironmentBatch
from dreamfleet.actors.environments.make import Environment, make_environment, probe_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.replay.interface import DirectChunkWriter
from dreamfleet.replay.replay import Replay
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.recording import ListWriter
from tests.bench.report import Row, at_least

METHOD = """
One process: the collector alone, in orders of 64 steps, its chunks dropped; the same with its chunks stored by a replay
in the same process, as `--inline` has it; and a loop that only steps the environment and resets it. That loop has
Gymnasium's own environment (CartPole, LunarLander), or ours where the wrappers are the task (CarRacing: quickstart's
64×64 grey pictures and action repeat); its actions are drawn before. Each turn begins anew with the same seed, so that
all take the very same steps. Figures are of processor time, which other work on the machine changes less.
"""
_STEPS = {"CartPole-v1": (20_000, 4_000), "LunarLander-v3": (8_000, 2_000), "CarRacing-v3": (320, 64)}
_ORDER = 64
_SEED = 7
_AIMS = {"CartPole-v1": 0.5, "LunarLander-v3": 0.85, "CarRacing-v3": 0.95}


def measure_one_process(bench: Bench, part: str) -> Iterator[Row]:
    """Yield for each environment how fast its steps are collected, and collected and stored."""
    import cv2

    cv2.setNumThreads(1)
    for name, counts in _STEPS.items():
        steps = bench.choose(*counts)
        turns = _race(name, steps, bench.scratch / name, bench.choose(9, 3)).processor_time()
        loop = f"plain loop {steps / turns.median('bare'):,.0f} steps/s"
        for who, what in (("ours", "collected"), ("stored", "collected and stored")):
            ratio = turns.ratio("bare", who)
            rate = f"{steps / turns.median(who):,.0f} steps/s"
            aim = at_least(ratio, _AIMS[name]) if who == "ours" else None
            yield Row(part, f"{name} {what}, one process", rate, loop, ratio, aim)


def _race(name: str, steps: int, directory: Path, turns: int) -> Turns:
    """Return what this many steps of the environment take each contestant."""
    say(f"{steps} steps of {name} in one process, in each turn")
    settings = resolve(["quickstart"]) if name == "CarRacing-v3" else resolve([], [("env.id", name)])
    env = make_environment(settings.env) if name == "CarRacing-v3" else gymnasium.make(name, disable_env_checker=True)
    spaces = probe_environment(settings.env)
    actions = _draw_actions(settings, spaces, env, steps)
    replay = Replay(directory, StepFormat(spaces), settings.replay, 50, seed=0)
    incarnations = count()
    ours = [_collector(settings, next(incarnations), ListWriter([])) for _ in range(turns + 1)]
    stored = [_collector(settings, next(incarnations), DirectChunkWriter(replay)) for _ in range(turns + 1)]
    try:
        return take_turns(
            {
                "bare": lambda: _loop(env, actions),
                "ours": lambda: _collect(ours.pop(), steps),
                "stored": lambda: _collect(stored.pop(), steps),
            },
            turns,
        )
    finally:
        replay.close()


def _collector(settings: Settings, number: int, writer: ChunkWriter) -> Collector:
    """Return a collector of one environment whose seeds are always the same; its chunks bear the number."""
    batch = EnvironmentBatch(settings.env, [_SEED])
    policy = make_policy(settings, batch.spaces, 1, _SEED)
    return Collector(batch, policy, writer, number, 0)


def _collect(collector: Collector, steps: int) -> None:
    for start in range(0, steps, _ORDER):
        collector.collect(min(_ORDER, steps - start))
    collector.close()


def _draw_actions(settings: Settings, spaces: Spaces, env: Environment, steps: int) -> list[Any]:
    """Return what our collectors do at each of this many steps: an action, or None for a reset."""
    convert, policy = action_converter(env.action_space), make_policy(settings, spaces, 1, _SEED)
    is_first = np.ones(1, bool)
    action: Any = None
    actions: list[Any] = []
    for _ in range(steps):
        actions.append(action)
        if action is None:
            env.reset(seed=None if len(actions) > 1 else _SEED)
            ended = False
        else:
            _, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        is_first[0] = action is None
        chosen = convert(policy.act({}, is_first)[0])
        action = None if ended else chosen
    return actions


def _loop(env: Environment, actions: list[Any]) -> None:
    """Take these steps, from the seed on."""
    env.reset(seed=_SEED)
    for action in actions[1:]:
        if action is None:
            env.reset()
        else:
            env.step(action)
