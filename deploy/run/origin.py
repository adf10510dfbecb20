"""A run that begins with what another has learnt (`dreamfleet train --from RUN`): its settings, and what is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.resolve import resolve_with_sources
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory

_NOT_TAKEN = {"train.dataset": "", "records.checkpoint_url": ""}
"""Settings of the other run that are its own affair: what it was trained on, and where its copies are."""
SOURCE = "flag --from"


def settings_from(
    origin: RunDirectory, checkpoint: str | int, presets: Sequence[str], flags: Sequence[tuple[str, str]]
) -> tuple[Settings, dict[str, str]]:
    """Return the settings of a new run, over those of the one it begins from, and what each came from.

    It acts with what that has learnt of its task: where that explored this one does not, unless it is asked to.

    Raises:
        UserError: as `resolve`, for a dataset, and for a checkpoint that is none.
    """
    if origin.is_dataset:
        raise UserError(f"flag --from: {origin.shown} is a dataset, where nothing was learnt; --dataset trains on it.")
    if checkpoint not in ("newest", "best") and not str(checkpoint).isdecimal():
        raise UserError(f"flag --checkpoint is '{checkpoint}', but must be newest, best, or a number of updates.")
    own = {"train.from_run": str(origin.path.resolve()), "train.from_checkpoint": str(checkpoint)}
    settings, sources = resolve_with_sources(presets, [*flags, *own.items()], base=origin.config_file)
    theirs, changed = f"file {origin.config_file}", dict(_NOT_TAKEN)
    if settings.behaviour.kind == "explore":
        changed["behaviour.kind"] = "actor_critic"
    for path, value in changed.items():
        if sources.get(path, theirs) == theirs:
            section, name = path.split(".")
            part = getattr(settings, section).model_copy(update={name: value})
            settings = settings.model_copy(update={section: part})
            sources[path] = SOURCE
    return settings, sources | dict.fromkeys(own, SOURCE)


def check_same_origin(run: RunDirectory, origin: RunDirectory) -> None:
    """Refuse to begin a run that exists from another than it began from; from the same it is resumed.

    Raises:
        UserError: naming both.
    """
    began = run.settings().train.from_run
    if began != str(origin.path.resolve()):
        what = f"began from {began}" if began else "began with nothing learnt"
        raise UserError(
            f"flag --from: the run {run.shown} exists, and {what}, not from {origin.shown}: name a new directory "
            "with --run, or leave --from out to resume it."
        )


def with_origin(settings: Settings, spaces: Spaces) -> Settings:
    """Return a new run's settings with the number of the checkpoint that it begins from, once that was found to fit.

    Raises:
        UserError: if there is no such run or checkpoint, or it is of other spaces or sizes.
    """
    from dreamfleet.learner.checkpoints.origin import Origin

    directory = RunDirectory(Path(settings.train.from_run)).existing(SOURCE.removeprefix("flag "))
    found = Origin(settings.train, spaces)
    found.check(settings, spaces)
    update = {"from_run": str(directory.path.resolve()), "from_checkpoint": found.updates}
    return settings.model_copy(update={"train": settings.train.model_copy(update=update)})
