"""A Minari dataset as it is read: one of ours, to be restored as it was, or anyone's, to be taken as it is."""

from __future__ import annotations

import heapq
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.actors.spaces.entries import NamedEntries
from dreamfleet.common.errors import UserError, nearest, shown
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.minari.foreign_episodes import ForeignEpisodes
from dreamfleet.deploy.minari.format import (
    DATA_FOLDER,
    GROUP,
    METADATA_FILE,
    SINGLE_STEPS_FILE,
    VERSION,
    from_episode,
    read_single_steps,
)
from dreamfleet.replay.episodes import StoredEpisode

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage

_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


class MinariDataset:
    """A dataset in a directory of this machine.

    No environment is made and nothing is executed: Minari makes the environment of a dataset that does not tell its
    spaces, so such a dataset is refused before Minari sees it.

    Attributes:
        data: where everything lies.
        messages: sentences on what is not taken as it is; more come while `episodes` reads.

    Args:
        directory: the dataset's, or the folder `data` in it.
        named: what the user says of observations; those of a dataset that dreamfleet wrote are known.

    Raises:
        UserError: if there is none, or none that can be read.
    """

    def __init__(self, directory: Path, named: NamedEntries) -> None:
        inner = directory / DATA_FOLDER
        self.data = inner if inner.is_dir() else directory
        self._metadata = _read_metadata(directory, self.data / METADATA_FILE)
        self._storage = self._open()
        self._foreign = None if self._is_ours() else ForeignEpisodes(self._storage, named)
        self.messages: list[str] = self._foreign.messages if self._foreign else []
        if not self._foreign and named.lists:
            flags = " and ".join(f"--{name}" for name in named.lists)
            raise UserError(f"{directory} was written by dreamfleet, which knows its observations: leave out {flags}.")
        if self._foreign and GROUP in self._metadata:
            self.messages.append(
                "another tool has added or removed episodes since dreamfleet wrote this: they are taken as they are now"
            )

    @property
    def most_steps(self) -> int:
        """At least the number of steps that `episodes` yields."""
        return int(self._storage.total_steps) + int(self._storage.total_episodes) + len(self._single_steps)

    @property
    def settings(self) -> str | None:
        """Text of the `config.yaml` of the run that it was exported from; None if it is not known."""
        text = None if self._foreign else self._metadata[GROUP].get("settings")
        return text if isinstance(text, str) else None

    @property
    def environment(self) -> tuple[str, dict[str, Any]] | None:
        """Id and arguments of the environment that it names; None if it names none."""
        try:
            spec = json.loads(self._metadata.get("env_spec") or "null")
            name, arguments = spec["id"], spec.get("kwargs") or {}
        except (ValueError, TypeError, KeyError):
            return None
        # An id with a module in front would have that imported; a dataset has no say in what is imported here.
        is_plain = isinstance(name, str) and ":" not in name and isinstance(arguments, dict)
        return (name, arguments) if is_plain else None

    @cached_property
    def step_format(self) -> StepFormat:
        """The format of its steps once they are ours."""
        if self._foreign:
            return self._foreign.step_format
        try:
            return StepFormat(Spaces.from_json(self._metadata[GROUP]["spaces"]))
        except (KeyError, TypeError, ValueError) as error:
            place = f"{self.data / METADATA_FILE}: '{GROUP}'"
            raise UserError(f"{place}: 'spaces' cannot be read: {shown(error)}.") from None

    def episodes(self) -> Iterator[StoredEpisode]:
        """Yield all episodes and parts of episodes, in the order of their places.

        Raises:
            UserError: naming the episode that cannot be read.
        """
        if self._foreign:
            yield from self._foreign.episodes(self._read())
        else:
            yield from heapq.merge(self._own_episodes(), self._single_steps, key=lambda episode: episode.place)

    def _own_episodes(self) -> Iterator[StoredEpisode]:
        for number, episode in enumerate(self._read()):
            try:
                yield from_episode(self.step_format, episode)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.data}: episode {number} is not as dreamfleet wrote it: {error}. Remove '{GROUP}' from "
                    f"{METADATA_FILE} to take the episodes as they are now."
                ) from None

    @cached_property
    def _single_steps(self) -> list[StoredEpisode]:
        if self._foreign:
            return []
        file = self.data / SINGLE_STEPS_FILE
        try:
            found = read_single_steps(file, self.step_format)
        except Exception as error:  # noqa: BLE001 (NumPy, as below)
            raise UserError(f"{file} cannot be read: {shown(error)}.") from None
        if len(found) != self._metadata[GROUP].get("single_steps"):
            raise UserError(f"{file} is missing or has changed: it holds {len(found)} steps.")
        return sorted(found, key=lambda episode: episode.place)

    def _read(self) -> Iterator[dict[str, Any]]:
        total = int(self._storage.total_episodes)
        episodes = iter(self._storage.get_episodes(range(total)))
        for number in range(total):
            try:
                episode = next(episodes)
            except Exception as error:  # noqa: BLE001 (Minari, as below)
                raise UserError(f"{self.data}: episode {number} cannot be read: {shown(error)}.") from None
            yield episode

    def _open(self) -> MinariStorage:
        import minari
        from minari.dataset.minari_storage import MinariStorage

        file = self.data / METADATA_FILE
        if not all(isinstance(self._metadata.get(name), str) for name in ("observation_space", "action_space")):
            raise UserError(
                f"{file} does not tell the spaces of observations and actions: they would have to be asked of the "
                "dataset's environment, and importing makes none. Load it with Minari once and write it again."
            )
        written_by = self._metadata.get("minari_version")
        if not isinstance(written_by, str) or written_by not in minari.supported_dataset_versions:
            found = shown(written_by)
            raise UserError(f"{file}: minari_version is {found}, which Minari {minari.__version__} here does not read.")
        counts = [self._metadata.get(name) for name in ("total_episodes", "total_steps")]
        if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts):
            raise UserError(
                f"{file} does not say how many episodes (total_episodes) and steps (total_steps) there are."
            )
        try:
            return MinariStorage.read(self.data)
        except ImportError as error:
            raise UserError(f"{self.data}: {error}.") from None
        except Exception as error:  # noqa: BLE001 (what Minari and HDF5 raise for damaged files is of many kinds)
            raise UserError(f"{self.data} cannot be read as a Minari dataset: {shown(error)}.") from None

    def _is_ours(self) -> bool:
        """Whether dreamfleet wrote it and all episodes are still there."""
        ours = self._metadata.get(GROUP)
        if not isinstance(ours, dict):
            return False
        if ours.get("format") != VERSION:
            raise UserError(
                f"{self.data / METADATA_FILE}: '{GROUP}': format is {shown(ours.get('format'))}, "
                f"which this version does not read: it reads {VERSION}."
            )
        now = (self._storage.total_episodes, self._storage.total_steps)
        return now == (ours.get("episodes"), ours.get("transitions"))


