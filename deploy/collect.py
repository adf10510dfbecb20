"""`dreamfleet collect`: collects a dataset of exactly so many steps, and no more."""

from __future__ import annotations

import logging
import shutil

from dreamfleet.common.errors import UserError
from dreamfleet.common.policy import make_policy
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.steps import StepFormat
from dreamfleet.deploy.fleet import Fleet
from dreamfleet.deploy.progress import duration
from dreamfleet.deploy.ratio import TrainRatio
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.session import Session, check_modes, probe
from dreamfleet.deploy.watching import RunWatcher

OVERHEAD = 1.1
"""What is stored takes at most so many times its raw bytes, headers included; mostly a tenth of them."""
LEAST_CAPACITY_GB = 1.0

log = logging.getLogger("dreamfleet")


def collect(run: RunDirectory, settings: Settings, steps: int | None, inline: bool, address: str | None) -> int:
    """Start or continue a dataset; return the exit code.

    A dataset is a run's directory without a learner's files: `dreamfleet train --dataset` trains from it.

    Args:
        run: its directory.
        settings: resolved; for an existing dataset, over those it has.
        steps: environment steps that it is to hold in the end; `train.env_steps` if None.
        inline: all in this process, without Ray.
        address: a Ray cluster to join; None starts Ray here.

    Raises:
        UserError: if the settings, the environment or the directory are at fault.
    """
    check_modes(inline, address)
    old = run.settings() if run.config_file.exists() else None
    run.check_usable("--out")
    if any(run.checkpoints.glob("*.pt")):
        raise UserError(f"flag --out: {run.path} is a training run; name another directory for the dataset.")
    spaces = probe(run, settings, old)
    make_policy(settings, spaces, settings.actors.environments, seed=0)  # says so if it does not fit the action
    settings = keep_all(settings, spaces, steps or settings.train.env_steps)
    run.create("--out")
    _warn_of_disk(run, settings)
    wanted = settings.train.env_steps
    session = Session(run, old, settings, spaces, inline, address, f"dreamfleet collect --out {run.path}")
    ratio = TrainRatio(settings.train.ratio, 1, prefill=wanted, env_steps=wanted)  # no update is ever allowed
    return session.play(False, ratio, lambda fleet, watcher: _sum_up(run, settings, fleet, watcher))


def keep_all(settings: Settings, spaces: Spaces, steps: int) -> Settings:
    """Return the settings with a replay that holds so many steps whatever they are: nothing collected is dropped."""
    shards = settings.replay.shards  # each may come to hold more than its part, so each is given the whole
    raw_gb = steps * StepFormat(spaces).step_bytes / 1e9
    capacity = max(LEAST_CAPACITY_GB, raw_gb * OVERHEAD)
    train = settings.train.model_copy(update={"env_steps": steps, "prefill": min(settings.train.prefill, steps)})
    replay = settings.replay.model_copy(
        update={
            "capacity_gb": max(settings.replay.capacity_gb, capacity * shards),
            "capacity_steps": max(settings.replay.capacity_steps, 2 * steps * shards),
        }
    )
    return settings.model_copy(update={"train": train, "replay": replay})


def _warn_of_disk(run: RunDirectory, settings: Settings) -> None:
    """Say so if the dataset might not fit on the disk; how well it will compress is not known yet."""
    needed_gb = settings.replay.capacity_gb / settings.replay.shards
    free_gb = shutil.disk_usage(run.path).free / 1e9
    if needed_gb > free_gb > 0:
        log.warning("the disk of %s has %.1f GB free; uncompressed the dataset would take up to %.1f GB, mostly it "
                    "takes a tenth of that", run.path, free_gb, needed_gb)  # fmt: skip


def _sum_up(run: RunDirectory, settings: Settings, fleet: Fleet, watcher: RunWatcher) -> None:
    steps = fleet.env_steps
    lines = [f"env steps    {steps:,} ({steps * settings.env.action_repeat:,} simulator steps)"]
    if watcher.last_replay.get("bytes_stored"):
        stored, raw = (watcher.last_replay[name] for name in ("bytes_stored", "bytes_raw"))
        lines.append(f"stored       {stored / 1e9:.3g} GB, {raw / stored:.1f} times smaller than raw")
    if watcher.progress:
        overall = watcher.progress.overall()
        lines.append(
            f"rate         {overall['env_steps_per_s']:.1f} env steps/s; {duration(overall['seconds'])} in all"
        )
    if fleet.restarts:
        lines.append(f"replaced     {fleet.restarts} workers, see the log")
    lines.append(f"dataset      {run.path}")
    lines.append(f"train on it  dreamfleet train --dataset {run.path} --preset NAME")
    log.info("done:\n  %s", "\n  ".join(lines))
