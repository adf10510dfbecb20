"""Two tiny worlds for tests of behaviour, in which it is known what to do.

`choices`: there are two places; action 0 stays, action 1 goes to the other; arriving at place 1 is worth 1. So in
place 0 one is to go, in place 1 to stay. `box`: a place between -1 and 1, moved by up to 0.5, is worth 1 less its
square. So one is to move towards 0. Observed is the place; episodes are cut after some steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_chunks import cut

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.replay import Replay

ACTIONS = {"choices": ActionSpec("discrete", (2,)), "box": ActionSpec("box", (1,), (-1.0,), (1.0,), (1,))}
REACH = 0.5


def places_format(kind: str) -> StepFormat:
    """Return a world's format: its place as a vector of one number, and its action."""
    return StepFormat(Spaces((ObservationSpec("place", (1,), "float32"),), ACTIONS[kind]))


def play_places(kind: str, steps: int, length: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """Return this many steps of random actions, in episodes of `length`; the weights' version is -1, chance."""
    chance = np.random.default_rng(seed)
    arrays = {field.name: np.zeros((steps, *field.shape), field.dtype) for field in places_format(kind).fields}
    place = 0.0
    for step in range(steps):
        begins = step % length == 0
        if begins:
            place = float(chance.integers(2)) if kind == "choices" else chance.uniform(-1, 1)
        action = chance.integers(2) if kind == "choices" else chance.uniform(-1, 1, 1)
        arrays["place"][step], arrays["action"][step] = place, action
        arrays["reward"][step] = 0.0 if begins else (place if kind == "choices" else 1.0 - place**2)
        arrays["is_first"][step], arrays["is_last"][step] = begins, step % length == length - 1
        arrays["episode"][step] = step // length
        place = abs(place - action) if kind == "choices" else float(np.clip(place + REACH * action[0], -1, 1))
    arrays["version"][:] = -1
    return arrays


def places_replay(directory: Path, kind: str, sequence_length: int, steps: int = 2000) -> Replay:
    """Return a replay that holds steps of a world, a tenth of which are held out."""
    replay = Replay(directory, places_format(kind), ReplaySettings(capacity_gb=0.1), sequence_length, seed=7)
    for chunk in cut(places_format(kind), play_places(kind, steps)):
        replay.append(chunk)
    return replay
