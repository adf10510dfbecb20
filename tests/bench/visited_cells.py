"""The cells of a MiniGrid that a run's actors come to: `python -m tests.bench.visited_cells RUN --kind explore …`.

Every episode has the same grid and the same beginning, so that a cell that is new was reached by acting. The model sees
the agent's view as a picture, or with `--place` where it is and where it looks to, as one-hots, without walls. The run
is in this process (`--inline`), without evaluations, whose steps would count; a SIGTERM ends it early, and what was
counted is written. Settings follow as flags, as for `dreamfleet train`.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import gymnasium
import minigrid  # noqa: F401 (registers its ids)
import numpy as np

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.deploy.run.runs import train

BASE = ("minigrid_small",)
MODULE = "tests.bench.visited_cells"
KINDS = ("random", "actor_critic", "explore")
ROWS = 40
"""Counts that are written of a run."""


class Footprints:
    """The cells visited so far, and how many they were after how many steps."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], int] = {}
        self.counts: list[int] = []

    def add(self, x: int, y: int) -> None:
        """Take in where a step led."""
        self.cells[x, y] = self.cells.get((x, y), 0) + 1
        self.counts.append(len(self.cells))


VISITED = Footprints()
"""Of all environments in this process."""


class SameGrid(gymnasium.Wrapper):  # type: ignore[type-arg]
    """A MiniGrid that is the same in every episode, and whose agent leaves footprints.

    Args:
        grid: its seed.
        place: whether column, row and direction are observed, as one-hots side by side.
    """

    def __init__(self, env: Any, grid: int = 0, place: bool = False) -> None:
        super().__init__(env)
        self._grid, self._place = grid, place
        if place:
            self._sizes = (self.unwrapped.width, self.unwrapped.height, 4)  # type: ignore[attr-defined]
            self.observation_space = gymnasium.spaces.Box(0, 1, (sum(self._sizes),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in the grid of the wrapper's own seed."""
        del seed
        observation, facts = self.env.reset(seed=self._grid, options=options)
        return self._shown(observation), facts

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and take in where that led."""
        observation, reward, terminated, truncated, facts = self.env.step(action)
        VISITED.add(*map(int, self.unwrapped.agent_pos))  # type: ignore[attr-defined]
        return self._shown(observation), reward, terminated, truncated, facts

    def _shown(self, observation: Any) -> Any:
        if not self._place:
            return observation
        at = (*self.unwrapped.agent_pos, self.unwrapped.agent_dir)  # type: ignore[attr-defined]
        return np.concatenate([np.eye(size, dtype=np.float32)[i] for size, i in zip(self._sizes, at, strict=True)])


def by_chance(env_id: str, grid: int, steps: int, seed: int) -> None:
    """Take random steps, all actions alike."""
    env, choose = SameGrid(gymnasium.make(env_id), grid), np.random.default_rng(seed)
    env.reset()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(choose.integers(7))
        if terminated or truncated:
            env.reset()


def main() -> None:
    """Collect as the kind of behaviour does, and write the counts."""
    parser = argparse.ArgumentParser(description="Count the cells of a MiniGrid that a run's actors come to.")
    parser.add_argument("run", type=Path, help="a new directory")
    parser.add_argument("--env", default="MiniGrid-FourRooms-v0")
    parser.add_argument("--kind", choices=KINDS, default="explore")
    parser.add_argument("--grid", type=int, default=0, help="seed of the grid")
    parser.add_argument("--place", action="store_true", help="observe the place, not a picture")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given, rest = parser.parse_known_args()
    flags = list(zip((name.removeprefix("--") for name in rest[::2]), rest[1::2], strict=True))
    metrics: dict[str, float] = {}
    if given.kind == "random":
        importlib.import_module(MODULE).by_chance(given.env, given.grid, given.steps, given.seed)
        given.run.mkdir(parents=True)
    else:
        own = {
            "env.id": given.env,
            "env.wrappers": json.dumps([{f"{MODULE}:SameGrid": {"grid": given.grid, "place": given.place}}]),
            "behaviour.kind": given.kind,
            "train.env_steps": given.steps,
            "seed": given.seed,
            "records.evaluate_every": 0,
            "learner.threads": 1,
        }
        settings = resolve(BASE, [*((name, str(value)) for name, value in own.items()), *flags])
        metrics = dict(train(settings, directory=given.run, inline=True).metrics)
    write(given, flags, metrics)


def write(given: argparse.Namespace, flags: list[tuple[str, str]], metrics: dict[str, float]) -> None:
    """Write the counts and the last metrics into the run, and print the end of them."""
    found = importlib.import_module(MODULE).VISITED  # of the module's own name, by which the environment has it
    every = max(1, len(found.counts) // ROWS)
    rows = [[step, found.counts[step - 1]] for step in range(every, len(found.counts) + 1, every)]
    cells = [[x, y, count] for (x, y), count in sorted(found.cells.items())]
    facts = {"env": given.env, "kind": given.kind, "grid": given.grid, "seed": given.seed, "flags": dict(flags)}
    facts |= {"steps": len(found.counts), "rows": rows, "cells": cells, "metrics": metrics}
    (given.run / "cells.json").write_text(json.dumps(facts))
    print(f"{given.kind}, seed {given.seed}: {len(found.cells)} cells in {len(found.counts)} steps")


if __name__ == "__main__":
    main()
