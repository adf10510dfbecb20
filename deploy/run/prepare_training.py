"""What is checked before a training run starts."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.encoder import image_size
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.process_log import LogRecord, forget_logged
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.resolve import leaves
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.run.origin import with_origin
from dreamfleet.deploy.run.prepare import RunSpec, check_modes, probe
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import check_fits
from dreamfleet.learner.checkpoints.url import check_checkpoint_url
from dreamfleet.replay.report import describe
from dreamfleet.replay.shards import plan_shards


def prepare_training(run: RunDirectory, settings: Settings, inline: bool, address: str | None) -> RunSpec:
    """Check a start of a training run, new or resumed.

    Args:
        settings: for an existing run, those that it is to have now.

    Raises:
        UserError: if the settings, the environment, the dataset, the checkpoint or the directory are at fault.
    """
    check_modes(inline, address)
    if inline and settings.learner.gpus not in (1, "auto"):
        raise UserError(
            f"flag --inline: learner.gpus is {settings.learner.gpus}, but one process is one rank: set it to 1 or "
            "auto, or leave --inline out."
        )
    forget_logged()  # by earlier runs of this process
    old = run.settings() if run.config_file.exists() else None
    run.check_usable()
    if old and run.is_dataset:
        command = shlex.join(["dreamfleet", "train", "--dataset", str(run.shown)])
        raise UserError(f"flag --run: {run.shown} is a dataset; `{command}` trains on it, in a run of its own.")
    ratio = TrainRatio.of(settings)
    log_records: list[LogRecord] = []
    if settings.train.dataset:
        settings, spaces, ratio = _from_dataset(settings, log_records)
    else:
        spaces = probe(run, settings, old)
        if not old and not settings.train.from_run:  # a config.yaml has all settings, asked for or not
            log_records += _idle_picture_settings(settings.env, spaces)
    _check_updates(settings, ratio)
    with torch.device("meta"):  # the model says whether it fits the spaces, without memory or time for its parameters
        WorldModel(spaces, settings.model, settings.loss)
    if old:
        check_fits(run.checkpoints, settings, spaces)
    elif settings.train.from_run:
        settings = with_origin(settings, spaces)
    check_checkpoint_url(settings.records.checkpoint_url)
    experience, read_only = run.experience(settings)
    plan_shards(experience, settings.replay, settings.learner.sequence_length, settings.seed, read_only)
    command = shlex.join(["dreamfleet", "train", "--run", str(run.shown)])
    return RunSpec(run, True, old, settings, spaces, ratio, log_records, command)


def check_environment_flags(settings: Settings, flags: Sequence[tuple[str, str]]) -> None:
    """Refuse flags that want another environment than that of the dataset that is trained on.

    Raises:
        UserError: for the first that does.
    """
    if not settings.train.dataset:
        return
    dataset = RunDirectory(Path(settings.train.dataset)).existing("--dataset")
    own = dict(leaves({"env": dataset.settings().env.model_dump()}))
    wanted = dict(leaves({"env": settings.env.model_dump()}))
    for flag in [path for path, _ in flags if path.split(".", 1)[0] == "env"]:
        for path, value in wanted.items():
            if f"{path}.".startswith(f"{flag}.") and value != own.get(path):
                raise UserError(
                    f"flag --{flag}: the dataset {dataset.shown} has {path} {own.get(path)}, not {value}: it comes "
                    "with its environment; leave the flag out."
                )


def _idle_picture_settings(env: EnvironmentSettings, spaces: Spaces) -> list[LogRecord]:
    """Return a warning where a preset or a flag says how pictures are to be, and none is observed."""
    said = env.model_fields_set
    idle = [f"env.image_size {env.image_size}"] if env.image_size and "image_size" in said else []
    idle += ["env.grey true"] if env.grey and "grey" in said else []
    if not idle or any(spec.is_image for spec in spaces.observations):
        return []
    shown = ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))}" for spec in spaces.observations)
    text = (
        f"without effect: {' and '.join(idle)}, since {env.id} shows no picture, only {shown}; with --env.observe "
        "rendered the model sees what it renders"
    )
    return [(logging.WARNING, text)]


def _from_dataset(settings: Settings, log_records: list[LogRecord]) -> tuple[Settings, Spaces, TrainRatio]:
    """Return the settings with the dataset's environment, its spaces, and the ratio.

    All steps are there from the beginning, so there is no prefill: the updates are ratio · steps / (batch · length).

    Raises:
        UserError: if there is no such dataset.
    """
    dataset = RunDirectory(Path(settings.train.dataset)).existing("--dataset")
    spaces = dataset.spaces()
    stored = describe(dataset.replay)
    steps, dropped = stored["steps"], stored["total_steps"] - stored["steps"]
    if not steps:
        raise UserError(f"flag --dataset: {dataset.shown} holds no step yet.")
    if dropped > 0:
        text = (
            f"{dataset.shown} holds {steps:,} steps, and has dropped {dropped:,}: train.ratio is of those that it holds"
        )
        log_records.append((logging.WARNING, text))
    _check_dataset_pictures(dataset, spaces, settings)
    parts = {
        "env": dataset.settings().env,
        "train": settings.train.model_copy(update={"dataset": str(dataset.path.resolve())}),
    }
    settings = settings.model_copy(update=parts)
    replayed = settings.learner.batch_size * settings.learner.sequence_length
    return settings, spaces, TrainRatio(steps, settings.train.ratio, replayed)


def _check_updates(settings: Settings, ratio: TrainRatio) -> None:
    """Refuse a run that would collect everything and never train.

    Raises:
        UserError: if the ratio allows no update.
    """
    if ratio.updates:
        return
    steps, wanted = ratio.env_steps - ratio.prefill, ratio.replayed_per_update
    counted = f"{steps} steps of the dataset" if settings.train.dataset else f"{steps} steps after the prefill"
    more = "" if settings.train.dataset else "train.env_steps or "
    raise UserError(
        f"train.ratio {ratio.ratio:g} allows no update: {ratio.ratio:g} × {counted} is less than one replays "
        f"(learner.batch_size × learner.sequence_length = {wanted}): raise {more}train.ratio, or lower these."
    )


def _check_dataset_pictures(dataset: RunDirectory, spaces: Spaces, settings: Settings) -> None:
    """Refuse stored pictures that the encoder cannot take: no setting of this run would make them others.

    Raises:
        UserError: with how the dataset is made again.
    """
    try:
        if spaces.images:
            image_size(spaces.images, settings.model)
    except UserError:
        shown = ", ".join(f"{spec.shape[0]}×{spec.shape[1]}" for spec in spaces.images)
        wanted = "of 64×64 alone" if settings.model.encoder == "planet" else "of one size, with sides divisible by 16"
        raise UserError(
            f"flag --dataset: {dataset.shown} holds pictures of {shown}, but model.encoder {settings.model.encoder} "
            f"takes pictures {wanted}: import it again with `dreamfleet replay import --image-size 64`, which takes "
            "what `dreamfleet replay export` writes too."
        ) from None