def find_dataset(named: Path) -> Path:
    """Return the directory of a dataset that is named by it or by an id such as D4RL/door/human-v2.

    A directory of that name comes first; an id that is not here is downloaded.

    Raises:
        UserError: if it is an id, and no dataset of that id is here or can be downloaded.
    """
    identity = named.as_posix()
    if named.exists() or not _ID.fullmatch(identity):
        return named
    given = os.environ.get("MINARI_DATASETS_PATH")
    root = Path(given) if given else Path.home() / ".minari" / "datasets"
    if not (root / identity / DATA_FOLDER).is_dir():
        _download(identity, root)
    return root / identity


def _download(identity: str, root: Path) -> None:
    import minari

    print(f"'{identity}' is not in {root}: Minari downloads it", flush=True)
    try:
        minari.download_dataset(identity)
    except Exception as error:  # noqa: BLE001 (of HTTP, of a client for buckets, of Minari: all mean that there is none)
        files = root.glob(f"**/{DATA_FOLDER}/{METADATA_FILE}")
        known = [file.parent.parent.relative_to(root).as_posix() for file in files]
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"'{identity}' is no directory, no Minari dataset in {root}, and cannot be downloaded ({reason})."
            f"{nearest(identity, known)}"
        ) from None


def _read_metadata(directory: Path, file: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(
            f"{directory} is no directory: give that of a Minari dataset, or its id, as D4RL/door/human-v2."
        )
    if not file.is_file():
        raise UserError(
            f"{directory} is no Minari dataset: there is no {METADATA_FILE} in it or in its {DATA_FOLDER}/."
        )
    try:
        metadata = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{file} holds a {type(metadata).__name__}, not the metadata of a dataset.")
    return metadata
