"""`dreamfleet dream`: lets a run's model dream of recorded sequences, beside what happened."""

from __future__ import annotations

from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.steps import StepFormat
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.dream import DreamResult, dream
from dreamfleet.learner.dream_files import write_dream
from dreamfleet.learner.illustration import longest_episode
from dreamfleet.learner.restoring import load_world_model
from dreamfleet.replay.packed import unpack
from dreamfleet.replay.replay import NotEnoughExperienceError, Replay

DREAM_FRAMES_PER_S = 10.0


def dream_command(run: RunDirectory, sequences: int, context: int | None, horizon: int | None) -> int:
    """Dream, write the files and say how far the dream holds; return the exit code."""
    result, files = dream_of(run, sequences, context, horizon)
    print(describe_dream(result))
    for file in files:
        print(file)
    return 0


def dream_of(
    run: RunDirectory, sequences: int = 32, context: int | None = None, horizon: int | None = None
) -> tuple[DreamResult, list[Path]]:
    """Return a dream of held-out sequences with the run's newest checkpoint, and the files it was written to.

    Args:
        run: an existing run, which must not be training now.
        sequences: how many.
        context: steps seen; the run's `records.picture_context` by default.
        horizon: steps imagined; what remains of `records.picture_steps` by default.

    Raises:
        UserError: if the run has no checkpoint, is training, or holds no sequence that is long enough.
    """
    settings, spaces = run.settings(), run.spaces()
    context = context or settings.records.picture_context
    horizon = horizon or settings.records.picture_steps - context
    model, _ = load_world_model(run.checkpoints, settings.model)
    step_format = StepFormat(spaces)
    replay = Replay(run.replay, step_format, settings.replay, settings.learner.sequence_length, settings.seed)
    try:
        packed = replay.sample_held_out(0, sequences, context + horizon)
        if packed is not None:
            batch = unpack(packed, step_format)
        else:  # no held-out episode is that long: what was trained on shows at least whether anything was learnt
            batch = longest_episode(unpack(replay.sample(0, sequences), step_format), context + horizon)
            print("no held-out episode is long enough: the dream is of sequences that were trained on")
    except NotEnoughExperienceError as error:
        raise UserError(f"{run.path}: there is nothing to dream of yet: {error}") from None
    finally:
        replay.close()
    if batch["reward"].shape[1] <= context:
        raise UserError(f"flag --context: {context} steps leave nothing to imagine: the longest sequence within one "
                        f"episode has {batch['reward'].shape[1]}.")  # fmt: skip
    result = dream(model, batch, context, seed=settings.seed)
    return result, write_dream(run.path / "dream", result, fps=DREAM_FRAMES_PER_S)


def describe_dream(result: DreamResult) -> str:
    """Return in a sentence how far the dream holds."""
    until, horizon = result.beats_both_until, result.horizon
    seen = f"{result.truth.shape[0]} sequences, {result.context} steps seen, {horizon} imagined"
    if not until:
        return f"{seen}: no better than repeating the last frame and the mean frame at the first imagined step"
    return f"{seen}: better than repeating the last frame and than the mean frame at each of the first {until} steps"
