"""What is checked before a dataset is collected, and the settings that it is collected with."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Sequence

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.process_log import LogRecord, forget_logged
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.run.prepare import RunSpec, check_modes, check_same_spaces, probe
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_acting_weights
from dreamfleet.replay.report import count_steps
from dreamfleet.replay.shards import plan_shards, shard_paths

OVERHEAD = 1.1
"""What is stored takes at most this factor of its raw bytes, headers included; mostly a tenth of them."""
LEAST_CAPACITY_GB = 1.0


def prepare_collecting(
    run: RunDirectory,
    settings: Settings,
    steps: int | None,
    policy: RunDirectory | None,
    checkpoint: str | int,
    inline: bool,
    address: str | None,
) -> RunSpec:
    """Check a start of a dataset, new or continued.

    Raises:
        UserError: if the settings, the environment, the policy or the directory are at fault.
    """
    check_modes(inline, address)
    forget_logged()  # by earlier runs of this process
    old = run.settings() if run.config_file.exists() else None
    run.check_usable("--out")
    if run.kind() == "train" or any(run.checkpoints.glob("*.pt")):
        raise UserError(f"flag --out: {run.shown} is a training run; name another directory for the dataset.")
    spaces = probe(run, settings, old)
    log_records: list[LogRecord] = []
    weights = _weights(settings, spaces, policy, checkpoint, log_records)
    wanted = _wanted(run, settings, steps, log_records)
    shards = shard_paths(run.replay, settings.replay.shards)  # some may be of a start that asked for more
    settings = keep_all(settings, spaces, wanted, len(shards))
    plan_shards(
        run.replay, settings.replay, settings.learner.sequence_length, settings.seed
    )  # raises before a file is made
    run.create("--out")
    log_records += _disk_warnings(run, settings, len(shards))
    acting = ["--policy", str(policy.shown)] if policy else []
    command = shlex.join(["dreamfleet", "collect", "--out", str(run.shown), *acting])
    return RunSpec(run, False, old, settings, spaces, TrainRatio(wanted), log_records, command, weights)


def settings_to_collect(
    presets: Sequence[str], flags: Sequence[tuple[str, str]], run: RunDirectory, policy: RunDirectory | None
) -> Settings:
    """Return the settings of a dataset, new or not; with a policy, a new one's are over those of the policy's run.

    Raises:
        UserError: as `resolve`.
    """
    base = run.config_file if run.config_file.exists() else None
    if policy is None:
        return resolve(presets, flags, base=base)
    learned = resolve(presets, flags, base=policy.config_file)
    if base is None:
        return learned
    parts = {"model": learned.model, "behaviour": learned.behaviour}
    return resolve(presets, flags, base=base).model_copy(update=parts)


def keep_all(settings: Settings, spaces: Spaces, steps: int, shards: int) -> Settings:
    """Return the settings with a replay that holds `steps` steps whatever they are: nothing collected is dropped.

    Args:
        shards: how many share the replay's capacity; each may come to hold more than its part, so each is given all.
    """
    raw_gb = steps * StepFormat(spaces).step_bytes / 1e9
    capacity = max(LEAST_CAPACITY_GB, raw_gb * OVERHEAD)
    train = {"env_steps": steps, "prefill": min(settings.train.prefill, steps), "dataset": ""}
    replay = settings.replay.model_copy(
        update={
            "capacity_gb": max(settings.replay.capacity_gb, capacity * shards),
            "capacity_steps": max(settings.replay.capacity_steps, 2 * steps * shards),
        }
    )
    return settings.model_copy(update={"train": settings.train.model_copy(update=train), "replay": replay})


def _weights(
    settings: Settings, spaces: Spaces, policy: RunDirectory | None, checkpoint: str | int, log_records: list[LogRecord]
) -> tuple[int, np.ndarray] | None:
    """Return the version and the weights that the actors act with, None for chance; say which they are.

    Raises:
        UserError: if a learned policy is wanted and there is none, or it does not fit.
    """
    kind = settings.behaviour.kind
    if policy is None:
        if settings.acts_by_weights:
            raise UserError(
                f"behaviour.kind is {kind}, which acts with what a run has learned: name one with --policy RUN, or "
                "give --behaviour.kind random."
            )
        return None
    if not settings.acts_by_weights:
        raise UserError(f"flag --policy: behaviour.kind of {policy.shown} is random: there is no learned policy in it.")
    check_same_spaces(policy, spaces)
    weights = load_acting_weights(policy.checkpoints, settings, checkpoint)
    text = f"policy: {kind} of {policy.shown} at update {weights[0]:,}, exploring as in training"
    log_records.append((logging.INFO, text))
    return weights


def _wanted(run: RunDirectory, settings: Settings, steps: int | None, log_records: list[LogRecord]) -> int:
    """Return the steps that the dataset is to hold in the end: those that it holds already at least."""
    wanted, held = steps or settings.train.env_steps, count_steps(run.replay)
    if held > wanted:
        log_records.append(
            (logging.INFO, f"{run.shown} holds {held:,} steps already, more than the {wanted:,} asked for")
        )
    return max(wanted, held)


def _disk_warnings(run: RunDirectory, settings: Settings, shards: int) -> list[LogRecord]:
    """Say so if the dataset might not fit on the disk; how well it will compress is not known yet."""
    needed, free = settings.replay.capacity_gb * 1e9 / shards, shutil.disk_usage(run.path).free
    if not needed > free > 0:
        return []
    text = (
        f"the disk of {run.shown} has {format_bytes(free)} free; uncompressed the dataset would take up to "
        f"{format_bytes(needed)}, mostly it takes a tenth of that"
    )
    return [(logging.WARNING, text)]
