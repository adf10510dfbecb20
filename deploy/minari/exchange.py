"""`dreamfleet replay export` and `import`: gives a replay away as a Minari dataset, and makes a dataset of one."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dreamfleet import __version__
from dreamfleet.actors.spaces.entries import NOTHING_NAMED, NamedEntries
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import EnvironmentSettings, ReplaySettings, Settings
from dreamfleet.deploy.minari.dataset_id import find_dataset
from dreamfleet.deploy.minari.format import DATA_FOLDER, describe_dataset
from dreamfleet.deploy.minari.picture_change import UNCHANGED, PictureChange
from dreamfleet.deploy.minari.source import MinariSource
from dreamfleet.deploy.minari.writer import require_minari, write_dataset
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter
from dreamfleet.replay.episodes import StoredEpisode, StoredStreams, cut_chunks
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.shards import shard_directories

NO_ENVIRONMENT = "(none)"
"""The `env.id` of a dataset that came without an environment."""
_TELL_EVERY_S = 5.0
_RECORD_BYTES = 64
"""Bytes that a step takes in a record beside its fields, at the very most."""


def export_replay(directory: Path, out: Path) -> int:
    """Write what a run, a dataset or a replay holds as a Minari dataset; return the exit code.

    Raises:
        UserError: if there is no replay, `out` is there already, or Minari is not installed.
    """
    require_minari()
    config, shards = _find_replay(directory)
    name = _dataset_name(out)
    with _unfinished(out) as target, StoredStreams(shards) as streams:
        _check_room(out, target, streams)
        metadata = describe_dataset(name, config, streams.step_format.spaces, __version__)
        counts = write_dataset(
            target, streams.step_format, _tell(streams.episodes(), streams.steps, "exported"), metadata
        )
    for fault in streams.faults:
        print(f"passed over: {fault}")
    print(f"exported {counts['episodes']:,} episodes with {counts['transitions']:,} transitions to {out}")
    if counts["single_steps"]:
        print(
            f"{counts['single_steps']:,} steps stand alone, without a transition: kept for `import`, unseen by others"
        )
    print(f"open it with minari.MinariDataset({str(out / DATA_FOLDER)!r})")
    return 0


def import_replay(
    directory: Path, out: Path, named: NamedEntries = NOTHING_NAMED, change: PictureChange = UNCHANGED
) -> int:
    """Make a dataset, as `collect` does, of a Minari dataset; return the exit code.

    Args:
        directory: the Minari dataset's, or its id.
        out: the dataset's to be.
        named: observations of which it is said what they are.
        change: what is to become of its pictures.

    Raises:
        UserError: if there is no Minari dataset or it cannot be taken, `out` is there already, or Minari is not
            installed.
    """
    require_minari()
    source = MinariSource(find_dataset(directory), named)
    step_format = change.format(source.step_format)
    with _unfinished(out) as target:
        run = RunDirectory(target)
        settings = _settings_of(source, run.config_file, named, change)
        steps, stored_bytes = _store(source, step_format, change, run.replay / "shard-0", settings)
        train = settings.train.model_copy(
            update={"env_steps": max(1, steps), "prefill": min(settings.train.prefill, steps), "dataset": ""}
        )
        parts = {"replay": _roomy(settings.replay, stored_bytes, steps), "train": train}
        with StateWriter(target, "collect", pause_s=0) as state:  # finished, as a dataset that was collected is
            state.beat({"env_steps": steps})
            run.write(settings.model_copy(update=parts), step_format.spaces)
    for note in source.notes:
        print(f"note: {note}.")
    print(f"imported {steps:,} steps to {out}")
    print(f"train from it with: {shlex.join(['dreamfleet', 'train', '--dataset', str(out)])}")
    return 0


def _check_room(out: Path, target: Path, streams: StoredStreams) -> None:
    """Say how big the dataset will be, since Minari compresses nothing but with loss.

    Raises:
        UserError: if it will not fit on the disk.
    """
    needed, free = streams.steps * streams.step_format.step_bytes, shutil.disk_usage(target).free
    print(f"exporting {streams.steps:,} steps: {format_bytes(needed)} or somewhat more: Minari does not compress them")
    if needed > free:
        raise UserError(
            f"flag --out: {out} would take {format_bytes(needed)}, and the disk has {format_bytes(free)} left."
        )


def _store(
    source: MinariSource, step_format: StepFormat, change: PictureChange, directory: Path, settings: Settings
) -> tuple[int, int]:
    """Store all steps of a source, changed, and return how many there are, and their bytes on disk."""
    pieces = change.pieces(source.step_format, source.pieces())
    most = source.most_steps
    room = _roomy(settings.replay, most * (step_format.step_bytes + _RECORD_BYTES), most)
    with closing(Replay(directory, step_format, room, sequence_length=2, seed=settings.seed)) as replay:
        try:
            for record in cut_chunks(step_format, _tell(pieces, most, "imported")):
                if not replay.append(record):
                    raise UserError(f"{source.data} holds a chunk twice: another tool has changed it.")
        except ValueError as error:
            raise UserError(f"{source.data} is not as dreamfleet wrote it: {error}.") from error
        stats = replay.stats()
    if stats["dropped_steps"]:
        raise UserError(f"{source.data} holds more than its metadata says, {most} steps.")
    return int(stats["steps"]), int(stats["bytes_stored"])


def _settings_of(source: MinariSource, file: Path, named: NamedEntries, change: PictureChange) -> Settings:
    """Return the settings that a source brings, or the defaults with its environment, and its pictures as changed."""
    if source.settings is not None:
        file.write_text(source.settings)
        flags = [(f"env.{name}", str(value)) for name, value in change.settings().items()]
        return resolve(base=file, flags=[*flags, *_encoder_flags(change)])
    name, arguments = source.environment or (NO_ENVIRONMENT, {})
    lists = {"pictures": named.pictures, "vectors": named.vectors, "one_hot": named.one_hot}
    pictures = {"image_size": 0, **change.settings()}
    env = EnvironmentSettings.model_validate({"id": name, "kwargs": arguments, **lists, **pictures})
    return resolve(flags=_encoder_flags(change)).model_copy(update={"env": env})


def _encoder_flags(change: PictureChange) -> list[tuple[str, str]]:
    """Return what has a dataset's settings fit its pictures: its model is nobody's, but must be possible."""
    return [("model.encoder", "strided")] if change.image_size not in (0, 64) else []


def _roomy(replay: ReplaySettings, stored_bytes: int, steps: int) -> ReplaySettings:
    """Return settings of one shard that drop none of so many bytes and steps, a quarter more than they need."""
    capacity_gb = math.ceil(stored_bytes * 1.25 / 1e8) / 10 + 0.5
    return replay.model_copy(
        update={
            "shards": 1,
            "capacity_gb": max(replay.capacity_gb, capacity_gb),
            "capacity_steps": max(replay.capacity_steps, steps + steps // 4 + 1000),
        }
    )


def _find_replay(directory: Path) -> tuple[str | None, list[Path]]:
    """Return the settings' text, if it is there, and the shards of a run's, a dataset's or a replay's directory."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: give a run's, a dataset's or a replay's directory.")
    inner = directory / "replay"
    replay, home = (inner, directory) if inner.is_dir() else (directory, directory.parent)
    config = home / "config.yaml"
    text = config.read_text() if config.is_file() and replay.name == "replay" else None
    return text, shard_directories(replay) or [replay]


def _dataset_name(out: Path) -> str:
    """Return the dataset's id for a directory: Minari wants letters, digits, - and _, and a version."""
    name = re.sub(r"[^-\w]+", "-", out.resolve().name) or "dataset"
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Give a directory to fill beside `out`, which becomes `out` if all goes well, and is removed otherwise.

    Raises:
        UserError: if `out` is there already, or something cannot be read or written.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"flag --out: {out} is there already: give a directory that is not there yet.")
    target = out.absolute().with_name(f".{out.absolute().name}.unfinished-{os.getpid()}")
    try:
        target.mkdir(parents=True)
        yield target
        target.rename(out)
    except OSError as error:
        raise UserError(f"flag --out: {out} cannot be made: {error}.") from error
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _tell(pieces: Iterable[StoredEpisode], most_steps: int, verb: str) -> Iterator[StoredEpisode]:
    """Pass pieces on and print every few seconds how far it is."""
    told, steps = time.monotonic(), 0
    for episodes, piece in enumerate(pieces, 1):
        yield piece
        steps += len(piece)
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            print(f"{verb} {episodes:,} episodes, {steps:,} of {most_steps:,} steps", flush=True)
