"""`dreamfleet replay export` and `import`: a replay written as a Minari dataset, and a dataset made of one."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamfleet.actors.spaces.entries import NOTHING_NAMED, NamedEntries
from dreamfleet.actors.spaces.pictures import make_grey, resize_picture
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.minari.dataset import MinariDataset, find_dataset
from dreamfleet.deploy.minari.format import DATA_FOLDER, describe_dataset, write_dataset
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter
from dreamfleet.replay.episodes import StoredEpisode, StoredStreams, cut_chunks
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.shards import shard_directories

NO_ENVIRONMENT = "(none)"
"""The `env.id` of a dataset that came without an environment."""
_PROGRESS_EVERY_S = 5.0
_STEP_OVERHEAD_BYTES = 64
"""Bytes that a stored step takes beside its fields, at the very most."""


@dataclass(frozen=True)
class PictureChange:
    """How an import changes all pictures, as the wrappers of an environment would have.

    Attributes:
        image_size: side to which they are resized, by area; 0 keeps their size.
        grey: whether they become grey.
    """

    image_size: int = 0
    grey: bool = False

    def settings(self) -> dict[str, int | bool]:
        """Return the settings of the environment that do the same; empty where nothing is changed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

    def format(self, stored: StepFormat) -> StepFormat:
        """Return the format of the steps once their pictures are changed.

        Raises:
            UserError: if there are no pictures to change, or some cannot become grey.
        """
        if not self.settings():
            return stored
        spaces = stored.spaces
        if not spaces.images:
            flag = "--image-size" if self.image_size else "--grey"
            shown = ", ".join(f"'{spec.name}' {'×'.join(map(str, spec.shape))}" for spec in spaces.observations)
            raise UserError(f"flag {flag}: the dataset holds no picture, only {shown}; leave the flag out.")
        changed = tuple(self._spec(spec) if spec.is_image else spec for spec in spaces.observations)
        return StepFormat(Spaces(changed, spaces.action))

    def apply(self, stored: StepFormat, episodes: Iterable[StoredEpisode]) -> Iterator[StoredEpisode]:
        """Yield the episodes with their pictures changed."""
        names = [spec.name for spec in stored.spaces.images] if self.settings() else []
        for episode in episodes:
            pictures = {name: np.stack([self._change(picture) for picture in episode.arrays[name]]) for name in names}
            yield StoredEpisode(*episode.place, episode.chunks, {**episode.arrays, **pictures})

    def _spec(self, spec: ObservationSpec) -> ObservationSpec:
        height, width, channels = spec.shape
        if self.grey and channels not in (1, 3):
            raise UserError(f"flag --grey: it needs pictures of 3 channels (or 1), but '{spec.name}' has {channels}.")
        side = (self.image_size, self.image_size) if self.image_size else (height, width)
        return dataclasses.replace(spec, shape=(*side, 1 if self.grey else channels))

    def _change(self, picture: np.ndarray) -> np.ndarray:
        side = (self.image_size, self.image_size)
        resized = resize_picture(picture, side) if self.image_size and side != picture.shape[:2] else picture
        return make_grey(resized) if self.grey and picture.shape[-1] == 3 else resized


UNCHANGED = PictureChange()


def export_replay(directory: Path, out: Path) -> int:
    """Write what a run, a dataset or a replay holds as a Minari dataset; return the exit code.

    Raises:
        UserError: if there is no replay, `out` is there already, or Minari is not installed.
    """
    _require_minari()
    config, shards = _find_replay(directory)
    with _unfinished(out) as target, StoredStreams(shards) as streams:
        _check_room(out, target, streams)
        metadata = describe_dataset(_dataset_name(out), config, streams.step_format.spaces)
        episodes = _print_progress(streams.episodes(), streams.steps, "exported")
        counts = write_dataset(target, streams.step_format, episodes, metadata)
    for fault in streams.faults:
        print(f"passed over: {fault}")
    print(f"exported {counts['episodes']:,} episodes with {counts['transitions']:,} transitions to {out}")
    if single := counts["single_steps"]:
        print(f"{single:,} steps stand alone, without a transition: kept for `import`, unseen by others")
    print(f"open it with minari.MinariDataset({str(out / DATA_FOLDER)!r})")
    return 0


