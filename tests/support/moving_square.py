"""A tiny world for learning tests: a bright square that goes where the action says and bounces off the walls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_chunks import cut

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.replay import Replay

SIDE = 16
SQUARE = 6
PACE = 2
MOVES = np.array([[0, PACE], [0, -PACE], [PACE, 0], [-PACE, 0]])


def square_format() -> StepFormat:
    """Return the world's format: a grey picture, and four actions."""
    return StepFormat(Spaces((ObservationSpec("image", (SIDE, SIDE, 1), "uint8"),), ActionSpec("discrete", (4,))))


def play_square(episodes: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Return the steps of episodes of random actions, each held for some steps; the reward is 1 in the left half."""
    chance = np.random.default_rng(seed)
    steps = episodes * length
    arrays = {field.name: np.zeros((steps, *field.shape), field.dtype) for field in square_format().fields}
    place, action = np.zeros(2, int), 0
    for step in range(steps):
        begins = step % length == 0
        if begins:
            place = chance.integers(0, (SIDE - SQUARE) // PACE + 1, 2) * PACE
        else:
            place = place + MOVES[action]
            place = np.where(place < 0, PACE, place)
            place = np.where(place > SIDE - SQUARE, SIDE - SQUARE - PACE, place)
        if chance.random() < 0.4:
            action = int(chance.integers(4))
        arrays["image"][step] = 40
        arrays["image"][step, place[0] : place[0] + SQUARE, place[1] : place[1] + SQUARE] = 220
        arrays["reward"][step] = 0.0 if begins else float(place[1] < (SIDE - SQUARE) / 2)
        arrays["action"][step] = action
        arrays["is_first"][step], arrays["is_last"][step] = begins, step % length == length - 1
        arrays["episode"][step] = step // length
    return arrays


def square_replay(directory: Path, sequence_length: int, episodes: int = 40, length: int = 40) -> Replay:
    """Return a replay that holds episodes of the world, a tenth of whose steps are held out."""
    settings = ReplaySettings(capacity_gb=0.1, held_out_every=10)
    replay = Replay(directory, square_format(), settings, sequence_length, seed=7)
    for chunk in cut(square_format(), play_square(episodes, length, seed=1)):
        replay.append(chunk)
    return replay
