"""The sequences that a run's model dreams of: held out of training, as long as there are any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_world_model
from dreamfleet.learner.pictures.comparison import write_dream
from dreamfleet.learner.pictures.open_loop import DreamResult, dream, longest_episode
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.sharded import ShardedReplay
from dreamfleet.replay.shards import open_shards

DREAM_FRAMES_PER_S = 10.0
LEAST_IMAGINED = 2
"""A horizon is shortened to no less than this before a dream is of sequences that were trained on."""


class Sequences(NamedTuple):
    """What is dreamt of.

    Attributes:
        arrays: fields of the step format (B, T, …), none of which runs into another episode.
        note: a sentence on how they differ from what was asked for; empty if they do not.
    """

    arrays: dict[str, np.ndarray]
    note: str


@dataclass(frozen=True)
class RecordedDream:
    """A dream of recorded sequences, and the files that show it.

    Attributes:
        note: as in `Sequences`.
    """

    result: DreamResult
    note: str
    files: list[Path]

    def describe(self) -> str:
        """Return in a sentence how far the dream holds, and if need be another on its sequences."""
        result, note = self.result, f" ({self.note})" if self.note else ""
        count, until = result.truth.shape[0], result.beats_both_until
        seen = f"{count} sequences, {result.context} steps seen, {result.horizon} imagined"
        if not until:
            return (
                f"{seen}: no better than repeating the last frame and the mean frame at the first imagined step{note}"
            )
        better = f"better than repeating the last frame and than the mean frame at each of the first {until} steps"
        return f"{seen}: {better}{note}"


def dream_of(
    run: RunDirectory, sequences: int = 32, context: int | None = None, horizon: int | None = None
) -> RecordedDream:
    """Return a dream of held-out sequences with the run's newest checkpoint, written to files in the run.

    Where no held-out sequence is long enough the horizon is halved repeatedly; where that does not help, the dream is
    of a sequence that was trained on, which shows at least whether anything was learnt.

    Raises:
        UserError: if the run has no checkpoint or its model no decoder, or there is no sequence that is longer than the
            context.
    """
    settings, step_format = run.settings(), StepFormat(run.spaces())
    records = settings.records
    seen = records.picture_context if context is None else context
    imagined = max(1, records.picture_steps - seen) if horizon is None else horizon
    for name, number in (("sequences", sequences), ("context", seen), ("horizon", imagined)):
        if number < 1:
            raise UserError(f"{name} is {number}, but must be a whole number of at least 1.")
    model, _ = load_world_model(run.checkpoints, settings)
    length = settings.learner.sequence_length
    experience, _ = run.experience(settings)
    replay = open_shards(experience, step_format, settings.replay, length, settings.seed, read_only=True)
    try:
        drawn = _draw(replay, step_format, sequences, seen, imagined)
        if drawn.arrays["reward"].shape[1] <= seen:
            name = "records.picture_context" if context is None else "flag --context"
            raise UserError(f"{name}: {seen} steps leave nothing to imagine: {_longest(replay, drawn)}.")
    except NotEnoughExperienceError as error:
        raise UserError(f"{run.shown}: there is nothing to dream of yet: {error}.") from None
    finally:
        replay.close()
    result = dream(model, drawn.arrays, seen, seed=settings.seed)
    return RecordedDream(result, drawn.note, write_dream(run.path / "dream", result, fps=DREAM_FRAMES_PER_S))


def _draw(replay: ShardedReplay, step_format: StepFormat, sequences: int, context: int, horizon: int) -> Sequences:
    """Return the best there is; they may not be longer than the context."""
    drawn = _held_out(replay, step_format, sequences, context, horizon, _horizons(horizon))
    if drawn is None:
        drawn = _trained_on(replay, step_format, sequences, context, horizon)
        if drawn.arrays["reward"].shape[1] <= context:
            drawn = _held_out(replay, step_format, sequences, context, horizon, [1]) or drawn
    return drawn


def _held_out(
    replay: ShardedReplay, step_format: StepFormat, sequences: int, context: int, horizon: int, horizons: list[int]
) -> Sequences | None:
    """Return sequences never trained on with the first of `horizons` (for `horizon`) that there are, or None."""
    for imagined in horizons:
        compressed = replay.sample_held_out(0, sequences, context + imagined)
        if compressed is not None:
            note = f"no held-out sequence has {context + horizon} steps: {imagined} are imagined instead of {horizon}"
            return Sequences(decompress(compressed, step_format), note if imagined < horizon else "")
    return None


def _horizons(horizon: int) -> list[int]:
    """Return a horizon, half of it, and so on down to the least; one that is less is all there is."""
    horizons = [horizon]
    while horizons[-1] > LEAST_IMAGINED:
        horizons.append(max(horizons[-1] // 2, LEAST_IMAGINED))
    return horizons


def _trained_on(
    replay: ShardedReplay, step_format: StepFormat, sequences: int, context: int, horizon: int
) -> Sequences:
    """Return one sequence of training, that of several which stays in one episode for longest."""
    batch = longest_episode(decompress(replay.sample(0, sequences), step_format), context + horizon)
    least = context + min(horizon, LEAST_IMAGINED)
    return Sequences(batch, f"no held-out sequence has {least} steps: this is of a sequence that was trained on")


def _longest(replay: ShardedReplay, trained_on: Sequences) -> str:
    """Return how long the sequences are that there are."""
    steps = trained_on.arrays["reward"].shape[1]
    return (
        f"the longest held-out sequence stored has {_longest_held_out(replay)} steps, and the longest drawn of what "
        f"was trained on has {steps} (learner.sequence_length, or up to the end of its episode)"
    )


def _longest_held_out(replay: ShardedReplay) -> int:
    """Return the most steps that follow each other in one episode and are held out; 0 if there are none."""

    def fits(length: int) -> bool:
        return replay.sample_held_out(0, 1, length) is not None

    too_long = 1
    while fits(too_long):
        too_long *= 2
    longest = too_long // 2
    while too_long - longest > 1:
        middle = (longest + too_long) // 2
        longest, too_long = (middle, too_long) if fits(middle) else (longest, middle)
    return longest