def import_replay(
    directory: Path, out: Path, named: NamedEntries = NOTHING_NAMED, change: PictureChange = UNCHANGED
) -> int:
    """Make a dataset, as `collect` does, of a Minari dataset; return the exit code.

    Args:
        directory: the Minari dataset's, or its id.
        named: what the user says of observations.

    Raises:
        UserError: if there is no Minari dataset or it cannot be taken, `out` is there already, or Minari is not
            installed.
    """
    _require_minari()
    dataset = MinariDataset(find_dataset(directory), named)
    step_format = change.format(dataset.step_format)
    with _unfinished(out) as target:
        run = RunDirectory(target)
        settings = _settings_of(dataset, run.config_file, named, change)
        steps, stored_bytes = _store(dataset, step_format, change, run.replay / "shard-0", settings)
        train = settings.train.model_copy(
            update={"env_steps": max(1, steps), "prefill": min(settings.train.prefill, steps), "dataset": ""}
        )
        parts = {"replay": _roomy(settings.replay, stored_bytes, steps), "train": train}
        with StateWriter(target, "collect", pause_s=0) as state:  # finished, as a dataset that was collected is
            state.beat({"env_steps": steps})
            run.write(settings.model_copy(update=parts), step_format.spaces)
    for message in dataset.messages:
        print(f"note: {message}.")
    print(f"imported {steps:,} steps to {out}")
    print(f"train from it with: {shlex.join(['dreamfleet', 'train', '--dataset', str(out)])}")
    return 0


def _require_minari() -> None:
    try:
        import h5py  # noqa: F401
        import minari  # noqa: F401
    except ImportError as error:
        raise UserError(f"Minari is not installed ({error}): pip install 'dreamfleet[minari]'.") from None


def _check_room(out: Path, target: Path, streams: StoredStreams) -> None:
    """Say how big the dataset will be, since Minari compresses only with loss, and refuse what the disk cannot hold."""
    needed, free = streams.steps * streams.step_format.step_bytes, shutil.disk_usage(target).free
    print(f"exporting {streams.steps:,} steps: {format_bytes(needed)} or somewhat more: Minari does not compress them")
    if needed > free:
        raise UserError(
            f"flag --out: {out} would take {format_bytes(needed)}, and the disk has {format_bytes(free)} left."
        )


def _store(
    dataset: MinariDataset, step_format: StepFormat, change: PictureChange, directory: Path, settings: Settings
) -> tuple[int, int]:
    """Store all steps of a dataset, changed, and return how many there are, and their bytes on disk."""
    most = dataset.most_steps
    episodes = _print_progress(change.apply(dataset.step_format, dataset.episodes()), most, "imported")
    room = _roomy(settings.replay, most * (step_format.step_bytes + _STEP_OVERHEAD_BYTES), most)
    with closing(Replay(directory, step_format, room, sequence_length=2, seed=settings.seed)) as replay:
        try:
            for chunk in cut_chunks(step_format, episodes):
                if not replay.append(chunk):
                    raise UserError(f"{dataset.data} holds a chunk twice: another tool has changed it.")
        except ValueError as error:
            raise UserError(f"{dataset.data} is not as dreamfleet wrote it: {error}.") from error
        stats = replay.stats()
    if stats["dropped_steps"]:
        raise UserError(f"{dataset.data} holds more than its metadata says, {most} steps.")
    return int(stats["steps"]), int(stats["bytes_stored"])


def _settings_of(dataset: MinariDataset, file: Path, named: NamedEntries, change: PictureChange) -> Settings:
    """Return the settings that a dataset brings, or the defaults with its environment, and its pictures as changed."""
    # The model of a dataset's settings is never made, but must be possible with its pictures.
    encoder = [("model.encoder", "strided")] if change.image_size not in (0, 64) else []
    if dataset.settings is not None:
        file.write_text(dataset.settings)
        flags = [(f"env.{name}", str(value)) for name, value in change.settings().items()]
        return resolve(base=file, flags=[*flags, *encoder])
    name, arguments = dataset.environment or (NO_ENVIRONMENT, {})
    lists = {"pictures": named.pictures, "vectors": named.vectors, "one_hot": named.one_hot}
    pictures = {"image_size": 0, **change.settings()}
    env = EnvironmentSettings.model_validate({"id": name, "kwargs": arguments, **lists, **pictures})
    return resolve(flags=encoder).model_copy(update={"env": env})


def _roomy(replay: ReplaySettings, stored_bytes: int, steps: int) -> ReplaySettings:
    """Return settings of one shard that holds these bytes and steps, and a quarter more."""
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
    """Return the dataset's id for a directory: Minari requires letters, digits, - and _, and a version."""
    name = re.sub(r"[^-\w]+", "-", out.resolve().name) or "dataset"
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Give a directory to fill beside `out`, which becomes `out` if all goes well, and is removed otherwise."""
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


def _print_progress(stored: Iterable[StoredEpisode], most_steps: int, verb: str) -> Iterator[StoredEpisode]:
    """Yield the episodes and print every few seconds how many there were."""
    printed, steps = time.monotonic(), 0
    for number, episode in enumerate(stored, 1):
        yield episode
        steps += len(episode)
        if time.monotonic() - printed > _PROGRESS_EVERY_S:
            printed = time.monotonic()
            print(f"{verb} {number:,} episodes, {steps:,} of {most_steps:,} steps", flush=True)
