"""`dreamfleet train`: prepares a run, lets the fleet run, and sums up."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import format_duration
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.resolve import leaves
from dreamfleet.common.settings.schema import EnvironmentSettings, Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.train_ratio import TrainRatio
from dreamfleet.deploy.monitoring.run_callbacks import RunWatcher
from dreamfleet.deploy.run.goal import Goal
from dreamfleet.deploy.run.session import Session, check_modes, probe
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import check_fits
from dreamfleet.learner.checkpoints.url import check_checkpoint_url
from dreamfleet.replay.shards import plan_shards

log = logging.getLogger("dreamfleet")


def train(run: RunDirectory, settings: Settings, inline: bool, address: str | None) -> int:
    """Start or resume a run; return the exit code.

    Args:
        run: its directory, which need not be there yet.
        settings: resolved; for an existing run, over those it had.
        inline: all in this process, without Ray.
        address: a Ray cluster to join; None starts Ray here.

    Raises:
        UserError: if the settings, the environment, the dataset or the directory are at fault.
    """
    plan = prepare(run, settings, inline, address)
    run.create()
    goal = Goal(
        learns=True,
        ratio=plan.ratio,
        sum_up=lambda fleet, watcher: _sum_up(run, fleet, watcher),
        come_back=shlex.join(["dreamfleet", "train", "--run", str(run.shown)]),
    )
    return Session(run, plan.old, plan.settings, plan.spaces, goal, inline, address, plan.remarks).play()


@dataclass(frozen=True)
class Prepared:
    """A start of a run that was checked and could begin.

    Attributes:
        old: the settings that the run had, or None if it is new.
        settings: those that it has now; on a dataset, with the dataset's environment.
        spaces: what the environment shows and takes.
        ratio: how many steps and updates there are to be.
        remarks: what was found out, to be logged first.
    """

    old: Settings | None
    settings: Settings
    spaces: Spaces
    ratio: TrainRatio
    remarks: list[LogRecord]


def prepare(run: RunDirectory, settings: Settings, inline: bool, address: str | None) -> Prepared:
    """Check all that can be checked before anything is made: what is at fault leaves nothing behind.

    Raises:
        UserError: as `train`.
    """
    check_modes(inline, address)
    old = run.settings() if run.config_file.exists() else None
    run.check_usable()
    if old and run.is_dataset:
        command = shlex.join(["dreamfleet", "train", "--dataset", str(run.shown)])
        raise UserError(f"flag --run: {run.shown} is a dataset; `{command}` trains on it, in a run of its own.")
    ratio = TrainRatio.of(settings)
    remarks: list[LogRecord] = []
    if settings.train.dataset:
        settings, spaces, ratio = _from_dataset(settings, remarks)
    else:
        spaces = probe(run, settings, old)
        make_policy(settings, spaces, settings.actors.environments, seed=0)  # says so if the action does not fit
        if not old:  # whose config.yaml says all settings, asked for or not
            remarks += _idle_picture_settings(settings.env, spaces)
    _check_updates(settings, ratio)
    _check_model(settings, spaces)
    if old:
        check_fits(run.checkpoints, settings, spaces)
    check_checkpoint_url(settings.records.checkpoint_url)
    experience, read_only = run.experience(settings)
    plan_shards(experience, settings.replay, settings.learner.sequence_length, settings.seed, read_only)
    return Prepared(old, settings, spaces, ratio, remarks)


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


def _from_dataset(settings: Settings, remarks: list[LogRecord]) -> tuple[Settings, Spaces, TrainRatio]:
    """Return the settings with the dataset's environment, its spaces, and the updates that its steps allow.

    All of its steps are there from the beginning, so there is nothing to prefill: the updates are
    ratio · steps / (batch · length).

    Raises:
        UserError: if there is no such dataset.
    """
    from dreamfleet.replay.report import describe

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
        remarks.append((logging.WARNING, text))
    _check_dataset_pictures(dataset, spaces, settings)
    parts = {
        "env": dataset.settings().env,
        "train": settings.train.model_copy(update={"dataset": str(dataset.path.resolve())}),
    }
    settings = settings.model_copy(update=parts)
    replayed = settings.learner.batch_size * settings.learner.sequence_length
    return settings, spaces, TrainRatio(settings.train.ratio, replayed, prefill=0, env_steps=steps)


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
    from dreamfleet.common.model.encoder import image_size

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


def _check_model(settings: Settings, spaces: Spaces) -> None:
    """Have the model say whether it fits the spaces, without memory or time spent on its parameters.

    Raises:
        UserError: if it does not.
    """
    import torch

    from dreamfleet.common.model.world_model import WorldModel

    with torch.device("meta"):
        WorldModel(spaces, settings.model)


def _sum_up(run: RunDirectory, fleet: Fleet, watcher: RunWatcher) -> None:
    """Dream once more of what was held out, and print where everything is."""
    lines = [f"env steps    {fleet.env_steps:,}{fleet.ledger.simulator.describe(fleet.env_steps)}"]
    lines.append(f"updates      {fleet.updates:,} (ratio {fleet.ratio.reached(fleet.env_steps, fleet.updates):.1f})")
    for name in ("total", "reconstruction", "kl", "reward", "continue"):
        first, last = (metrics.get(f"loss/{name}") for metrics in (watcher.first_metrics, watcher.last_metrics))
        if first is not None and last is not None:
            lines.append(f"{'losses' if name == 'total' else '':<12} {name} {first:.4g} → {last:.4g}")
    if watcher.progress:
        overall = watcher.progress.overall()
        rates = f"{overall['env_steps_per_s']:.1f} env steps/s, {overall['updates_per_s']:.2f} updates/s"
        lines.append(f"rates        {rates}; {format_duration(overall['seconds'])} in all")
    if fleet.restarts:
        lines.append(f"replaced     {fleet.restarts} workers, see the log")
    lines += _dream_lines(run)
    lines.append(f"run          {run.shown}")
    if watcher.last_picture:
        lines.append(f"picture      {watcher.last_picture}")
    if watcher.last_video:
        lines.append(f"             {watcher.last_video}")
    lines.append(f"TensorBoard  {_tensorboard_command(run.shown / run.tensorboard.name)}")
    log.info("done:\n  %s", "\n  ".join(lines))


def _dream_lines(run: RunDirectory) -> list[str]:
    from dreamfleet.deploy.run.dream import describe_dream, dream_of

    try:
        result, files = dream_of(run)
    except UserError as error:
        return [f"dream        none: {error}"]
    return [f"dream        {describe_dream(result)}", *(f"             {file}" for file in files)]


def _tensorboard_command(directory: Path) -> str:
    """Return a command that a shell can run as it stands, also when the environment is not activated."""
    import sys

    beside = Path(sys.executable).with_name("tensorboard")
    near = os.path.relpath(beside)
    program = "tensorboard" if not beside.exists() else str(beside) if near.startswith("..") else near
    return shlex.join([program, "--logdir", str(directory)])
