"""The directory of a run or a dataset: its paths and its small files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.lock import LOCK_NAME
from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.state import STATE_NAME, read_state

_MOST = 1e300
"""A number beyond this is none that was measured."""


class RunDirectory:
    """Paths and small files of one run; the README says what each holds.

    Attributes:
        path: the directory, absolute: an environment may change the working directory.
        shown: the directory as it was given, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.shown = path
        self.path = path = path.absolute()  # not resolved: links are left as the user knows them
        self.config_file = path / "config.yaml"
        self.spaces_file = path / "spaces.json"
        self.replay = path / "replay"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.pictures = path / "pictures"
        self.metrics_file = path / "metrics.jsonl"
        self.evaluations_file = path / "evaluations.jsonl"
        self.log_file = path / "train.log"
        self._folders = (self.replay, self.checkpoints, self.tensorboard, self.pictures)

    @staticmethod
    def new(label: str) -> RunDirectory:
        """Return a new directory under runs/, named by the label and the time."""
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(label).stem).strip("-").lower()
        base = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        path, number = base, 1
        while path.exists():
            number += 1
            path = base.with_name(f"{base.name}-{number}")
        return RunDirectory(path)

    def existing(self, flag: str = "--run") -> RunDirectory:
        """Return this directory if it holds a run or a dataset.

        Args:
            flag: the flag that gave it, named in the message; "" for none.

        Raises:
            UserError: if it does not, with the nearest that does, or the newest in it.
        """
        if self.config_file.is_file():
            return self
        named = f"flag {flag}: {self.shown}" if flag else str(self.shown)
        if not self.path.exists():
            siblings = [str(file.parent) for file in self.shown.parent.glob("*/config.yaml")]
            raise UserError(f"{named} does not exist.{nearest(str(self.shown), siblings)}")
        if not self.path.is_dir():
            raise UserError(f"{named} is a file; give the directory of a run or of a dataset.")
        runs = itertools.chain(self.shown.glob("*/config.yaml"), self.shown.glob("*/*/config.yaml"))  # a sweep's, too
        inner = sorted(runs, key=lambda file: file.stat().st_mtime)
        hint = f" The newest run in it is {inner[-1].parent}." if inner else ""
        raise UserError(f"{named} is neither a run nor a dataset: it holds no config.yaml.{hint}")

    def check_usable(self, flag: str = "--run") -> None:
        """Raise UserError if the path holds something that is not a run."""
        if not self.path.exists() or self.config_file.is_file():
            return
        if not self.path.is_dir():
            raise UserError(f"flag {flag}: {self.shown} is a file, not a directory.")
        if not self._is_unused():
            raise UserError(
                f"flag {flag}: {self.shown} holds files, but no run (no config.yaml); name another directory."
            )

    def kind(self) -> str:
        """Return the command of the newest start, "train" or "collect"; "" if it is not known."""
        state = read_state(self.path)
        if state:
            return state.kind
        imported = self.replay.is_dir() and not self.checkpoints.exists()
        return "collect" if imported else ""

    @property
    def is_dataset(self) -> bool:
        """Whether this was collected or imported, and is no training run."""
        return self.kind() == "collect"

    def discard(self) -> None:
        """Remove a new run in which nothing was collected; one that holds anything is left alone."""
        if self._is_unused():
            shutil.rmtree(self.path)

    def _is_unused(self) -> bool:
        """Whether there is no more here than a start makes before it collects, even one that was killed meanwhile."""
        made = {self.config_file, self.spaces_file, self.log_file, self.path / STATE_NAME, self.path / LOCK_NAME}
        unfinished = {self.config_file.with_suffix(".tmp"), self.path / f"{STATE_NAME}.tmp"}
        return {*self.path.iterdir()} <= {*made, *unfinished, *self._folders} and not any(
            folder.is_dir() and any(folder.iterdir()) for folder in self._folders
        )

    def create(self, flag: str = "--run") -> None:
        """Make the directory and its folders; raise UserError if that fails."""
        try:
            for folder in (self.path, *self._folders):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"flag {flag}: {self.shown} cannot be made: {error.strerror}.") from None

    def experience(self, settings: Settings) -> tuple[Path, bool]:
        """Return the replay directory that the run trains from, and whether it may only be read: a dataset's."""
        return (Path(settings.train.dataset) / "replay", True) if settings.train.dataset else (self.replay, False)

    def settings(self) -> Settings:
        """Return the settings of the last start."""
        return resolve(base=self.config_file)

    def write(self, settings: Settings, spaces: Spaces) -> None:
        """Write the settings and the spaces; a run that is killed meanwhile keeps the old ones."""
        unfinished = self.config_file.with_suffix(".tmp")
        write_settings(settings, unfinished)
        _replace_synced(unfinished, self.config_file)
        unfinished.write_text(json.dumps(spaces.to_json(), indent=1, allow_nan=False))
        _replace_synced(unfinished, self.spaces_file)

    def spaces(self) -> Spaces:
        """Return the spaces of the run's environment.

        Raises:
            UserError: if there are none yet, or they are damaged.
        """
        try:
            return Spaces.from_json(json.loads(self.spaces_file.read_text()))
        except FileNotFoundError:
            raise UserError(f"{self.spaces_file} is not there: the run has not trained yet.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.spaces_file} cannot be read ({error}): remove it, and the next `dreamfleet train --run "
                f"{self.path}` writes it anew."
            ) from None


def read_rows(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, with the entries that are finite numbers, null, or lists of these.

    Lines that are torn, or hold anything but a row, are passed over.
    """
    rows = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append({name: value for name, value in row.items() if name.isprintable() and _is_figure(value)})
    return rows


def _is_figure(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(inner, list) and _is_figure(inner) for inner in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and abs(value) <= _MOST)


def _replace_synced(new: Path, target: Path) -> None:
    """Rename a file once it is on the disk: after a crash of the machine there is the old one or the new."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(target)
