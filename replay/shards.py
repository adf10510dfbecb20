"""The shards of a replay: their directories, and each one's part of the settings.

A run's replay directory holds `shard-0`, `shard-1`, and so on; each is the directory of a `Replay`.
"""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.manifest import DamagedManifestError, Manifest
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.sharded import ShardedReplay

_LOG = logging.getLogger(__name__)
SHARD_NAME = re.compile(r"shard-(\d+)")
_LEAST_CHUNKS = 4
"""Least whole chunks in a shard's share of `replay.capacity_steps`; with fewer, dropping the oldest drops all."""


class ShardPlan(NamedTuple):
    """What a shard is opened with: its directory, its share of the settings, and the seed of its draws."""

    directory: Path
    settings: ReplaySettings
    seed: int


def shard_directories(directory: Path) -> list[Path]:
    """Return the shards that are there, in order; a directory that stores chunks itself is a shard, and the first.

    Raises:
        UserError: if one may not be read: its steps would silently be left out.
    """
    numbers = {int(match[1]): directory / name for name in _names(directory) if (match := SHARD_NAME.fullmatch(name))}
    itself = [directory] if segment_paths(directory) else []
    shards = [numbers[number] for number in sorted(numbers) if numbers[number].is_dir()]
    for shard in shards:
        _names(shard)
    return itself + shards


def missing_shards(directory: Path) -> list[str]:
    """Return, in a sentence, how many shards are gone, as far as the others tell."""
    shards = shard_directories(directory)
    manifests = {shard: manifest for shard in shards if (manifest := manifest_of(shard))}
    most = max(manifests, key=lambda shard: manifests[shard].shards, default=directory)
    missing = manifests[most].shards - len(shards) if manifests else 0
    if missing > 0 and directory not in shards:  # else it may be one shard's
        return [
            f"{directory} holds {len(shards)} shards, and {most.name} says that there were {manifests[most].shards}: "
            f"{missing} {'is' if missing == 1 else 'are'} missing, with all steps in it."
        ]
    return []


def manifest_of(shard: Path) -> Manifest | None:
    """Return a shard's manifest, if it has one that is whole."""
    try:
        return Manifest.read(shard)
    except DamagedManifestError:
        return None  # who opens the shard says so


def _names(directory: Path) -> list[str]:
    """Return the names in a directory, none if it is not there; `Path.glob` does not tell it from an unreadable one."""
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}.") from None


def shard_paths(directory: Path, count: int) -> list[Path]:
    """Return the shards to open for a run that asks for `count`: all that are there, and new ones up to `count`.

    There may be more than `count`, from when the run asked for more: their steps are not left out.
    """
    known = shard_directories(directory)
    free = (path for path in (directory / f"shard-{number}" for number in range(count)) if path not in known)
    new = [path for path, _ in zip(free, range(len(known), count), strict=False)]
    return sorted([*known, *new], key=_order)


def _order(path: Path) -> int:
    """Return the number of a shard, for sorting; that of a directory that stores chunks itself is less than any."""
    match = SHARD_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def plan_shards(
    directory: Path, settings: ReplaySettings, sequence_length: int, seed: int, read_only: bool = False
) -> list[ShardPlan]:
    """Return what to open each shard of a run's replay with; a single one draws by the run's own seed.

    With `read_only`, no new shard is planned.

    Raises:
        UserError: if nothing may be made and there is no shard, or a shard's share of the capacity is too small.
    """
    paths = shard_directories(directory) if read_only else shard_paths(directory, settings.shards)
    if not paths:
        raise UserError(f"{directory} holds no replay: there is no directory 'shard-0' in it.")
    share = _share_of(settings, len(paths), sequence_length, read_only)
    seeds = [derive_seed(seed, "shard", number) for number in range(len(paths))] if len(paths) > 1 else [seed]
    return [ShardPlan(path, share, shard_seed) for path, shard_seed in zip(paths, seeds, strict=True)]


def _share_of(settings: ReplaySettings, count: int, sequence_length: int, read_only: bool) -> ReplaySettings:
    """Return the settings of one of `count` shards: an equal share of what the run may store, keep and call recent.

    `shards` is then the number of those that share, so that a message can name the whole. From shards that are only
    read nothing is dropped, so that no share of the capacity is too small.
    """
    least = max(_LEAST_CHUNKS * CHUNK_STEPS, 2 * sequence_length)
    if not read_only and count > 1 and settings.capacity_steps < count * least:
        raise UserError(
            f"replay.capacity_steps {settings.capacity_steps} is too small for replay.shards {count}: with "
            f"sequences of {sequence_length} steps they need at least {count * least}."
        )
    return settings.model_copy(
        update={
            "capacity_gb": settings.capacity_gb / count,
            "capacity_steps": settings.capacity_steps // count,
            "recent_steps": max(1, settings.recent_steps // count),
            "cache_gb": settings.cache_gb if settings.cache_gb == "auto" else settings.cache_gb / count,
            "shards": count,
        }
    )


def open_shards(
    directory: Path,
    step_format: StepFormat,
    settings: ReplaySettings,
    sequence_length: int,
    seed: int,
    read_only: bool = False,
    lock_wait_s: float = 0,
) -> ShardedReplay:
    """Open all shards of a run's replay in this process; the arguments are `Replay`'s, for the whole run.

    Raises:
        UserError: if one is in use or holds steps of another format, the capacity is too small, or nothing may be made
            and there is no shard.
    """
    for sentence in missing_shards(directory):
        _LOG.warning("%s", sentence)
    opened: list[Replay] = []
    with ExitStack() as on_error:
        for plan in plan_shards(directory, settings, sequence_length, seed, read_only):
            replay = Replay(
                plan.directory, step_format, plan.settings, sequence_length, plan.seed, lock_wait_s, read_only
            )
            on_error.callback(replay.close)
            opened.append(replay)
        on_error.pop_all()
    return ShardedReplay(opened, seed)
